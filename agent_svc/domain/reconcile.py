"""Brings a session's history in line with what the scheduler accepted.

The two databases share no transaction: a final step may be stored while the call that ends the
turn is refused, or the call may be accepted while its answer is lost. So a turn's end becomes
history only when something the scheduler says proves that it was accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from agent_svc.domain import steps as s

EndState = Literal["live", "succeeded", "failed", "cancelled", "expired"]
AdoptionKind = Literal["answered", "closing", "failed"]


# Stands for "turn" of the line that says a run failed: it belongs to none.
FAILURE = 0


@dataclass(frozen=True)
class Standing:
    """What the scheduler says about a run.

    `ended_turn` is the last turn that a worker is known to have ended; 0 when none is.
    """

    state: EndState
    ended_turn: int


@dataclass(frozen=True)
class Adoption:
    """An exchange to add. `text` is the reply, or what a yield said; None for a failure."""

    turn: int
    kind: AdoptionKind
    text: str | None


def adoptions(
    steps: Sequence[s.Step], adopted_turns: Sequence[int], standing: Standing, *, depth: int
) -> list[Adoption]:
    """Exchanges that a run has earned and that the history does not hold yet, in order.

    `adopted_turns` are the run's turns that the history holds. The reply of a turn counts when a
    worker ended the turn, unless that was also the end of a run that did not succeed. A run that
    fails adds a line at depth 0, where a customer waits for an answer; below, its end is told to
    the parent.
    """
    found: list[Adoption] = []
    spoken = any(turn > 0 for turn in adopted_turns)
    for turn in sorted({step.turn for step in steps}):
        if turn > standing.ended_turn or turn in adopted_turns:
            continue
        text = _said(steps, turn)
        if text is None or _crossed(steps, turn, standing):
            continue
        found.append(Adoption(turn, "closing" if spoken else "answered", text))
        spoken = True
    if standing.state in ("failed", "expired") and depth == 0 and FAILURE not in adopted_turns:
        found.append(Adoption(FAILURE, "failed", None))
    return found


def _said(steps: Sequence[s.Step], turn: int) -> str | None:
    reply = s.reply_of(steps, turn)
    if reply is not None:
        return reply.text
    yielded = s.yield_of(steps, turn)
    return yielded.message if yielded is not None else None


def _crossed(steps: Sequence[s.Step], turn: int, standing: Standing) -> bool:
    """True when the run's last turn has a reply, and yet the run did not succeed.

    An accepted reply ends a run that has no children left to tell. So this one met a cancellation,
    a time limit or a budget, and was not delivered. With children left it was, before the run ended
    otherwise.
    """
    if standing.state in ("live", "succeeded") or turn < standing.ended_turn:
        return False
    return not s.untold([step for step in steps if step.turn <= turn])
