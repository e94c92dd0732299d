"""Measures how well a model delegates: published prompts, outcomes of tries, the verdict."""
