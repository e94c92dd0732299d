"""The detectors: what a reply says that it should not, held against the facts of its run.

    textual_call(text, tools)      calls written as text, as (name, JSON arguments)
    false_claim(text, facts)       "I am not allowed to", where the run is
    invented_result(text, facts)   news of sub-agents that nobody started
    asks_to_delegate(*said)        the explicit instruction that holds, if any
    verdict(...)                   all of them, in the order in which the guard acts

All are pure, take any text, and prefer to miss: see docs/reference/delegation-guard.md for what
they catch, measured.
"""

from __future__ import annotations

import re

from agent_svc.domain.guard.asks import asks_to_delegate
from agent_svc.domain.guard.calls import Call, textual_call
from agent_svc.domain.guard.claims import false_claim, invented_result
from agent_svc.domain.guard.facts import Facts, Finding, Instruction, Subject, Trigger

__all__ = [
    "Call",
    "Facts",
    "Finding",
    "Instruction",
    "Subject",
    "Trigger",
    "asks_to_delegate",
    "false_claim",
    "invented_result",
    "speaks_of_agents",
    "textual_call",
    "verdict",
]


_AGENTS = re.compile(r"(?:sub|sous|unter)[- ‑]?agent|sessions_spawn", re.IGNORECASE)


def speaks_of_agents(text: str) -> bool:
    """Tell whether a text has a word for a sub-agent in it."""
    return _AGENTS.search(text) is not None


def verdict(text: str, facts: Facts, instruction: Instruction | None) -> Finding | None:
    """Judge a reply without calls. None when it may be delivered.

    A run that could not delegate, that tried and was refused, or that has started sub-agents is
    never caught.
    """
    if not facts.may_delegate or facts.refused or facts.started:
        return None
    if calls := textual_call(text, facts.tools):
        return Finding("textual_call", "tool", calls[0][0])
    found = false_claim(text, facts) or invented_result(text, facts)
    if found is not None:
        return found
    if instruction is not None and not _honest(text, facts):
        return Finding("ignored_instruction", "tool", instruction.excerpt)
    return None


def _honest(text: str, facts: Facts) -> bool:
    """True for a refusal that the facts bear out: nothing was ignored."""
    free = Facts(tools=facts.tools, depth=facts.depth, max_depth=facts.max_depth)
    claim = false_claim(text, free)
    return claim is not None and facts.allows(claim.subject)
