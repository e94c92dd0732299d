"""Agents: transcripts, turns with durable steps, model providers and tools."""
