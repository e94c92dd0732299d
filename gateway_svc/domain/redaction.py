"""What clients do not see of the messages that the gateway shares with the services behind it."""

from __future__ import annotations

from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import run_pb2


def clear_run(run: run_pb2.Run, *, for_admin: bool) -> run_pb2.Run:
    """Clear, in place, what the caller may not see of a run; returns the run."""
    for item in run.inputs:
        item.ClearField("body_hash")
    if not for_admin:
        run.spec.ClearField("task")
        run.spec.ClearField("reply_route")
        run.ClearField("worker")
        if run.HasField("result"):
            run.result.ClearField("details")
    return run


def clear_event(event: event_pb2.Event) -> event_pb2.Event:
    """Clear, in place, what no client sees of an event: tokens hold positions instead."""
    event.ClearField("position")
    return event
