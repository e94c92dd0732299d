"""What a turn does next, from its stored steps alone.

The loop asks, does the one thing, stores the outcome as a step, and asks again. An attempt that
takes over after a crash gets the same answers as the one before it, so a finished step is never
repeated.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from agent_svc.domain import approval
from agent_svc.domain import steps as s
from agent_svc.domain.tools import SPAWN, YIELD

INTERRUPTED = (
    "Interrupted: the service stopped while this ran. It may or may not have happened, and it was "
    "not repeated. Find out before you try again."
)


@dataclass(frozen=True)
class CallModel:
    """Ask the model; store its reply as step `step`. Steered messages may be taken first."""

    step: int


@dataclass(frozen=True)
class RunTool:
    """Run one tool and store its result."""

    call: s.ToolCall


@dataclass(frozen=True)
class AnswerCall:
    """Store this as the result of a call that is not run: denied, or interrupted by a crash."""

    result: s.Returned


@dataclass(frozen=True)
class AskPeople:
    """Ask whether these calls of one reply may run, and store each."""

    calls: tuple[s.ToolCall, ...]


@dataclass(frozen=True)
class WaitForAnswers:
    """The turn waits for an answer to one of these questions and keeps its session lane."""

    question_ids: tuple[str, ...]


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
    | AnswerCall
    | AskPeople
    | WaitForAnswers
    | SpawnChildren
    | EndWithReply
    | WaitForChildren
    | GiveLaneBack
    | StepsExhausted
)


def next_action(
    steps: Sequence[s.Step], turn: int, max_calls: int, asks: Collection[str] = ()
) -> Action:
    """Decide what comes next in `turn`.

    `max_calls` bounds the model calls of one turn; `asks` names the tools that need a person's word
    before each call.
    """
    mine = [step for step in steps if step.turn == turn]
    replies = [step for step in steps if isinstance(step.record, s.Replied) and step.turn <= turn]
    if not replies:
        return CallModel(s.next_number(steps, turn))
    last = replies[-1].record
    assert isinstance(last, s.Replied)
    here = replies[-1].turn == turn
    caught = _caught([step for step in steps if step.turn <= turn])
    calls = last.calls or (caught.calls if caught is not None else ())
    if not calls and (reply := s.reply_of(steps, turn)) is not None:
        return EndWithReply(reply)
    if here and not calls:
        return CallModel(s.next_number(steps, turn))
    called = {call.id for call in calls}
    answered = _answered(steps)
    todo = [call for call in calls if call.id not in answered]
    # A turn that waited for answers leaves calls to the next, which goes on with them.
    if not here and not todo and not called & _answered(mine):
        return CallModel(s.next_number(steps, turn))
    if todo:
        return _next_call(steps, todo, asks)
    records = [step.record for step in mine]
    for record in records:
        if isinstance(record, s.Yielded) and record.call_id in called:
            return GiveLaneBack(tuple(s.untold(steps)), record.message)
    if any(isinstance(r, s.Spawned) and r.wait and r.call_id in called for r in records):
        awaited = tuple(child for child in s.untold(steps) if child.wait)
        # What the guard had to argue for comes with an answer to the argument, not to the customer.
        return WaitForChildren(awaited, "" if s.guarded(steps) else last.text)
    if model_calls(steps, turn) >= max_calls:
        return StepsExhausted(max_calls)
    return CallModel(s.next_number(steps, turn))


def _next_call(
    steps: Sequence[s.Step], todo: Sequence[s.ToolCall], asks: Collection[str]
) -> Action:
    """Decide what comes next for the calls of a reply that have no result yet.

    What may run runs first; then people are asked about all the rest at once, while no child is at
    work. Children start when nothing waits for a person, and a yield is judged when the children
    are known.
    """
    begun = {step.record.call_id for step in steps if isinstance(step.record, s.Calling)}
    asked = {
        step.record.call_id: step.record.question_id
        for step in steps
        if isinstance(step.record, s.Asked)
    }
    verdicts = approval.verdicts(steps)
    spawns: list[s.ToolCall] = []
    unasked: list[s.ToolCall] = []
    waiting: list[str] = []
    for call in todo:
        if call.id in begun:
            return AnswerCall(s.Returned(call.id, INTERRUPTED, failed=True))
        verdict = verdicts.get(call.id)
        if verdict is not None and not verdict.allowed:
            return AnswerCall(s.Returned(call.id, verdict.refusal, failed=True))
        if verdict is None and call.id in asked:
            waiting.append(asked[call.id])
        elif verdict is None and call.name in asks and call.name != YIELD:
            unasked.append(call)
        elif call.name == SPAWN:
            spawns.append(call)
        elif call.name != YIELD:
            return RunTool(call)
    room = approval.MOST_QUESTIONS - len(waiting)
    if unasked and room > 0:
        return AskPeople(tuple(unasked[:room]))
    if waiting:
        return WaitForAnswers(tuple(waiting))
    return SpawnChildren(tuple(spawns)) if spawns else RunTool(todo[0])


def model_calls(steps: Sequence[s.Step], turn: int) -> int:
    """Replies of the turn, and of those before it that ended only to wait for somebody's word or
    for a limit.
    """
    count = 0
    while turn > 0:
        mine = [step.record for step in steps if step.turn == turn]
        count += sum(isinstance(record, s.Replied) for record in mine)
        if not any(
            isinstance(r, s.Began) and r.reason in ("limit_granted", "answered") for r in mine
        ):
            break
        turn -= 1
    return count


def _caught(steps: Sequence[s.Step]) -> s.Guarded | None:
    """What the guard did last about the last reply."""
    for step in reversed(steps):
        if isinstance(step.record, s.Guarded):
            return step.record
        if isinstance(step.record, s.Replied):
            return None
    return None


def _answered(mine: Sequence[s.Step]) -> set[str]:
    return {
        step.record.call_id
        for step in mine
        if isinstance(step.record, s.Returned | s.Spawned | s.Yielded)
    }
