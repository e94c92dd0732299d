"""Building the kernel from what the store holds.

Every live lease is renewed in full: a worker must not lose its turn because the scheduler was away.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from scheduler_svc.domain import reserving
from scheduler_svc.domain.kernel import Config, Kernel, Timer
from scheduler_svc.domain.lanes import Session
from scheduler_svc.domain.questions import Question
from scheduler_svc.domain.records import Lease, PreviousRun, Run, RunState, SteerOffer
from scheduler_svc.domain.turntimes import TurnRecord


class Snapshot(msgspec.Struct):
    """What the store holds about unfinished work."""

    # Unfinished runs, in order of acceptance.
    runs: list[Run] = []
    # Session key -> newest sequence, and the runs that no turn has been told yet.
    sessions: dict[str, tuple[int, list[PreviousRun]]] = {}
    # Limits that were set at run time.
    limits: dict[str, int] = {}
    steers: dict[tuple[str, str], SteerOffer] = {}
    # (kind, key) -> JSON of the record.
    facts: dict[tuple[str, str], bytes] = {}
    # Open ones, oldest first.
    questions: list[Question] = []
    last_order: int = 0
    last_token: int = 0
    last_position: int = 0
    # The newest time that anything in the store has; 0 when nothing has.
    last_time: int = 0


def rebuild(config: Config, snapshot: Snapshot, now: int) -> Kernel:
    """The kernel as it was after the last commit, with every lease renewed."""
    k = Kernel(config)
    k.start_time = now
    # A steered message has its place in the order although it has no run yet.
    offered = (offer.order for offer in snapshot.steers.values())
    k.next_order = max([snapshot.last_order, *offered]) + 1
    k.next_token = snapshot.last_token + 1
    k.next_position = snapshot.last_position + 1
    k.steers = dict(snapshot.steers)
    for (fact, _), data in snapshot.facts.items():
        if fact == "turn_time":
            k.turn_times.take_in(msgspec.json.decode(data, type=TurnRecord))
    ready_since = {run.run_id: run.ready_since for run in snapshot.runs if run.ready_since}
    for run in snapshot.runs:
        _take_in(k, run, snapshot.sessions, snapshot.last_time, now)
    for question in snapshot.questions:
        k.questions.add(question)
        k.at(question.expire_time, Timer.QUESTION, k.runs[question.run_id], question.order)
    reserving.rebuild(k, snapshot.facts, now)
    for name, limit in snapshot.limits.items():
        if name in k.lanes:  # also one that only its runs still know
            k.lanes[name].limit = limit
    for offer in snapshot.steers.values():
        if offer.fallback is not None and offer.fallback.session_key in k.sessions:
            offered_to = k.sessions[offer.fallback.session_key]
            offered_to.offered = max(offered_to.offered, offer.order)
    for session in k.sessions.values():
        # In the order in which they came back, which is when their present state began.
        session.returning.sort(key=lambda run_id: k.runs[run_id].state_time)
        k.refresh(session, now)
        if session.ready in ready_since:  # known when it was stored in the meantime
            k.runs[session.ready].ready_since = ready_since[session.ready]
    k.take_changes()
    for run in k.runs.values():
        if run.lease is not None and run.lease.lease_time == now:
            k.touch(run)  # its absence was left out, which the next restart must know
    return k


def _take_in(
    k: Kernel,
    run: Run,
    sessions: Mapping[str, tuple[int, Iterable[PreviousRun]]],
    seen: int,
    now: int,
) -> None:
    k.runs[run.run_id] = run
    session = k.sessions.get(run.session_key)
    if session is None:
        head, previous = sessions.get(run.session_key, (0, ()))
        session = Session(run.session_key, head=head, previous=list(previous))
        k.sessions[run.session_key] = session
    session.unfinished += 1
    run.ready_since = 0
    # A lane that the configuration dropped still has to serve what was accepted for it; paused,
    # it shows up in lists, and nothing is lost.
    k.lane_or_paused(run.lane)
    if run.holds_lane:
        session.holder = run.run_id
    elif run.state is RunState.QUEUED and run.resumed:
        session.returning.append(run.run_id)
    elif run.state is RunState.QUEUED:
        session.add_fresh(run.place, run.run_id)
    if run.lease is not None:
        _leave_out_absence(run, run.lease, seen + k.config.lease_ttl, now)
        k.take_slot(run, run.lease)
        if run.run_timeout:
            spent = run.executed + max(0, now - run.lease.lease_time)
            k.at(now + max(0, run.run_timeout - spent), Timer.RUN_TIMEOUT, run, run.lease.token)
    if run.kept is not None:
        k.note_leased(run, run.kept)
    for lease in (run.lease, run.kept):
        if lease is not None:
            lease.expire_time = now + k.config.lease_ttl
            worker = (run.queue, lease.worker)
            k.workers[worker] = max(k.workers.get(worker, 0), lease.incarnation)
            k.at(lease.expire_time, Timer.LEASE, run, lease.token)
    if run.state is RunState.SUSPENDED:
        k.note_suspended(run)
    _set_timers(k, run)


def _leave_out_absence(run: Run, lease: Lease, until: int, now: int) -> None:
    """Counts executing time only as long as the worker can have had its lease.

    Longer than a lease after the last sign of life it cannot: the scheduler was away, or its clock
    was set forward meanwhile. Neither is executing time, and neither may use up `run_timeout`.
    """
    absent = now - max(until, lease.lease_time)
    if absent > 0:
        run.executed += max(0, until - lease.lease_time)
        lease.lease_time = now


def _set_timers(k: Kernel, run: Run) -> None:
    if run.queue_timeout and not run.turn:
        k.at(run.create_time + run.queue_timeout, Timer.QUEUE_TIMEOUT, run)
    if run.wall_timeout:
        k.at(run.create_time + run.wall_timeout, Timer.WALL_TIMEOUT, run)
    if run.caps.max_wall and run.start_time:
        k.at(run.start_time + run.caps.max_wall, Timer.WALL_BUDGET, run)
    if run.ready_time:
        k.at(run.ready_time, Timer.READY, run)
    if run.wait and run.wait.expire_time:
        k.at(run.wait.expire_time, Timer.WAIT, run, run.turn)
    if run.wait and run.wait.yield_time:
        k.at(run.wait.yield_time, Timer.YIELD, run, run.turn)
