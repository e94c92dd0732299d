"""What the rules write into the event log.

The kernel numbers these; the engine turns them into `conveyor.events.v1.Event` messages. `bytes`
are serialised messages that the rules pass on without looking.
"""

from __future__ import annotations

import msgspec

from scheduler_svc.domain.questions import Question, QuestionState
from scheduler_svc.domain.records import Failure, GuardStep, ResumeReason, RunState, Usage, Wait


class StateChanged(msgspec.Struct, frozen=True):
    """The run changed its state, or its suspension released the session lane."""

    previous: RunState
    state: RunState
    turn: int
    attempt: int
    wait: Wait | None = None
    holds_lane: bool = False
    resume_reason: ResumeReason | None = None
    failure: Failure | None = None
    cause: str = ""
    # How long it was in the state before, microseconds. Not in the log, which has the times.
    lasted: int = 0


class InputAccepted(msgspec.Struct, frozen=True):
    """Somebody's message to the session."""

    message: bytes


class Replied(msgspec.Struct, frozen=True):
    """The answer of a turn, or what the run says while it waits."""

    message: bytes
    interim: bool = False


class ChildSpawned(msgspec.Struct, frozen=True):
    """The run spawned a child."""

    child_id: str
    child_session: str
    tool_call_id: str
    label: str
    queue: str


class ChildAnnounced(msgspec.Struct, frozen=True):
    """A child of the run ended. The engine adds what the child said."""

    child_id: str
    live_siblings: int
    # Of the same parent so far, live or ended.
    children: int


class Steered(msgspec.Struct, frozen=True):
    """A turn took the steered input, or (`missed`) none did."""

    request_id: str
    missed: bool = False
    fallback_run_id: str = ""


class Noted(msgspec.Struct, frozen=True):
    """Something that the customer is told. `code` is stable, `text` one sentence for people."""

    code: str
    text: str


class UsageReported(msgspec.Struct, frozen=True):
    """Tokens and cost of one model call."""

    requested_model: str
    effective_model: str
    usage: Usage


class Appended(msgspec.Struct, frozen=True):
    """An event that the worker wrote: a serialised `Event` with its payload."""

    event_id: str
    event: bytes


class Asked(Appended, frozen=True):
    """A question that the worker asks. `data` is the serialised `Question`."""

    question: Question
    data: bytes


class Intervened(Appended, frozen=True):
    """What the delegation guard did, kept on the run for people."""

    step: GuardStep


class QuestionClosed(msgspec.Struct, frozen=True):
    """A question was closed. Without an option: it was rejected, or its run ended first."""

    question_id: str
    state: QuestionState
    title: str
    number: int
    option_id: str = ""
    option_name: str = ""
    responder: str = ""


Payload = (
    StateChanged
    | InputAccepted
    | Replied
    | ChildSpawned
    | ChildAnnounced
    | Steered
    | Noted
    | UsageReported
    | QuestionClosed
    | Asked
    | Appended
)


class Emit(msgspec.Struct, frozen=True):
    """A numbered entry of a session's log."""

    position: int
    session_key: str
    sequence: int
    run_id: str
    flow_id: str
    turn: int
    attempt: int
    time: int
    payload: Payload
