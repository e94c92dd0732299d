"""Handing ready runs to workers, and keeping the right to work on them.

A lease is known by run and fencing token. A run has at most one, every new one has a greater token,
and every write about an attempt names it: so only the newest lease changes a run.
"""

from __future__ import annotations

from collections.abc import Set

import msgspec

from scheduler_svc.domain import budgets, reserving, settling
from scheduler_svc.domain.kernel import Kernel, Timer
from scheduler_svc.domain.records import (
    Answer,
    Failure,
    Lease,
    PreviousRun,
    Resumption,
    Run,
    RunState,
)
from scheduler_svc.domain.reserving import Grant
from svckit.errors import LeaseLost, WorkerReplaced


class Leased(msgspec.Struct, frozen=True):
    """A run handed to a worker, as it was at that moment."""

    run: Run
    lease: Lease
    resumption: Resumption | None
    steered: list[bytes]
    answers: list[Answer]
    previous: list[PreviousRun]
    # The reserved model call that the run resumed for.
    grant: Grant | None = None
    # Tokens or cost are capped here or above: every model call is reserved.
    capped: bool = False


class LeaseStatus(msgspec.Struct, frozen=True):
    """What a worker learns about one of its leases."""

    run: Run | None
    lease: Lease | None
    cancel_requested: bool = False
    cancel_reason: str = ""
    steered: list[bytes] = []
    answers: list[Answer] = []

    @property
    def lost(self) -> bool:
        """True when the worker must stop and write nothing more."""
        return self.lease is None


def leased_run(k: Kernel, run_id: str, token: int) -> Run:
    """The run whose newest lease this is. Raises `LeaseLost` when it is not."""
    run = k.runs.get(run_id)
    if run is not None and run.lease is not None and run.lease.token == token:
        return run
    raise lease_lost(run or k.ended.get(run_id), run_id, token)


def lease_lost(run: Run | None, run_id: str, token: int) -> LeaseLost:
    """The error for a lease that is not the newest one."""
    return LeaseLost(
        "the lease ended or a newer one exists; stop and write nothing more",
        metadata={
            "runId": run_id,
            "leaseId": f"{run_id}:{token}",
            "turn": str(run.turn if run else 0),
            "attempt": str(run.attempt if run else 0),
        },
    )


def greet(k: Kernel, queue: str, worker: str, incarnation: int, now: int) -> None:
    """Notes who calls. The first call of a new incarnation voids all leases of the one before.

    Raises `WorkerReplaced` for an incarnation that is not the newest.
    """
    newest = _check_newest(k, queue, worker, incarnation)
    k.last_polls[queue] = now
    if incarnation == newest:
        return
    k.workers[(queue, worker)] = incarnation
    for run_id in sorted(k.leased.get((queue, worker), ())):
        lose(k, k.runs[run_id], now)


def give_back_all_but(
    k: Kernel, queue: str, worker: str, held: Set[tuple[str, int]], now: int
) -> None:
    """Gives back the runs whose lease, (run id, fencing token), got lost on its way to the worker.

    `held` is what the worker has; `greet` comes before, so all its leases are of one incarnation.
    """
    for run_id in sorted(k.leased.get((queue, worker), ())):
        run = k.runs[run_id]
        if run.lease is not None and (run_id, run.lease.token) not in held:
            give_back(k, run, "the lease did not reach the worker", now)


def _check_newest(k: Kernel, queue: str, worker: str, incarnation: int) -> int:
    newest = k.workers.get((queue, worker), 0)
    if incarnation < newest:
        raise WorkerReplaced(
            f"a newer process named {worker!r} serves queue {queue!r}; stop, or use another name",
            metadata={"worker": worker, "incarnation": str(newest)},
        )
    return newest


def lease_ready(
    k: Kernel, queue: str, worker: str, incarnation: int, max_runs: int, now: int
) -> list[Leased]:
    """Leases up to `max_runs` ready runs. Lanes take turns, so that none waits for another."""
    leased: list[Leased] = []
    lanes = [lane for lane in k.lanes.values() if queue in lane.ready]
    while lanes and len(leased) < max_runs:
        for lane in list(lanes):
            run_id = lane.queue(queue).pop() if lane.free else ""
            if not run_id:
                lanes.remove(lane)
                continue
            leased.append(_lease(k, k.runs[run_id], worker, incarnation, now))
            if len(leased) == max_runs:
                break
    return leased


def _lease(k: Kernel, run: Run, worker: str, incarnation: int, now: int) -> Leased:
    session = k.sessions[run.session_key]
    session.ready = ""
    k.hold_lane(run)
    token, k.next_token = k.next_token, k.next_token + 1
    k.changes.token = token
    if run.new_turn:
        run.turn, run.attempt, run.new_turn = run.turn + 1, 1, False
        _tell(run)
    else:
        run.attempt += 1
    if not run.start_time:
        run.start_time = now
        if run.caps.max_wall:
            k.at(now + run.caps.max_wall, Timer.WALL_BUDGET, run)
    run.ready_time, run.told_previous = 0, len(session.previous)
    run.last_failure = None
    k.set_state(run, RunState.RUNNING, now)
    lease = Lease(token, worker, incarnation, now, now + k.config.lease_ttl)
    k.take_slot(run, lease)
    k.at(lease.expire_time, Timer.LEASE, run, token)
    if run.run_timeout:
        k.at(now + max(0, run.run_timeout - run.executed), Timer.RUN_TIMEOUT, run, token)
    return Leased(
        run=copy(run),
        lease=copy_lease(lease),
        resumption=run.resumption,
        grant=reserving.resumed(k, run, now),
        capped=budgets.capped(k, run),
        steered=offers(k, run),
        answers=list(run.answers),
        previous=list(session.previous),
    )


def _tell(run: Run) -> None:
    """Fixes what the new turn is told: every end, and every closed question, that no earlier turn
    was told, awaited or not."""
    if run.resumption is not None:
        awaited = run.resumption.wait.run_ids if run.resumption.wait else []
        run.resumption.told = run.untold
        run.resumption.live = [child for child in awaited if child in run.live]
        run.resumption.lane_released = run.lane_released
        run.resumption.answers, run.answers = run.answers, []
        run.told, run.untold = run.told + run.untold, []
    run.lane_released = False


def copy(run: Run) -> Run:
    """A record that later commands of the same batch do not change where readers look."""
    taken = msgspec.structs.replace(run)
    taken.live, taken.untold, taken.told = list(run.live), list(run.untold), list(run.told)
    taken.asked = list(run.asked)
    taken.usage = msgspec.structs.replace(run.usage)
    taken.tree_usage = msgspec.structs.replace(run.tree_usage)
    taken.lease = copy_lease(run.lease) if run.lease else None
    return taken


def copy_lease(lease: Lease) -> Lease:
    """A lease that a later extension does not change."""
    return msgspec.structs.replace(lease)


def offers(k: Kernel, run: Run) -> list[bytes]:
    """Steered input that no turn has named as taken, oldest first."""
    return [k.steers[(run.run_id, request_id)].input for request_id in run.steered]


def extend(
    k: Kernel, worker: str, incarnation: int, leases: list[tuple[str, int]], now: int
) -> list[LeaseStatus]:
    """Extends leases by their full time. Not stored: after a restart every lease is renewed.

    Raises `WorkerReplaced` for an incarnation that is not the newest.
    """
    statuses = []
    for run_id, token in leases:
        run = k.runs.get(run_id)
        if run is not None:
            _check_newest(k, run.queue, worker, incarnation)
        lease = run.lease if run else None
        if (
            run is None
            or lease is None
            or lease.token != token
            or (lease.worker, lease.incarnation) != (worker, incarnation)
        ):
            statuses.append(LeaseStatus(None, None))
            continue
        lease.expire_time = now + k.config.lease_ttl
        statuses.append(
            LeaseStatus(
                run,
                copy_lease(lease),
                cancel_requested=run.stopping,
                cancel_reason=run.cancel_reason,
                steered=offers(k, run),
                answers=list(run.answers),
            )
        )
    return statuses


def lose(k: Kernel, run: Run, now: int) -> None:
    """The lease is over without a word from the worker: the next attempt, or the end."""
    if run.stopping:
        settling.stopped(k, run, now)
    elif run.attempts >= run.retry.max_attempts:
        settling.fail(k, run, exhausted(run, Failure("LEASE_LOST", "the lease was lost")), now)
    else:
        retry(k, run, run.retry.backoff(run.attempts), None, "the lease was lost", now)


def give_back(k: Kernel, run: Run, cause: str, now: int) -> None:
    """The attempt is not counted: the run stays at the head of its session lane, or ends."""
    if run.stopping:
        settling.stopped(k, run, now)
    else:
        run.attempt -= 1
        retry(k, run, 0, None, cause, now)


def exhausted(run: Run, last: Failure) -> Failure:
    """The failure of a turn whose attempts are used up. It says what the last one died of."""
    return Failure(
        "ATTEMPTS_EXHAUSTED",
        f"all {run.attempts} attempts of turn {run.turn} failed, the last one with: {last.message}",
        {"turn": str(run.turn), "attempts": str(run.attempts), "lastReason": last.reason},
        last.status,
    )


def retry(k: Kernel, run: Run, pause: int, failure: Failure | None, cause: str, now: int) -> None:
    """Queues the next attempt after a pause. The run keeps its session lane: order is kept."""
    session = k.sessions[run.session_key]
    reserving.let_go(k, run)
    run.ready_time = now + pause if pause else 0
    run.last_failure = failure
    k.set_state(run, RunState.QUEUED, now, failure=failure, cause=cause)
    k.free_slot(run, now)
    if pause:
        k.at(run.ready_time, Timer.READY, run)
    k.refresh(session, now)
