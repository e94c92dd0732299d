"""The four ways a worker ends a turn.

Each is accepted only under the newest lease, and again when repeated with an equal body. When a
cancellation was asked for, each confirms it, but for a suspension that keeps the lease. A kept
lease allows what needs no slot: events, and the end of the run or of the attempt.
"""

from __future__ import annotations

from scheduler_svc.domain import (
    asking,
    attempts,
    leasing,
    reserving,
    settling,
    steering,
    waiting,
)
from scheduler_svc.domain.emits import Appended, Asked, Intervened, Replied
from scheduler_svc.domain.kernel import Kernel
from scheduler_svc.domain.records import (
    AnnounceMode,
    Failure,
    ResumeReason,
    Run,
    RunState,
    SpentLease,
    Wait,
    WaitKind,
)
from scheduler_svc.domain.turntimes import kind_of
from svckit.errors import invalid_field

MOST_GUARD_STEPS = 16
"""Steps of the delegation guard that a run remembers. Its ladder has five."""


def complete(
    k: Kernel,
    run_id: str,
    token: int,
    digest: str,
    *,
    result: bytes | None,
    reply: bytes | None,
    mode: AnnounceMode,
    taken: list[str],
    steered_is_next_prompt: bool,
    now: int,
) -> Run:
    """Ends a turn with a result, and the run too when nothing of it is live or untold.

    With live children the run is suspended without its session lane; with untold ones that need no
    more waiting it is queued for its closing turn at once. Raises `LeaseLost`.
    """
    repeated = _repeated(k, run_id, token, digest)
    if repeated is not None:
        return repeated
    run = leasing.leased_run(k, run_id, token)
    run.spent = SpentLease(token, digest)
    _take(k, run, taken, now)
    if result is not None:
        run.has_result = True
        k.changes.results[run_id] = result
    if run.stopping:
        settling.stopped(k, run, now)
        return run
    _measure(k, run, now, waits=bool(run.live or run.untold))
    run.tried = 0
    _close(k, run)
    if reply is not None:
        k.emit(run, Replied(reply), now)
    if run.steered and steered_is_next_prompt:
        waiting.resume(k, run, ResumeReason.NEXT_PROMPT, now)
    elif not run.live and not run.untold:
        settling.succeed(k, run, now)
    else:
        steering.miss(k, run, now)
        if run.untold and (not run.live or mode is AnnounceMode.EACH):
            k.leave_line(run)
            waiting.resume(k, run, ResumeReason.CHILD_UNTOLD, now)
        else:
            wait = Wait(kind=WaitKind.CHILDREN, run_ids=list(run.live), mode=mode)
            waiting.suspend(k, run, wait, hold_lane=False, now=now)
    return run


def suspend(
    k: Kernel,
    run_id: str,
    token: int,
    digest: str,
    *,
    wait: Wait,
    hold_lane: bool,
    interim: bytes,
    taken: list[str],
    now: int,
    keep: bool = False,
) -> Run:
    """Ends a turn that has to wait. A wait that is satisfied already queues the next turn at once.

    `interim` is sent at once when the lane is released, else at `wait.yield_time`. `keep` leaves
    the lease to the worker, without the slot; a run that is being stopped stays as it is, until
    the worker has stopped what it would keep. Raises `LeaseLost`, or `InvalidField` when what it
    waits for is not the run's.
    """
    repeated = _repeated(k, run_id, token, digest)
    if repeated is not None:
        return repeated
    run = leasing.leased_run(k, run_id, token)
    _check_wait(k, run, wait, hold_lane)
    if run.stopping and keep:
        return run
    run.spent = SpentLease(token, digest)
    _take(k, run, taken, now)
    if run.stopping:
        settling.stopped(k, run, now)
        return run
    if wait.kind is WaitKind.CHILDREN:  # one that waits otherwise has not done its work yet
        _measure(k, run, now, waits=True)
    # Else a run whose provider is gone would begin anew after each wait, and never end.
    run.tried = run.attempts - 1 if wait.kind is WaitKind.LIMIT else 0
    _close(k, run)
    if wait.kind is WaitKind.CHILDREN and not wait.run_ids:
        wait.run_ids = list(run.live)
    if not hold_lane:
        waiting.send_interim(k, run, interim, now)
    elif wait.yield_time and not run.interim_sent:
        wait.interim = interim
    if wait.reservation and not reserving.waits_for(k, run, wait.reservation):
        # Granted meanwhile. One that is not known any more the worker reserves anew.
        waiting.resume(k, run, ResumeReason.LIMIT_GRANTED, now, wait=wait, keep=keep)
    elif waiting.satisfied(run, wait) or (run.steered and wait.kind is WaitKind.CHILDREN):
        reason = ResumeReason.STEERED
        if waiting.satisfied(run, wait):
            approval = wait.kind is WaitKind.APPROVAL
            reason = ResumeReason.ANSWERED if approval else ResumeReason.CHILDREN_SETTLED
        if not hold_lane:
            k.leave_line(run)
        waiting.resume(k, run, reason, now, wait=wait, keep=keep)
    else:
        waiting.suspend(k, run, wait, hold_lane=hold_lane, now=now, keep=keep)
    return run


def _check_wait(k: Kernel, run: Run, wait: Wait, hold_lane: bool) -> None:
    call = k.limits.reservations.get(wait.reservation)
    if call is not None and call.run_id != run.run_id:
        raise invalid_field("condition.limit.reservation_id", "is not of this run")
    own = {*run.live, *run.untold, *run.told}
    for child in wait.run_ids:
        if child not in own:
            raise invalid_field("condition.children.run_ids", f"{child!r} is no child of the run")
    asking.check_wait(k, run, wait)
    if wait.kind is not WaitKind.CHILDREN and not hold_lane:
        raise invalid_field("hold_session_lane", "must be true for a wait for answers or a limit")
    if wait.yield_time and wait.kind is WaitKind.APPROVAL:
        raise invalid_field("yield_after", "is not for a wait for answers; leave it unset")
    if wait.yield_time and (run.depth > 0 or not run.delivers_later):
        raise invalid_field(
            "yield_after", "only a root run whose route delivers later may yield; leave it unset"
        )


def fail(
    k: Kernel,
    run_id: str,
    token: int,
    digest: str,
    *,
    failure: Failure,
    retryable: bool,
    retry_after: int,
    taken: list[str],
    now: int,
) -> Run:
    """Ends an attempt with an error: the next attempt after a pause, or the end of the run."""
    repeated = _repeated(k, run_id, token, digest)
    if repeated is not None:
        return repeated
    run = leasing.held_run(k, run_id, token)
    run.spent = SpentLease(token, digest)
    attempts.count_again(run)
    if run.stopping:
        _take(k, run, taken, now)
        settling.stopped(k, run, now)
    elif retryable and run.attempts < run.retry.max_attempts:
        pause = max(run.retry.backoff(run.attempts), retry_after)
        attempts.retry(k, run, pause, failure, failure.message, now)
    else:
        if run.lease is not None:  # else the turn was closed when it was suspended
            _close(k, run)
        _take(k, run, taken, now)
        if retryable and run.retry.max_attempts > 1:
            failure = attempts.exhausted(run, failure)
        settling.fail(k, run, failure, now)
    return run


def release(k: Kernel, run_id: str, token: int, digest: str, now: int) -> Run:
    """Gives an attempt back without counting it. The run stays at the head of its session lane."""
    repeated = _repeated(k, run_id, token, digest)
    if repeated is not None:
        return repeated
    run = leasing.held_run(k, run_id, token)
    run.spent = SpentLease(token, digest)
    attempts.give_back(k, run, "the worker handed the run back", now)
    return run


def append(k: Kernel, run_id: str, token: int, events: list[Appended], now: int) -> int:
    """Writes a worker's events, each `event_id` once, and stores the questions among them. Returns
    the sequence of the last event.

    Raises `LeaseLost`, or `InvalidField` for a question; then nothing was written. The caller has
    put the ids that the session's log holds into `Kernel.event_ids`.
    """
    run = leasing.held_run(k, run_id, token)
    asked: dict[str, Asked] = {}
    for event in events:
        if isinstance(event, Asked) and (run.session_key, event.event_id) not in k.event_ids:
            asked.setdefault(event.event_id, event)
    asking.check(k, run, list(asked.values()))
    last = 0
    for event in events:
        key = (run.session_key, event.event_id)
        if key not in k.event_ids:
            if isinstance(event, Asked):
                asking.ask(k, run, event, now)
                waiting.also_for(run, event.question.question_id)
            else:
                k.emit(run, event, now, by_worker=True)
            if isinstance(event, Intervened) and len(run.guard) < MOST_GUARD_STEPS:
                run.guard = (*run.guard, event.step)
                k.touch(run)
            k.event_ids[key] = k.sessions[run.session_key].head
        last = k.event_ids[key]
    if run.stopping:  # nobody should answer any more
        asking.cancel_open(k, run, now)
    return last


def _take(k: Kernel, run: Run, request_ids: list[str], now: int) -> None:
    steering.take(k, run, request_ids, now)
    asking.take(run, request_ids)


def _repeated(k: Kernel, run_id: str, token: int, digest: str) -> Run | None:
    run = k.runs.get(run_id) or k.ended.get(run_id)
    if run is None or run.spent is None or run.spent.token != token:
        return None
    if run.spent.digest == digest:
        return run
    if run.kept is not None and run.kept.token == token:
        return None  # it was kept by that call, so others may follow
    raise leasing.lease_lost(run, run_id, token)


def _measure(k: Kernel, run: Run, now: int, *, waits: bool) -> None:
    if run.lease is not None:
        k.turn_ended(kind_of(run), max(0, now - run.lease.lease_time), waits=waits)


def _close(k: Kernel, run: Run) -> None:
    """The worker has ended the turn: what the turn was told counts as told."""
    run.closed_turn = run.turn
    if run.told_previous:
        session = k.sessions[run.session_key]
        del session.previous[: run.told_previous]
        run.told_previous = 0
        k.changes.sessions[session.key] = session
    if run.state is not RunState.RUNNING:  # pragma: no cover - only a leased run gets here
        raise AssertionError(run.state)
