"""Positions, estimates and explanations as messages of the contract."""

from __future__ import annotations

from conveyor.scheduler.v1 import explain_pb2, lane_pb2, run_pb2
from scheduler_svc.domain import estimates, explain
from scheduler_svc.domain.kernel import Kernel
from scheduler_svc.domain.records import Run
from scheduler_svc.domain.turntimes import Assumed, Times
from scheduler_svc.rpc import convert


def estimate(k: Kernel, run: Run, now: int) -> lane_pb2.QueueEstimate:
    """Where a run stands now, and when it should start."""
    return queue_estimate(estimates.estimate(k, run, now), now)


def queue_estimate(value: estimates.Estimate, now: int) -> lane_pb2.QueueEstimate:
    """An estimate that was made at `now`."""
    return lane_pb2.QueueEstimate(
        position=value.position,
        session_lane_ahead=value.session_ahead,
        global_lane_ahead=value.global_ahead,
        start_time=convert.timestamp(value.start),
        start_time_p90=convert.timestamp(value.start_p90),
        basis=_basis(value.basis) if value.basis is not None else None,
        as_of_time=convert.timestamp(now),
        session_lane_wait=convert.wait_condition(value.session_wait)
        if value.session_wait is not None
        else None,
    )


def _basis(turn: Times | Assumed) -> lane_pb2.EstimateBasis:
    measured = bool(turn.samples)
    return lane_pb2.EstimateBasis(
        source=lane_pb2.ESTIMATE_SOURCE_MEASURED
        if measured
        else lane_pb2.ESTIMATE_SOURCE_CONFIGURED,
        samples=turn.samples,
        turn_time_p50=convert.duration(turn.p50),
        turn_time_p90=convert.duration(turn.p90),
    )


def explanation(k: Kernel, run: Run, now: int, *, asked_for: bool) -> explain_pb2.RunExplanation:
    """Why a live run is where it is, all but the run itself."""
    told = estimates.estimate(k, run, now)
    reasons = explain.explain(k, run, now, asked_for=asked_for)
    return explain_pb2.RunExplanation(
        reasons=[_reason(reason) for reason in reasons],
        estimate=queue_estimate(told, now) if told.position else None,
    )


def ended(run: Run) -> explain_pb2.RunExplanation:
    """Why a terminal run is where it is, all but the run itself."""
    return explain_pb2.RunExplanation(reasons=[_reason(explain.ended(run))])


def _reason(reason: explain.Reason) -> explain_pb2.RunReason:
    message = explain_pb2.RunReason(text=reason.text)
    match reason.kind:
        case explain.Executing(lease):
            message.executing.CopyFrom(
                explain_pb2.Executing(
                    worker=lease.worker,
                    lease_time=convert.timestamp(lease.lease_time),
                    expire_time=convert.timestamp(lease.expire_time),
                )
            )
        case explain.BehindRun(run, ahead, wait):
            message.behind_run.CopyFrom(
                explain_pb2.BehindRun(
                    run=_ref(run),
                    ahead=ahead,
                    condition=convert.wait_condition(wait) if wait is not None else None,
                )
            )
        case explain.Collecting(until):
            message.collecting.until.FromMicroseconds(until)
        case explain.BackingOff(until, attempts, max_attempts, failure):
            message.backing_off.CopyFrom(
                explain_pb2.BackingOff(
                    until=convert.timestamp(until),
                    attempts=attempts,
                    max_attempts=max_attempts,
                    last_error=convert.status_of(failure) if failure is not None else None,
                )
            )
        case explain.LaneBusy() as busy:
            message.lane_busy.CopyFrom(
                explain_pb2.LaneBusy(
                    lane=busy.lane,
                    limit=busy.limit,
                    running=busy.running,
                    holders=[_ref(ref) for ref in busy.holders],
                    own_ahead=busy.own_ahead,
                    others_ahead=busy.others_ahead,
                    customers_ahead=busy.customers_ahead,
                )
            )
        case explain.NoWorker(queue, last_poll, worker):
            message.no_worker.CopyFrom(
                explain_pb2.NoWorker(
                    queue=queue, worker=worker, last_poll_time=convert.timestamp(last_poll)
                )
            )
        case explain.WaitingForChildren() as waiting:
            message.waiting_for_children.CopyFrom(
                explain_pb2.WaitingForChildren(
                    live=[_ref(ref) for ref in waiting.live],
                    live_count=waiting.live_count,
                    settled_count=waiting.settled_count,
                    holds_session_lane=waiting.holds_lane,
                    yield_time=convert.timestamp(waiting.wait.yield_time),
                    expire_time=convert.timestamp(waiting.wait.expire_time),
                )
            )
        case explain.WaitingForApproval(question_ids, until):
            message.waiting_for_approval.CopyFrom(
                explain_pb2.WaitingForApproval(
                    question_ids=question_ids, expire_time=convert.timestamp(until)
                )
            )
        case explain.WaitingForLimit(provider, limit, until):
            message.waiting_for_limit.CopyFrom(
                explain_pb2.WaitingForLimit(
                    provider_id=provider, limit=limit, until=convert.timestamp(until)
                )
            )
        case explain.Stopping(why, unconfirmed, elapsed):
            message.stopping.CopyFrom(
                explain_pb2.Stopping(
                    cancel_reason=why,
                    unconfirmed=[_ref(ref) for ref in unconfirmed],
                    elapsed=convert.duration(elapsed),
                )
            )
        case explain.Ended(failure):
            message.ended.SetInParent()
            if failure is not None:
                message.ended.error.CopyFrom(convert.status_of(failure))
    return message


def _ref(ref: explain.Ref) -> explain_pb2.RunRef:
    return explain_pb2.RunRef(
        run_id=ref.run_id,
        session_key=ref.session_key,
        customer_key=ref.customer_key,
        label=ref.label,
        state=run_pb2.RunState.ValueType(int(ref.state)),
        state_time=convert.timestamp(ref.state_time),
    )
