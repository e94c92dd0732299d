"""The outcome of one try: what a reply to a prompt of the set amounts to.

Asked for once, with no children at work: what the detectors of the guard find in the text is told
to `outcome` as `Reading`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from agent_svc.domain import tools as t
from agent_svc.domain.probe.promptset import ProbePrompt
from agent_svc.domain.probe.verdict import Outcome

STEPS = 3
"""Replies of one try at most. A model may look around before it delegates."""


@dataclass(frozen=True)
class Reading:
    """What the detectors found in a text that came without a valid spawn call."""

    textual_call: bool = False
    false_claim: bool = False
    invented_result: bool = False


@dataclass(frozen=True)
class Offer:
    """What a spawn call may name."""

    agents: Collection[str]
    is_model: Callable[[str], bool]


@dataclass(frozen=True)
class Spawns:
    """The spawn calls of a reply, and whether some call could not have been carried out."""

    valid: int
    invalid: bool


def spawns(calls: Sequence[tuple[str, str]], tools: Collection[str], offer: Offer) -> Spawns:
    """Read the calls of a reply as a turn would."""
    valid, invalid = 0, False
    for name, arguments in calls:
        if name not in tools:
            invalid = True
        elif name == t.SPAWN:
            if _starts(arguments, offer):
                valid += 1
            else:
                invalid = True
    return Spawns(valid, invalid)


def looks_around(calls: Sequence[tuple[str, str]], tools: Collection[str]) -> bool:
    """True when a reply only looks: a turn would answer its calls and ask again."""
    ends = (t.SPAWN, t.YIELD)
    return bool(calls) and all(name in tools and name not in ends for name, _ in calls)


def outcome(prompt: ProbePrompt, made: Spawns, reading: Reading) -> Outcome:
    """What came of a prompt. The first that holds, in this order.

    A call that could not be carried out, or was written as text, is invalid whatever else there is.
    Texts are judged only when no call was made, since only then are they the answer.
    """
    if made.invalid:
        return "invalid_call"
    if made.valid:
        return "right" if made.valid == prompt.children else "wrong_count"
    if reading.textual_call:
        return "invalid_call"
    if reading.invented_result:
        return "invented_result"
    if reading.false_claim:
        return "invented_refusal"
    return "ignored_tool" if prompt.children else "right"


def _starts(arguments: str, offer: Offer) -> bool:
    """True when a spawn with these arguments would start a sub-agent."""
    try:
        args = t.read_spawn(arguments)
    except t.BadArguments:
        return False
    if args.runtime != "subagent":
        return False  # nobody asked for an external agent
    if args.agent_id and args.agent_id not in offer.agents:
        return False
    return not args.model or offer.is_model(args.model)
