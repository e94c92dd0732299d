"""What a turn does next, from its stored steps alone.

The loop asks, does the one thing, stores the outcome as a step, and asks again. An attempt that
takes over after a crash gets the same answers as the one before it, so a finished step is never
repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent_svc.domain import steps as s
from agent_svc.domain.tools import SPAWN, YIELD


@dataclass(frozen=True)
class CallModel:
    """Ask the model; store its reply as step `step`. Steered messages may be taken first."""

    step: int


@dataclass(frozen=True)
class RunTool:
    """Run one tool and store its result."""

    call: s.ToolCall


@dataclass(frozen=True)
class SpawnChildren:
    """Start the children that these calls of one reply ask for, and store each."""

    calls: tuple[s.ToolCall, ...]


@dataclass(frozen=True)
class EndWithReply:
    """The turn is over: this is its reply."""

    reply: s.Replied


@dataclass(frozen=True)
class WaitForChildren:
    """The turn waits for these children and keeps its session lane.

    `said` is what the model wrote beside its calls, possibly empty.
    """

    children: tuple[s.Spawned, ...]
    said: str


@dataclass(frozen=True)
class GiveLaneBack:
    """The turn yields: `message` is sent now, the children's results come in a later turn."""

    children: tuple[s.Spawned, ...]
    message: str


@dataclass(frozen=True)
class StepsExhausted:
    """The model was asked as often as one turn may, and still wants to go on."""

    limit: int


Action = (
    CallModel
    | RunTool
    | SpawnChildren
    | EndWithReply
    | WaitForChildren
    | GiveLaneBack
    | StepsExhausted
)


def next_action(steps: Sequence[s.Step], turn: int, max_calls: int) -> Action:
    """Decide what comes next in `turn`. `max_calls` bounds the model calls of one turn."""
    mine = [step for step in steps if step.turn == turn]
    replies = [step.record for step in mine if isinstance(step.record, s.Replied)]
    if not replies:
        return CallModel(s.next_number(steps, turn))
    last = replies[-1]
    if not last.calls:
        return EndWithReply(last)
    answered = _answered(mine)
    todo = [call for call in last.calls if call.id not in answered]
    # Other tools run before children start, and a yield is judged when the children are known.
    for call in todo:
        if call.name not in (SPAWN, YIELD):
            return RunTool(call)
    spawns = tuple(call for call in todo if call.name == SPAWN)
    if spawns:
        return SpawnChildren(spawns)
    if todo:
        return RunTool(todo[0])
    called = {call.id for call in last.calls}
    records = [step.record for step in mine]
    for record in records:
        if isinstance(record, s.Yielded) and record.call_id in called:
            return GiveLaneBack(tuple(s.untold(steps)), record.message)
    if any(isinstance(r, s.Spawned) and r.wait and r.call_id in called for r in records):
        awaited = tuple(child for child in s.untold(steps) if child.wait)
        return WaitForChildren(awaited, last.text)
    if _asked(steps, turn) >= max_calls:
        return StepsExhausted(max_calls)
    return CallModel(s.next_number(steps, turn))


def _asked(steps: Sequence[s.Step], turn: int) -> int:
    """Replies of the turn, and of those before it that ended only to wait for a limit."""
    count = 0
    while turn > 0:
        mine = [step.record for step in steps if step.turn == turn]
        count += sum(isinstance(record, s.Replied) for record in mine)
        if not any(isinstance(r, s.Began) and r.reason == "limit_granted" for r in mine):
            break
        turn -= 1
    return count


def _answered(mine: Sequence[s.Step]) -> set[str]:
    return {
        step.record.call_id
        for step in mine
        if isinstance(step.record, s.Returned | s.Spawned | s.Yielded)
    }
