"""The queue modes as people call them, and what `/queue` answers."""

from __future__ import annotations

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


def queue_answer(
    own: lane_pb2.QueueMode.ValueType,
    configured: lane_pb2.QueueMode.ValueType,
    harness: str = "",
) -> str:
    """Return what `/queue` answers. `own` is the conversation's own mode, unspecified for none.

    `harness` is the coding agent that answers the conversation, empty when its agent does.
    """
    mode = own or configured
    meaning = _MEANINGS[mode]
    if harness and mode == lane_pb2.QUEUE_MODE_STEER:
        meaning = f"is told to {harness} as soon as its present turn has ended"
    means = f"Queue mode {_name(mode)}: a message for a busy conversation {meaning}."
    if own and own != configured:
        return f"{means} `/queue reset` goes back to {_name(configured)}."
    return means


def _name(mode: lane_pb2.QueueMode.ValueType) -> str:
    return lane_pb2.QueueMode.Name(mode).removeprefix("QUEUE_MODE_").lower()
