"""The published prompts, as read from `prompts.toml` beside this module."""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from typing import Literal

import msgspec

Tier = Literal["natural", "explicit", "forced"]
TIERS: tuple[Tier, ...] = ("natural", "explicit", "forced")


class ProbePrompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One prompt, and the number of sub-agents that is right for it. 0: no delegating at all."""

    id: str
    tier: Tier
    children: int
    text: str


class PromptSet(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All prompts of one version, in their order."""

    version: str
    prompt: tuple[ProbePrompt, ...]

    def of(self, tiers: Collection[Tier]) -> tuple[ProbePrompt, ...]:
        """The prompts of some tiers."""
        return tuple(prompt for prompt in self.prompt if prompt.tier in tiers)


def read(text: str) -> PromptSet:
    """Read the file. Raises `ValueError` when it is not what it should be."""
    found = msgspec.convert(tomllib.loads(text), PromptSet)
    ids = [prompt.id for prompt in found.prompt]
    if len(set(ids)) != len(ids):
        raise ValueError("two prompts have the same id")
    for prompt in found.prompt:
        if not 0 <= prompt.children <= 5:
            raise ValueError(f"{prompt.id}: children must be 0 to 5")
        if prompt.tier == "forced" and not prompt.children:
            raise ValueError(f"{prompt.id}: a forced call is one child at least")
    return found
