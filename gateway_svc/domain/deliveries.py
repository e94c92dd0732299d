"""Which events a push channel tells its customer, and in which words."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from conveyor.common.v1 import content_pb2
from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import run_pb2


class DeliveryKind(StrEnum):
    """What a delivery is about."""

    REPLY = "reply"
    INTERIM = "interim"
    ANNOUNCEMENT = "announcement"
    FAILURE = "failure"
    NOTE = "note"


class AnnounceStyle(StrEnum):
    """How much of the ends of child runs a channel tells."""

    OFF = "off"
    STATUS = "status"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Told:
    """One thing to tell the customer, as text in Markdown."""

    kind: DeliveryKind
    text: str


def told(event: event_pb2.Event, style: AnnounceStyle) -> Told | None:
    """Return what a push channel tells of `event`, or `None` when it is silent about it."""
    payload = event.WhichOneof("payload")
    if payload == "message_completed":
        return _told_message(event.message_completed)
    if payload == "child_announced":
        return _told_announcement(event.child_announced, style)
    if payload == "run_state_changed":
        return _told_end(event)
    if payload == "note_added" and event.note_added.visible:
        return Told(DeliveryKind.NOTE, event.note_added.text)
    return None


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


def _told_announcement(announced: event_pb2.ChildAnnounced, style: AnnounceStyle) -> Told | None:
    if style is AnnounceStyle.OFF:
        return None
    result = announced.announcement.result
    name = result.label or "sub-agent"
    how = run_pb2.RunState.Name(result.status).removeprefix("RUN_STATE_").lower()
    line = f"{name}: {how}"
    if style is AnnounceStyle.FULL and result.text:
        line = f"{line}\n{result.text}"
    return Told(DeliveryKind.ANNOUNCEMENT, line)


def _told_end(event: event_pb2.Event) -> Told | None:
    # Only the root speaks to the customer, and a cancellation was asked for.
    if event.run_id != event.flow_id:
        return None
    changed = event.run_state_changed
    if changed.state not in (run_pb2.RUN_STATE_FAILED, run_pb2.RUN_STATE_EXPIRED):
        return None
    why = changed.error.message or changed.cause or "the run ended without an answer"
    return Told(DeliveryKind.FAILURE, f"That did not work: {why}")
