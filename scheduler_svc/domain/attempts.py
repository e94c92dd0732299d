"""What becomes of an attempt without a result: lost, given back, or failed and tried again.

The same for a kept lease, under which nothing executes: who kept it is gone, or keeps nothing any
more. Then its wait is over too, since what would have gone on is not there any longer. The run goes
back to the head of its session lane, and whoever takes it finds its questions as they are: what is
still open it may wait for again, or fail, which closes them.
"""

from __future__ import annotations

from scheduler_svc.domain import reserving, settling, waiting
from scheduler_svc.domain.kernel import Kernel, LostLease, Timer
from scheduler_svc.domain.records import Failure, Lease, Run, RunState, WaitKind


def lose(k: Kernel, run: Run, now: int) -> None:
    """The lease is over without a word from the worker: the next attempt, or the end."""
    note_lost(k, run, counted=True)
    count_again(run)
    if run.stopping:
        settling.stopped(k, run, now)
    elif run.attempts >= run.retry.max_attempts:
        settling.fail(k, run, exhausted(run, Failure("LEASE_LOST", "the lease was lost")), now)
    else:
        retry(k, run, run.retry.backoff(run.attempts), None, "the lease was lost", now)


def note_lost(k: Kernel, run: Run, *, counted: bool) -> None:
    """Tells of a lease that ends without a word from the worker. Under a kept one nothing was at
    work."""
    if run.lease is not None:
        k.changes.lost.append(LostLease(run, run.lease, run.turn, run.attempt, counted))


def give_back(k: Kernel, run: Run, cause: str, now: int, *, keeps: bool = False) -> None:
    """The attempt is not counted: the run stays at the head of its session lane, or ends.

    `keeps` says that the worker, which the new lease did not reach, still has the one it kept.
    """
    kept = run.kept if keeps and run.lease is not None else None
    if run.stopping:
        if kept is None:
            settling.stopped(k, run, now)
        return  # else it learns under the kept one that it has to stop
    if run.state is not RunState.QUEUED:
        count_again(run)
        run.attempt -= 1
    retry(k, run, 0, None, cause, now, counted=False, kept=kept)
    if kept is not None:
        kept.expire_time = now + k.config.lease_ttl
        k.at(kept.expire_time, Timer.LEASE, run, kept.token)


def count_again(run: Run) -> None:
    """Makes `Run.attempts` say how many there were when the lease that ends now was a kept one."""
    if run.lease is not None:
        return
    if run.state is RunState.QUEUED and not run.new_turn:
        run.attempt += 1  # it was given back uncounted, to the lease that was kept
        return
    wait = run.wait or (run.resumption.wait if run.resumption is not None else None)
    if wait is not None and wait.kind is WaitKind.LIMIT:
        run.tried -= run.attempt - 1  # counted already, for the turn that was to follow


def exhausted(run: Run, last: Failure) -> Failure:
    """The failure of a turn whose attempts are used up. It says what the last one died of."""
    return Failure(
        "ATTEMPTS_EXHAUSTED",
        f"all {run.attempts} attempts of turn {run.turn} failed, the last one with: {last.message}",
        {"turn": str(run.turn), "attempts": str(run.attempts), "lastReason": last.reason},
        last.status,
    )


def retry(
    k: Kernel,
    run: Run,
    pause: int,
    failure: Failure | None,
    cause: str,
    now: int,
    *,
    counted: bool = True,
    kept: Lease | None = None,
) -> None:
    """Queues the next attempt after a pause. The run keeps its session lane: order is kept.

    `kept` is the lease that its worker still keeps.
    """
    session = k.sessions[run.session_key]
    run.ready_time = now + pause if pause else 0
    run.last_failure = failure
    if run.state is RunState.QUEUED:
        # Its wait was over: the turn that follows stands, and what failed counts for it.
        if run.new_turn and counted:
            run.tried, run.attempt = run.attempts, 0
        k.touch(run)
    else:
        _leave_wait(k, run, now)
        reserving.let_go(k, run)
        k.set_state(run, RunState.QUEUED, now, failure=failure, cause=cause)
    k.free_slot(run, now, kept=kept)
    if pause:
        k.at(run.ready_time, Timer.READY, run)
    k.refresh(session, now)
    waiting.make_room(k, session, now)


def _leave_wait(k: Kernel, run: Run, now: int) -> None:
    if run.state is not RunState.SUSPENDED:
        return
    run.wait = None
    reserving.leave_line(k, run, now)
    if not run.holds_lane:
        k.sessions[run.session_key].returning.append(run.run_id)
