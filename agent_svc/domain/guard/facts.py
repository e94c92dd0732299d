"""What is true of a run, and what a detector found. A claim is false only against these facts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agent_svc.domain.tools import SPAWN

Trigger = Literal["ignored_instruction", "textual_call", "false_claim", "invented_result"]
Subject = Literal["permission", "tool", "limit", "budget", "depth", "result"]


@dataclass(frozen=True)
class Facts:
    """What is true of a run at the moment of a reply.

    `tools` are the names offered. `children` are live now and `max_children` may be; `started`
    counts all that the run ever started. `refused` is True when a tool result of this run said that
    no sub-agent was started, whatever the reason. `before` is True when the conversation already
    tells of sub-agents: then a reply may tell of their work.
    """

    tools: frozenset[str] = frozenset()
    depth: int = 0
    max_depth: int = 1
    children: int = 0
    max_children: int = 5
    started: int = 0
    budget_exhausted: bool = False
    refused: bool = False
    before: bool = False

    @property
    def may_delegate(self) -> bool:
        """True when the run could start a sub-agent: the tool is offered, and some may be."""
        return SPAWN in self.tools and self.max_children > 0

    def allows(self, subject: Subject) -> bool:
        """True when a claim of this kind is honest for this run."""
        if not self.may_delegate or self.refused:
            return True
        if subject == "budget":
            return self.budget_exhausted
        if subject == "depth":
            return self.depth >= self.max_depth
        if subject == "limit":
            return self.children >= self.max_children or self.budget_exhausted
        if subject == "result":
            return self.started > 0 or self.before
        return False


@dataclass(frozen=True)
class Finding:
    """A reply that was caught: why, what it is about, and the words that gave it away."""

    trigger: Trigger
    subject: Subject
    excerpt: str


@dataclass(frozen=True)
class Instruction:
    """An explicit instruction to delegate. `count` is 0 when no number was named."""

    excerpt: str
    count: int = 0
