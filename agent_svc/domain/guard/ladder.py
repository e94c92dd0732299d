"""What the guard does about a reply that it caught, one rung after the other.

A textual call is made a real one. Otherwise the model is told the facts once, then made to call the
tool, then a stronger model is asked in its place, and when nothing helps the reply is delivered
with a note that says so. Every rung is taken at most once in a run, and each is a stored step, so
an attempt that takes over after a crash stands where the one before it stood.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agent_svc.domain import steps as s
from agent_svc.domain.guard.facts import Facts, Finding, Instruction, Subject
from agent_svc.domain.tools import SPAWN

CARRIED_OUT_BY_ASKING = ("insist", "force_tool", "fall_back_model")


@dataclass(frozen=True)
class Rungs:
    """Which rungs there are: `can_ask` while the turn may pay for another model call.

    `fallback` is the stronger model as `provider:model`, empty when none is configured.
    """

    can_ask: bool
    fallback: str = ""


def next_rung(
    found: Finding,
    model: str,
    calls: Sequence[s.ToolCall],
    taken: Sequence[s.Guarded],
    rungs: Rungs,
) -> s.GuardStep:
    """Choose the rung after `taken` for a reply of `model` in which `found` was found."""
    if calls:
        return "parse_call"
    had = {record.step for record in taken}
    # Once the stronger model has answered, the weaker one is not asked again.
    if rungs.can_ask and "fall_back_model" not in had:
        if "insist" not in had:
            return "insist"
        if "force_tool" not in had:
            return "force_tool"
        if rungs.fallback and rungs.fallback != model:
            return "fall_back_model"
    return "deliver_with_note"


def found_by(rung: s.Guarded) -> Finding:
    """What the reply was caught for, as its rung remembers it."""
    subject: Subject = "permission" if rung.trigger == "false_claim" else "tool"
    return Finding(rung.trigger, subject, rung.excerpt)


def words(rung: s.GuardStep, found: Finding, facts: Facts, instruction: Instruction | None) -> str:
    """What a rung says: to the model, or to the customer in the note."""
    if rung == "insist":
        return _insist(found, facts, instruction)
    if rung == "force_tool":
        return (
            f"Call {SPAWN} now, in this reply: `task` says what the sub-agent is to do, complete "
            "in itself."
        )
    if rung == "deliver_with_note":
        return f"⚠ {_NOTES[found.trigger]}"
    return ""


_SEEN: dict[s.GuardTrigger, str] = {
    "false_claim": "Your reply claims something about permissions, limits or tools that is not "
    "true of this run.",
    "ignored_instruction": "You were told to delegate, and your reply called no tool.",
    "textual_call": "You wrote a tool call as text. Text starts nothing: make the call.",
    "invented_result": "Your reply tells of sub-agents, but none was started for it.",
}
_NOTES: dict[s.GuardTrigger, str] = {
    "false_claim": "Sub-agents can be started here. What the answer above says about permissions, "
    "limits or missing tools is not true.",
    "ignored_instruction": "This was answered without the sub-agents that were asked for: the "
    "model did not start any.",
    "textual_call": "The model wrote a tool call as text instead of making it: nothing was "
    "started.",
    "invented_result": "No sub-agent was started for this answer, whatever it says.",
}


def _insist(found: Finding, facts: Facts, instruction: Instruction | None) -> str:
    lines = [
        _SEEN[found.trigger],
        f"The facts: the tool {SPAWN} is offered to you and you are allowed to use it now. This "
        f"run has depth {facts.depth} and may start sub-agents down to depth {facts.max_depth}; "
        f"{facts.children} of at most {facts.max_children} are at work. Nothing else stands in "
        "the way.",
    ]
    if instruction is not None:
        lines.append(f"The instruction was: «{instruction.excerpt}»")
    lines.append(f"Call {SPAWN} now, once for each part of the work, all in one reply.")
    if instruction is None:
        lines.append(
            "If the message needs no sub-agent, answer it yourself, without a word about "
            "permissions or tools."
        )
    lines.append("The customer has not seen your reply and does not see this message.")
    return " ".join(lines)


def pending(steps: Sequence[s.Step]) -> s.Guarded | None:
    """The rung that the next model call carries out, if any.

    Also when the turn ended meanwhile, only to wait for a limit.
    """
    for step in reversed(steps):
        record = step.record
        if isinstance(record, s.Guarded):
            return record if record.step in CARRIED_OUT_BY_ASKING else None
        waited = isinstance(record, s.Began) and record.reason == "limit_granted"
        if not waited and not isinstance(record, s.Steered):
            return None
    return None


def fell_back(steps: Sequence[s.Step]) -> bool:
    """True once the stronger model was chosen: the rest of the run is its own."""
    return any(record.step == "fall_back_model" for record in s.guarded(steps))


@dataclass(frozen=True)
class Taken:
    """A rung that was taken, under the number of its step, and whether it led to a call."""

    turn: int
    step: int
    record: s.Guarded
    resolved: bool


def outcomes(steps: Sequence[s.Step], *, ended: bool) -> Iterator[Taken]:
    """The rungs whose outcome is known, in order.

    `ended` says that the last reply ends the turn: it was not caught, and what led to it was the
    last rung.
    """
    for position, step in enumerate(steps):
        record = step.record
        if not isinstance(record, s.Guarded):
            continue
        if record.step not in CARRIED_OUT_BY_ASKING:
            yield Taken(step.turn, step.step, record, True)
            continue
        after = [
            other.record
            for other in steps[position + 1 :]
            if isinstance(other.record, s.Replied | s.Guarded)
        ]
        if not after:
            continue
        if s.calls_of(after[0]):
            yield Taken(step.turn, step.step, record, True)
        elif isinstance(after[0], s.Guarded):
            # The call itself failed, and the next rung was taken at once.
            yield Taken(step.turn, step.step, record, False)
        elif len(after) > 1:
            yield Taken(step.turn, step.step, record, bool(s.calls_of(after[1])))
        elif ended:
            yield Taken(step.turn, step.step, record, True)


def as_shown(steps: Sequence[s.Step]) -> list[s.Step]:
    """The steps of a run as its model is shown them.

    A caught reply and what was said about it are shown while the model is still to answer that;
    once it has called, or another model took over, they never happened: a model that reads its own
    excuse repeats it, and one that reads the argument apologises to the customer for it.
    """
    settled = max(
        (
            position
            for position, step in enumerate(steps)
            if _settles(step.record, steps[position + 1 :])
        ),
        default=-1,
    )
    shown: list[s.Step] = []
    for position, step in enumerate(steps):
        record = step.record
        caught = _caught(steps, position)
        if isinstance(record, s.Guarded):
            if record.calls:
                shown.append(s.Step(step.turn, step.step, s.Replied("", record.calls)))
            elif position > settled and record.said and record.step != "deliver_with_note":
                shown.append(step)
        elif caught is None or not isinstance(record, s.Replied):
            shown.append(step)
        elif (told := s.delivered(record, caught)) is not None:
            shown.append(s.Step(step.turn, step.step, told))
        elif position > settled and not caught.calls:
            shown.append(step)
    return shown


def _settles(record: s.Record, after: Sequence[s.Step]) -> bool:
    if isinstance(record, s.Guarded):
        return bool(record.calls) or record.step in ("fall_back_model", "deliver_with_note")
    if not isinstance(record, s.Replied):
        return False
    # A reply that calls, or one that was not caught.
    return bool(record.calls) or not any(isinstance(step.record, s.Guarded) for step in after)


def _caught(steps: Sequence[s.Step], position: int) -> s.Guarded | None:
    """What the guard did last about the reply at `position`, before the next reply."""
    caught: s.Guarded | None = None
    if not isinstance(steps[position].record, s.Replied):
        return None
    for step in steps[position + 1 :]:
        if isinstance(step.record, s.Replied):
            break
        if isinstance(step.record, s.Guarded):
            caught = step.record
    return caught
