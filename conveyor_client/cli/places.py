"""Where a waiting run stands, in a few words. Pure."""

from __future__ import annotations

from conveyor.scheduler.v1 import lane_pb2 as lane_pb
from conveyor_client.cli.output import between
from svckit.words import span

# A start that is nearer than this is at once.
SOON_SECONDS = 0.5
_FATES = {
    lane_pb.ENQUEUE_OUTCOME_COLLECTED: "answered together with the messages before it",
    lane_pb.ENQUEUE_OUTCOME_STEERED: "handed to the work that is going on",
    lane_pb.ENQUEUE_OUTCOME_STEER_FELL_BACK: "no work to hand it to: it waits its turn",
    lane_pb.ENQUEUE_OUTCOME_INTERRUPTED: "the work before it is being stopped",
}


def place(estimate: lane_pb.QueueEstimate) -> str:
    """Return for example `3rd in line, about 12 s`; empty for a run that starts at once."""
    if not estimate.position:
        return ""
    rank = "next" if estimate.position == 1 else ordinal(estimate.position)
    words = f"{rank} in line"
    if estimate.HasField("start_time"):
        left = between(estimate.as_of_time, estimate.start_time)
        if left >= SOON_SECONDS:
            words += f", about {rough(left)}"
        elif estimate.position == 1:
            return ""
    return words + _holder(estimate)


def fate(
    outcome: lane_pb.EnqueueOutcome.ValueType, estimate: lane_pb.QueueEstimate | None = None
) -> str:
    """Return what became of a message beside waiting for its turn; empty when nothing did."""
    steered = outcome == lane_pb.ENQUEUE_OUTCOME_STEERED
    if steered and estimate is not None and estimate.session_lane_wait.HasField("approval"):
        return "kept for the work that goes on once the open question is answered"
    return _FATES.get(outcome, "")


def _holder(estimate: lane_pb.QueueEstimate) -> str:
    condition = estimate.session_lane_wait.WhichOneof("condition")
    if condition == "children":
        return ", working on your previous message"
    if condition == "approval":
        return ", waiting for your approval"
    return ""


def ordinal(number: int) -> str:
    """Return `1st`, `2nd`, `3rd`, `4th`, `11th`, …"""
    if number % 100 in (11, 12, 13):
        return f"{number}th"
    return f"{number}" + {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")


def rough(seconds: float) -> str:
    """Return a length of time without more precision than an estimate has."""
    return f"{round(seconds)} s" if 10 <= seconds < 60 else span(seconds)
