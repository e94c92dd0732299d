"""Waiting without holding a slot, and coming back from it."""

from __future__ import annotations

from scheduler_svc.domain.emits import Replied, StateChanged
from scheduler_svc.domain.kernel import Kernel, Timer
from scheduler_svc.domain.lanes import Session
from scheduler_svc.domain.records import (
    AnnounceMode,
    ResumeReason,
    Resumption,
    Run,
    RunState,
    Wait,
    WaitKind,
)
from scheduler_svc.domain.turntimes import kind_of


def suspend(
    k: Kernel, run: Run, wait: Wait, *, hold_lane: bool, now: int, keep: bool = False
) -> None:
    """Moves an executing run to a wait. Its slot is free at once, its session lane if not held.

    `keep` leaves its worker the lease, without the slot.
    """
    run.wait = wait
    if keep and run.lease is not None:
        wait.lease_worker = run.lease.worker
    if not hold_lane:
        k.leave_line(run)  # before the state event, which says that the lane is free
    k.set_state(run, RunState.SUSPENDED, now)
    k.free_slot(run, now, kept=run.lease if keep else None)
    if wait.expire_time:
        k.at(wait.expire_time, Timer.WAIT, run, run.turn)
    if wait.yield_time:
        k.at(wait.yield_time, Timer.YIELD, run, run.turn)
    k.refresh(k.sessions[run.session_key], now)


def resume(
    k: Kernel,
    run: Run,
    reason: ResumeReason,
    now: int,
    *,
    wait: Wait | None = None,
    keep: bool = False,
) -> None:
    """Queues the next turn at the head of the session lane, from a wait or straight from a turn.

    `wait` is the condition of a run that goes on at once, because it is satisfied already; `keep`
    leaves its worker the lease. One that was kept during the wait stays.
    """
    kept = run.kept if run.lease is None else run.lease if keep else None
    waited = wait or run.wait
    if reason is not ResumeReason.NEXT_PROMPT and (
        waited is None or waited.kind is WaitKind.CHILDREN
    ):
        away = now - run.state_time if run.state is RunState.SUSPENDED else 0
        k.turn_times.came_back(kind_of(run), max(0, away))
    since = run.state_time if run.state is RunState.SUSPENDED else 0
    run.resumption = Resumption(reason=reason, wait=waited, since=since)
    run.wait, run.new_turn = None, True
    k.set_state(run, RunState.QUEUED, now, reason=reason)
    k.free_slot(run, now, kept=kept)
    session = k.sessions[run.session_key]
    if not run.holds_lane:
        session.returning.append(run.run_id)
    k.refresh(session, now)
    make_room(k, session, now)


def satisfied(run: Run, wait: Wait) -> bool:
    """True when a wait is over: for children, none awaited is live, or (each) one has settled; for
    answers, one question is closed."""
    if wait.kind is WaitKind.APPROVAL:
        return any(question_id not in run.asked for question_id in wait.question_ids)
    if wait.kind is not WaitKind.CHILDREN:
        return False
    live = [child for child in wait.run_ids if child in run.live]
    if wait.mode is AnnounceMode.EACH:
        return len(live) < len(wait.run_ids) or not live
    return not live


def also_for(run: Run, question_id: str) -> None:
    """A question that is asked under a kept lease, during a wait for answers, is waited for too."""
    if run.wait is not None and run.wait.kind is WaitKind.APPROVAL:
        run.wait.question_ids.append(question_id)


def child_settled(k: Kernel, parent: Run, now: int) -> None:
    """Looks whether a child's end wakes its parent."""
    wait = parent.wait
    if parent.state is not RunState.SUSPENDED or wait is None or wait.kind is not WaitKind.CHILDREN:
        return
    if satisfied(parent, wait):
        resume(k, parent, ResumeReason.CHILDREN_SETTLED, now)


def send_interim(k: Kernel, run: Run, message: bytes, now: int) -> None:
    """Says what the run says while it waits. Once per run."""
    if message and not run.interim_sent:
        run.interim_sent = True
        k.emit(run, Replied(message, interim=True), now)
        k.touch(run)


def yield_now(k: Kernel, run: Run, now: int) -> None:
    """The wait has been long: the interim reply goes out, and the lane may be given up."""
    if run.wait is not None:
        send_interim(k, run, run.wait.interim, now)
        run.wait.interim = b""
        k.touch(run)
        make_room(k, k.sessions[run.session_key], now)


def make_room(k: Kernel, session: Session, now: int) -> None:
    """Releases the lane of a run whose wait has been long, when another run waits for the lane."""
    holder = k.runs.get(session.holder)
    if (
        holder is None
        or holder.state is not RunState.SUSPENDED
        or holder.wait is None
        or not holder.wait.yield_time
        or holder.wait.yield_time > now
        or not (session.fresh or session.returning)
    ):
        return
    k.leave_line(holder)
    k.emit(
        holder,
        StateChanged(
            RunState.SUSPENDED, RunState.SUSPENDED, holder.turn, holder.attempt, holder.wait, False
        ),
        now,
    )
    k.touch(holder)
    k.refresh(session, now)
