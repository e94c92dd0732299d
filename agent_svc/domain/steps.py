"""The durable steps of a run: what is stored, under which number, in which form.

Steps are numbered from 1 within a turn, without a gap, in the order they happened. The first step
of every turn is `Began`: it freezes what the turn saw at its start, so that every attempt of the
turn builds the same prompts. A tool call is named `turn.step.index`: the turn and the step of the
reply that made it, and its place in that reply from 1. The provider's own ids may repeat and are
dropped before anything is stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

from agent_svc.domain.content import Message

StartReason = Literal[
    "first", "children_settled", "child_untold", "steered", "timed_out", "answered", "limit_granted"
]
StopReason = Literal["end_turn", "max_tokens", "refusal"]
GuardTrigger = Literal["ignored_instruction", "textual_call", "false_claim", "invented_result"]
GuardStep = Literal["parse_call", "insist", "force_tool", "fall_back_model", "deliver_with_note"]


class ToolCall(msgspec.Struct, frozen=True):
    """A call that the model asked for. `arguments` is the JSON text as the model wrote it."""

    id: str
    name: str
    arguments: str


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Tokens of one model call. `cached` is the part of `read` that came from a cache, `stored` the
    part that went into one, where that has a price of its own.

    `cost` is in millionths of a US dollar; `None` when the price is not known.
    """

    read: int = 0
    cached: int = 0
    written: int = 0
    cost: int | None = None
    stored: int = 0


class ToldChild(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a child ended, or that it is still live, as a resumption told it. `text` is untrusted."""

    run_id: str
    call_id: str
    status: str
    label: str = ""
    text: str = ""
    truncated: bool = False
    error: str = ""
    tokens: int = 0
    duration_ms: int = 0
    # In millionths of a US dollar, without the calls whose price is not known.
    cost: int = 0
    unpriced: bool = False
    trace_id: str = ""
    # Which model answered it last, and which one was asked for.
    model: str = ""
    asked_model: str = ""

    @property
    def settled(self) -> bool:
        """True when the child has ended."""
        return self.status in ("succeeded", "failed", "cancelled", "expired")


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a question was closed. `responder` is empty when nobody answered in time."""

    question_id: str
    option_id: str = ""
    responder: str = ""


class Began(msgspec.Struct, frozen=True, omit_defaults=True, tag="began"):
    """A turn began. Frozen by its first attempt."""

    reason: StartReason
    # Newest exchange of the session at this moment; older ones are the turn's history.
    mark: int = 0
    lane_released: bool = False
    told: tuple[ToldChild, ...] = ()
    # Unfinished work of other runs of the session, one line each.
    working: tuple[str, ...] = ()
    # True when the customer began a new conversation after this run was accepted.
    reset_since: bool = False
    # Answers to questions of the run, closed since its last turn.
    answers: tuple[Answer, ...] = ()


class Replied(msgspec.Struct, frozen=True, omit_defaults=True, tag="replied"):
    """The model replied. Without calls it is the last step of its turn."""

    text: str
    calls: tuple[ToolCall, ...] = ()
    requested_model: str = ""
    effective_model: str = ""
    usage: Usage = Usage()
    stop_reason: StopReason = "end_turn"
    # The reservation that its report settles; empty without one.
    reservation: str = ""
    # True when no model wrote it: a person ordered what it asks for. Nothing is reported for it.
    ordered: bool = False
    # Why the requested model was passed over for a fallback; empty when it was not.
    passed_over: str = ""


class Returned(msgspec.Struct, frozen=True, omit_defaults=True, tag="returned"):
    """A tool call has its result. `failed` marks an error the model should see as one."""

    call_id: str
    content: str
    failed: bool = False


class Spawned(msgspec.Struct, frozen=True, omit_defaults=True, tag="spawned"):
    """A tool call started a child run. With `wait` its result answers the call."""

    call_id: str
    run_id: str
    session_key: str
    label: str
    wait: bool
    # Something the model should know about how it was started.
    note: str = ""


class Yielded(msgspec.Struct, frozen=True, omit_defaults=True, tag="yielded"):
    """A tool call gave the conversation back, saying `message`."""

    call_id: str
    message: str


class Calling(msgspec.Struct, frozen=True, omit_defaults=True, tag="calling"):
    """A tool that may not be run twice is about to run. Without a result it was interrupted."""

    call_id: str


class Asked(msgspec.Struct, frozen=True, omit_defaults=True, tag="asked"):
    """A person is asked whether a tool call may run."""

    call_id: str
    question_id: str


class Steered(msgspec.Struct, frozen=True, omit_defaults=True, tag="steered"):
    """The turn took a message that was steered to it."""

    request_id: str
    message: Message


class Guarded(msgspec.Struct, frozen=True, omit_defaults=True, tag="guarded"):
    """The delegation guard caught the reply before it, and took one step of its ladder.

    `calls` are those it read out of the reply's text. `said` is what the model is told, or, with
    `deliver_with_note`, the note that the reply is delivered with.
    """

    trigger: GuardTrigger
    step: GuardStep
    # Who gave the reply, as `provider:model`, and the words that gave it away.
    model: str = ""
    excerpt: str = ""
    calls: tuple[ToolCall, ...] = ()
    said: str = ""


Record = Began | Replied | Returned | Spawned | Yielded | Steered | Calling | Asked | Guarded


class Step(msgspec.Struct, frozen=True):
    """A stored step with its number."""

    turn: int
    step: int
    record: Record


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Record)


def encode(record: Record) -> bytes:
    """Turn a record into the bytes that are stored."""
    return _encoder.encode(record)


def decode(data: bytes) -> Record:
    """Read a stored record back."""
    record: Record = _decoder.decode(data)
    return record


def kind_of(record: Record) -> str:
    """Name of the record's kind, for the column that people read."""
    return str(record.__struct_config__.tag)


def next_number(steps: Iterable[Step], turn: int) -> int:
    """Number of the step that follows in `turn`."""
    return 1 + max((step.step for step in steps if step.turn == turn), default=0)


def name_calls(turn: int, step: int, calls: Iterable[tuple[str, str]]) -> tuple[ToolCall, ...]:
    """Give the calls of one reply, as (name, arguments), our own ids."""
    return tuple(
        ToolCall(f"{turn}.{step}.{index}", name, arguments)
        for index, (name, arguments) in enumerate(calls, start=1)
    )


def spawned(steps: Sequence[Step]) -> list[Spawned]:
    """All children of the run, in the order they were started."""
    return [step.record for step in steps if isinstance(step.record, Spawned)]


def settled_ids(steps: Sequence[Step]) -> set[str]:
    """Run ids of the children whose end a turn was told."""
    return {
        child.run_id
        for step in steps
        if isinstance(step.record, Began)
        for child in step.record.told
        if child.settled
    }


def untold(steps: Sequence[Step]) -> list[Spawned]:
    """Children whose end no turn was told: live, or ended a moment ago."""
    known = settled_ids(steps)
    return [child for child in spawned(steps) if child.run_id not in known]


def taken_in(steps: Sequence[Step], turn: int) -> list[str]:
    """Request ids of the steered messages that `turn` took, in order."""
    return [
        step.record.request_id
        for step in steps
        if step.turn == turn and isinstance(step.record, Steered)
    ]


def calls_of(record: Record) -> tuple[ToolCall, ...]:
    """The calls that a record asks for: a reply's, or those the guard read out of its text."""
    return record.calls if isinstance(record, Replied | Guarded) else ()


def guarded(steps: Sequence[Step]) -> list[Guarded]:
    """What the delegation guard did in the run, in order."""
    return [step.record for step in steps if isinstance(step.record, Guarded)]


def reply_of(steps: Sequence[Step], turn: int) -> Replied | None:
    """The reply that ended `turn`, or None when the turn has none yet or ended otherwise.

    A reply that the guard caught is none, unless it was delivered with a note. That may be a turn
    later, when the rung in between waited for a limit and then failed.
    """
    caught: Guarded | None = None
    for step in reversed(steps):
        if step.turn > turn:
            continue
        if step.turn < turn and (caught is None or caught.step != "deliver_with_note"):
            return None
        if isinstance(step.record, Guarded):
            caught = caught or step.record
        elif isinstance(step.record, Replied):
            return None if step.record.calls else delivered(step.record, caught)
    return None


def delivered(reply: Replied, caught: Guarded | None) -> Replied | None:
    """What of a reply without calls is delivered, after what the guard did about it."""
    if caught is None:
        return reply
    if caught.step != "deliver_with_note":
        return None
    return msgspec.structs.replace(reply, text=f"{reply.text}\n\n{caught.said}".strip())


def yield_of(steps: Sequence[Step], turn: int) -> Yielded | None:
    """The yield that ended `turn`, or None."""
    for step in reversed(steps):
        if step.turn == turn and isinstance(step.record, Yielded):
            return step.record
    return None
