"""Slash commands as people type them. So far there is one: `/queue`.

A message is a command when its first word is one; every other text that begins with a slash is an
ordinary message.
"""

from __future__ import annotations

from dataclasses import dataclass

from conveyor.common.v1 import content_pb2
from conveyor.scheduler.v1 import lane_pb2

MODES: dict[str, lane_pb2.QueueMode.ValueType] = {
    "followup": lane_pb2.QUEUE_MODE_FOLLOWUP,
    "collect": lane_pb2.QUEUE_MODE_COLLECT,
    "steer": lane_pb2.QUEUE_MODE_STEER,
    "interrupt": lane_pb2.QUEUE_MODE_INTERRUPT,
}
_MEANINGS = {
    lane_pb2.QUEUE_MODE_FOLLOWUP: "is answered on its own, in order",
    lane_pb2.QUEUE_MODE_COLLECT: "is answered together with the others that wait",
    lane_pb2.QUEUE_MODE_STEER: "is handed to the work that is going on",
    lane_pb2.QUEUE_MODE_INTERRUPT: "stops the work that is going on and comes next",
}
UNSPECIFIED = lane_pb2.QUEUE_MODE_UNSPECIFIED


@dataclass(frozen=True, slots=True)
class QueueCommand:
    """`/queue`: shows the mode of the conversation, sets it, or goes back to the configured one.

    `problem` says in one line what is wrong with it; then it does nothing.
    """

    sets: lane_pb2.QueueMode.ValueType | None = None
    problem: str = ""


def command_of(message: content_pb2.Message) -> str:
    """Return the command that a message is, as typed; empty for an ordinary message."""
    if len(message.parts) != 1 or message.parts[0].WhichOneof("part") != "text":
        return ""
    text = message.parts[0].text.strip()
    return text if name_of(text) else ""


def name_of(text: str) -> str:
    """Return the name of the command that a text is, without its slash; empty when it is none."""
    words = text.split()
    return "queue" if words and words[0].lower() == "/queue" else ""


def read_queue(text: str) -> QueueCommand:
    """Read a `/queue` command."""
    words = text.lower().split()[1:]
    if not words:
        return QueueCommand()
    if words == ["reset"]:
        return QueueCommand(sets=UNSPECIFIED)
    if len(words) == 1 and words[0] in MODES:
        return QueueCommand(sets=MODES[words[0]])
    said = " ".join(words)[:40]
    return QueueCommand(
        problem=f"“{said}” is no queue mode: say {', '.join(MODES)} or reset, "
        "for example `/queue collect`"
    )


def queue_answer(
    own: lane_pb2.QueueMode.ValueType, configured: lane_pb2.QueueMode.ValueType
) -> str:
    """Return what `/queue` answers. `own` is the conversation's own mode, unspecified for none."""
    mode = own or configured
    means = f"Queue mode {_name(mode)}: a message for a busy conversation {_MEANINGS[mode]}."
    if own and own != configured:
        return f"{means} `/queue reset` goes back to {_name(configured)}."
    return means


def _name(mode: lane_pb2.QueueMode.ValueType) -> str:
    return lane_pb2.QueueMode.Name(mode).removeprefix("QUEUE_MODE_").lower()
