"""Handing ready runs to workers, and keeping the right to work on them.

A lease is known by run and fencing token. A run has at most one, every new one has a greater token,
and every write about an attempt names it: so only the newest lease changes a run.

A worker that suspends a run may keep its lease: without a slot, for a process that cannot move. It
alone gets the next turn, under a new lease. The kept one stays good for events until that turn has
ended, since what the process says may be on its way meanwhile; and should the new lease get lost
before it reaches the worker, the kept one stands again.
"""

from __future__ import annotations

from collections.abc import Set

import msgspec

from scheduler_svc.domain import attempts, budgets, reserving
from scheduler_svc.domain.kernel import Kernel, Timer
from scheduler_svc.domain.records import (
    Answer,
    Lease,
    PreviousRun,
    Resumption,
    Run,
    RunState,
)
from scheduler_svc.domain.reserving import Grant
from svckit.errors import LeaseLost, WorkerReplaced


class Waited(msgspec.Struct, frozen=True):
    """How a run came to its lease, in microseconds since the epoch.

    It was in line since `queued`, not before `paused_until` (0 without a pause), and from `ready`
    on only a slot was missing. `last_token` is that of the attempt before in the same turn; 0 when
    this is the first one.
    """

    queued: int
    paused_until: int
    ready: int
    last_token: int


class Leased(msgspec.Struct, frozen=True):
    """A run handed to a worker, as it was at that moment."""

    run: Run
    lease: Lease
    resumption: Resumption | None
    steered: list[bytes]
    answers: list[Answer]
    previous: list[PreviousRun]
    waited: Waited
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
    """The run that executes under this lease. Raises `LeaseLost` when none does."""
    run = k.runs.get(run_id)
    if run is not None and run.lease is not None and run.lease.token == token:
        return run
    raise lease_lost(run or k.ended.get(run_id), run_id, token)


def held_run(k: Kernel, run_id: str, token: int) -> Run:
    """As `leased_run`; a kept lease will do as well."""
    run = k.runs.get(run_id)
    if run is not None and _lease_with(run, token) is not None:
        return run
    raise lease_lost(run or k.ended.get(run_id), run_id, token)


def _lease_with(run: Run, token: int) -> Lease | None:
    for lease in (run.lease, run.kept):
        if lease is not None and lease.token == token:
            return lease
    return None


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
    k.last_polls[queue] = k.last_calls[queue, worker] = now
    if incarnation == newest:
        return
    k.workers[(queue, worker)] = incarnation
    for run_id in sorted(k.leased.get((queue, worker), ())):
        attempts.lose(k, k.runs[run_id], now)


def give_back_all_but(
    k: Kernel, queue: str, worker: str, held: Set[tuple[str, int]], now: int
) -> None:
    """Gives back the runs whose lease, (run id, fencing token), got lost on its way to the worker.

    `held` is what the worker has; `greet` comes before, so all its leases are of one incarnation.
    """
    for run_id in sorted(k.leased.get((queue, worker), ())):
        run = k.runs[run_id]
        if run.held is None or (run_id, run.held.token) in held:
            continue
        keeps = run.kept is not None and (run_id, run.kept.token) in held
        attempts.note_lost(k, run, counted=False)
        attempts.give_back(k, run, "the lease did not reach the worker", now, keeps=keeps)


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
    """Leases up to `max_runs` ready runs, and beyond that those whose lease the worker kept.

    Lanes take turns, so that none waits for another.
    """
    leased: list[Leased] = []

    def may_take(run_id: str) -> bool:
        run = k.runs[run_id]
        return (len(leased) < max_runs or run.kept is not None) and k.may_take(run, worker, now)

    lanes = [lane for lane in k.lanes.values() if queue in lane.ready]
    while lanes:
        for lane in list(lanes):
            line = lane.queue(queue)
            run_id = ""
            if lane.free and line.choosy:
                run_id = line.pop_for(may_take)
            elif lane.free and len(leased) < max_runs:
                run_id = line.pop()
            if not run_id:
                lanes.remove(lane)
                continue
            leased.append(_lease(k, k.runs[run_id], worker, incarnation, now))
    return leased


def _lease(k: Kernel, run: Run, worker: str, incarnation: int, now: int) -> Leased:
    session = k.sessions[run.session_key]
    session.ready = ""
    k.hold_lane(run)
    token, k.next_token = k.next_token, k.next_token + 1
    k.changes.token = token
    waited = Waited(
        queued=run.state_time,
        paused_until=run.ready_time,
        ready=run.ready_since or now,
        last_token=0 if run.new_turn else run.last_token,
    )
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
    run.last_failure, run.last_token = None, token
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
        waited=waited,
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
    taken.kept = copy_lease(run.kept) if run.kept else None
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
            k.last_calls[run.queue, worker] = now
        lease = _lease_with(run, token) if run is not None else None
        if (
            run is None
            or lease is None
            or (lease.worker, lease.incarnation) != (worker, incarnation)
        ):
            statuses.append(LeaseStatus(None, None))
            continue
        # Both, when the worker has kept one and does not know the other yet.
        for own in (run.lease, run.kept):
            if own is not None:
                own.expire_time = now + k.config.lease_ttl
        executes = run.lease is not None
        statuses.append(
            LeaseStatus(
                run,
                copy_lease(lease),
                cancel_requested=run.stopping,
                cancel_reason=run.cancel_reason,
                # What comes during a wait is for the turn that follows.
                steered=offers(k, run) if executes else [],
                answers=list(run.answers) if executes else [],
            )
        )
    return statuses
