"""Which events a push channel tells its customer, and in which words."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from conveyor.common.v1 import content_pb2, question_pb2
from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import announcement_pb2, run_pb2
from gateway_svc.domain import asking

# Of what a child said: its whole text comes in the answer, joined with the others'.
EXCERPT_CHARS = 500
QUOTE_CHARS = 80


class DeliveryKind(StrEnum):
    """What a delivery is about."""

    REPLY = "reply"
    INTERIM = "interim"
    ANNOUNCEMENT = "announcement"
    FAILURE = "failure"
    NOTE = "note"
    QUESTION = "question"


class AnnounceStyle(StrEnum):
    """How much of the ends of child runs a channel tells.

    `STATUS` is one line per child, `FULL` adds the beginning of what it said.
    """

    OFF = "off"
    STATUS = "status"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Told:
    """One thing to tell the customer, as text in Markdown."""

    kind: DeliveryKind
    text: str


def told(event: event_pb2.Event, style: AnnounceStyle, about: str = "") -> Told | None:
    """Return what a push channel tells of `event`, or `None` when it is silent about it.

    `about` is the message that the event's run answers: the end of one that had more than a turn is
    told with it, for the customer may have moved on since.
    """
    payload = event.WhichOneof("payload")
    if payload == "message_completed":
        return _told_message(event.message_completed)
    if payload == "child_announced":
        return _told_announcement(event.child_announced.announcement, style)
    if payload == "run_state_changed":
        return _told_end(event, about)
    if payload == "note_added" and event.note_added.visible:
        return Told(DeliveryKind.NOTE, event.note_added.text)
    if payload == "question_asked":
        return Told(DeliveryKind.QUESTION, asking.asked_text(event.question_asked.question))
    if payload == "question_closed":
        return _told_closed(event.question_closed)
    return None


def speaker(event: event_pb2.Event) -> str:
    """Return the run whose reply route an event goes to: questions of a tree are for its root's."""
    asks = event.WhichOneof("payload") in asking.PAYLOADS
    return event.flow_id if asks and event.flow_id else event.run_id


def message_text(message: content_pb2.Message) -> str:
    """Return the text parts of a message, and the addresses of what it refers to."""
    texts: list[str] = []
    for part in message.parts:
        kind = part.WhichOneof("part")
        if kind == "text":
            texts.append(part.text)
        elif kind == "resource":
            texts.append(part.resource.uri)
    return "\n".join(texts)


def _told_message(completed: event_pb2.MessageCompleted) -> Told | None:
    if completed.kind == event_pb2.MESSAGE_KIND_REPLY:
        kind = DeliveryKind.REPLY
    elif completed.kind == event_pb2.MESSAGE_KIND_INTERIM:
        kind = DeliveryKind.INTERIM
    else:
        return None
    text = message_text(completed.message)
    return Told(kind, text) if text else None


def _told_closed(closed: event_pb2.QuestionClosed) -> Told | None:
    # Whoever answered knows, and a run that was stopped says so itself.
    if closed.state != question_pb2.QUESTION_STATE_EXPIRED:
        return None
    return Told(DeliveryKind.QUESTION, asking.expired_text(closed))


def _told_announcement(
    announcement: announcement_pb2.Announcement, style: AnnounceStyle
) -> Told | None:
    if style is AnnounceStyle.OFF:
        return None
    line = status_line(announcement)
    if style is AnnounceStyle.FULL and (said := _excerpt(_words_of(announcement.result))):
        line = f"{line}\n{said}"
    return Told(DeliveryKind.ANNOUNCEMENT, line)


def status_line(announcement: announcement_pb2.Announcement) -> str:
    """Return one short line about the end of a child, for example
    `✓ research a market trend: done in 12 s (1 of 3)`. An only child is not counted."""
    result = announcement.result
    mark, how, timed = _ENDS.get(result.status, ("•", "ended", "ended after"))
    name = " ".join(result.label.split()) or "sub-agent"
    took = result.duration.ToTimedelta().total_seconds() if result.HasField("duration") else None
    line = f"{mark} {name}: {how if took is None else f'{timed} {_span(took)}'}"
    of = announcement.children
    return f"{line} ({of - announcement.live_siblings} of {of})" if of > 1 else line


_ENDS = {
    run_pb2.RUN_STATE_SUCCEEDED: ("✓", "done", "done in"),
    run_pb2.RUN_STATE_FAILED: ("✗", "failed", "failed after"),
    run_pb2.RUN_STATE_EXPIRED: ("✗", "ran out of time", "ran out of time after"),
    run_pb2.RUN_STATE_CANCELLED: ("–", "cancelled", "cancelled after"),
}


def _words_of(result: announcement_pb2.ChildResult) -> str:
    if result.status == run_pb2.RUN_STATE_SUCCEEDED:
        return result.text
    return result.error.message or result.text


def _span(seconds: float) -> str:
    # Rounded down, as a clock is read: 59.9 s is no minute yet. `svckit.words.span` rounds to the
    # nearest and keeps zeroes, for tables; these texts are in chats.
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _excerpt(text: str, longest: int = EXCERPT_CHARS) -> str:
    text = text.strip()
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


def _line(text: str, longest: int) -> str:
    return _excerpt(" ".join(text.split()), longest)


def is_failure(event: event_pb2.Event) -> bool:
    """True for the end of a root without an answer. A cancellation was asked for."""
    return (
        event.WhichOneof("payload") == "run_state_changed"
        and event.run_id == event.flow_id
        and event.run_state_changed.state in (run_pb2.RUN_STATE_FAILED, run_pb2.RUN_STATE_EXPIRED)
    )


def _told_end(event: event_pb2.Event, about: str) -> Told | None:
    if not is_failure(event):
        return None
    changed = event.run_state_changed
    why = changed.error.message or changed.cause or "the run ended without an answer"
    quoted = f" («{_line(about, QUOTE_CHARS)}»)" if about.strip() and changed.turn > 1 else ""
    return Told(DeliveryKind.FAILURE, f"That did not work{quoted}: {_line(why, EXCERPT_CHARS)}")
