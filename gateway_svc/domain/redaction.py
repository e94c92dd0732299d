"""What clients do not see of the messages that the gateway shares with the services behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from conveyor.acp.v1 import session_pb2
from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import explain_pb2, run_pb2
from gateway_svc.domain.principals import own_request_id


def clear_run(run: run_pb2.Run, *, for_admin: bool) -> run_pb2.Run:
    """Clear, in place, what the caller may not see of a run; returns the run."""
    for item in run.inputs:
        item.ClearField("body_hash")
        item.request_id = own_request_id(item.request_id)
    if not for_admin:
        run.spec.ClearField("task")
        run.spec.ClearField("reply_route")
        run.spec.ClearField("preferred_worker")
        run.ClearField("worker")
        if run.HasField("suspension"):
            run.suspension.ClearField("lease_worker")
        if run.HasField("result"):
            run.result.ClearField("details")
    return run


def clear_ended(run: run_pb2.Run, *, for_admin: bool) -> run_pb2.Run:
    """Clear, in place, what a stream does not say of the run that it ends with; returns the run.

    The details of a result may hold what was kept from the customer. `GetRun` has them.
    """
    clear_run(run, for_admin=for_admin)
    if run.HasField("result"):
        run.result.ClearField("details")
    return run


def clear_acp_session(
    session: session_pb2.AcpSession, *, for_admin: bool
) -> session_pb2.AcpSession:
    """Clear, in place, what the caller may not see of an ACP session; returns the session."""
    if not for_admin:
        session.ClearField("worker")
    return session


def clear_event(event: event_pb2.Event) -> event_pb2.Event:
    """Clear, in place, what no client sees of an event; returns the event.

    Tokens hold positions instead. And what the delegation guard caught was kept from the customer:
    it is in no stream, whoever reads it. Operators find it in the result of the run.
    """
    event.ClearField("position")
    if event.HasField("run_state_changed") and event.run_state_changed.HasField("suspension"):
        event.run_state_changed.suspension.ClearField("lease_worker")
    if event.HasField("steer_accepted"):
        event.steer_accepted.request_id = own_request_id(event.steer_accepted.request_id)
    if event.HasField("steer_missed"):
        event.steer_missed.request_id = own_request_id(event.steer_missed.request_id)
    if event.HasField("guard_intervened"):
        event.guard_intervened.ClearField("excerpt")
    if event.HasField("message_completed") and event.message_completed.caught:
        event.message_completed.message.ClearField("parts")
    return event


def clear_explanation(
    explanation: explain_pb2.RunExplanation,
    *,
    for_admin: bool,
    may_see: Callable[[str], bool],
) -> explain_pb2.RunExplanation:
    """Clear, in place, the run as `clear_run` does, and who other customers are.

    `may_see` tells for a customer whether the caller may. Of a run that it may not see only its
    state is left. The sentences name nobody.
    """
    workers = () if for_admin else _workers(explanation)
    clear_run(explanation.run, for_admin=for_admin)
    for reason in explanation.reasons:
        for worker in workers:
            reason.text = reason.text.replace(f"worker {worker}", "a worker")
        if not for_admin:
            if reason.HasField("executing"):
                reason.executing.ClearField("worker")
            if reason.HasField("no_worker"):
                reason.no_worker.ClearField("worker")
        for ref in _refs(reason):
            if not may_see(ref.customer_key):
                for name in ("run_id", "session_key", "customer_key", "label"):
                    ref.ClearField(name)
    return explanation


def _workers(explanation: explain_pb2.RunExplanation) -> list[str]:
    """Return the workers that an explanation may name in its sentences, long names first."""
    run = explanation.run
    named = {run.worker, run.spec.preferred_worker, run.suspension.lease_worker}
    for reason in explanation.reasons:
        named |= {reason.executing.worker, reason.no_worker.worker}
    return sorted(named - {""}, key=len, reverse=True)


def _refs(reason: explain_pb2.RunReason) -> Iterator[explain_pb2.RunRef]:
    match reason.WhichOneof("reason"):
        case "behind_run":
            yield reason.behind_run.run
        case "lane_busy":
            yield from reason.lane_busy.holders
        case "waiting_for_children":
            yield from reason.waiting_for_children.live
        case "stopping":
            yield from reason.stopping.unconfirmed
