"""What the events of the log and the live runs say about sessions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import run_pb2

LIVE_STATES: tuple[run_pb2.RunState.ValueType, ...] = (
    run_pb2.RUN_STATE_QUEUED,
    run_pb2.RUN_STATE_RUNNING,
    run_pb2.RUN_STATE_SUSPENDED,
    run_pb2.RUN_STATE_CANCELLING,
)
TERMINAL_STATES = frozenset(
    {
        run_pb2.RUN_STATE_SUCCEEDED,
        run_pb2.RUN_STATE_FAILED,
        run_pb2.RUN_STATE_CANCELLED,
        run_pb2.RUN_STATE_EXPIRED,
    }
)
_SPOKEN = frozenset(
    {
        event_pb2.MESSAGE_KIND_INPUT,
        event_pb2.MESSAGE_KIND_REPLY,
        event_pb2.MESSAGE_KIND_INTERIM,
    }
)


@dataclass(frozen=True, slots=True)
class LaneUse:
    """Who holds a session lane, and how many runs wait in it. Empty when idle."""

    run_id: str = ""
    waiting: int = 0


def lane_use(live_runs: Iterable[run_pb2.Run]) -> Mapping[str, LaneUse]:
    """Return the use of every session lane in which one of `live_runs` is."""
    holders: dict[str, str] = {}
    waiting: dict[str, int] = defaultdict(int)
    for run in live_runs:
        key = run.spec.session_key
        waiting[key] += run.state == run_pb2.RUN_STATE_QUEUED
        if _holds_lane(run):
            holders[key] = run.run_id
            waiting[key] -= run.state == run_pb2.RUN_STATE_QUEUED
    return {key: LaneUse(holders.get(key, ""), count) for key, count in waiting.items()}


def _holds_lane(run: run_pb2.Run) -> bool:
    if run.state == run_pb2.RUN_STATE_RUNNING:
        return True
    if run.state == run_pb2.RUN_STATE_SUSPENDED:
        return run.suspension.holds_session_lane
    if run.state == run_pb2.RUN_STATE_CANCELLING:
        return bool(run.worker)
    # Backing off or handed back: the lane is held from the first lease on.
    return run.state == run_pb2.RUN_STATE_QUEUED and run.turn > 0 and not run.HasField("result")


def is_spoken(event: event_pb2.Event) -> bool:
    """True for a message in or out of a session."""
    return (
        event.WhichOneof("payload") == "message_completed"
        and event.message_completed.kind in _SPOKEN
    )


def created_run(event: event_pb2.Event) -> bool:
    """True for the event that says a run was accepted."""
    return (
        event.WhichOneof("payload") == "run_state_changed"
        and event.run_state_changed.previous_state == run_pb2.RUN_STATE_UNSPECIFIED
    )


def ended_run(event: event_pb2.Event) -> bool:
    """True for the event that says a run is terminal."""
    return (
        event.WhichOneof("payload") == "run_state_changed"
        and event.run_state_changed.state in TERMINAL_STATES
    )
