"""Positions, estimates and explanations as messages of the contract."""

from __future__ import annotations

from conveyor.scheduler.v1 import lane_pb2
from scheduler_svc.domain import estimates
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
