"""What happens because time passes: leases and limits run out, waits and pauses end."""

from __future__ import annotations

from scheduler_svc.domain import asking, attempts, reserving, settling, waiting
from scheduler_svc.domain.kernel import Kernel, Timer
from scheduler_svc.domain.records import ResumeReason, Run, RunState


def sweep(k: Kernel, now: int) -> None:
    """Looks at everything that is due."""
    for timer, run, stamp in k.due(now):
        _look(k, timer, run, stamp, now)
    reserving.sweep(k, now)


def _look(k: Kernel, timer: Timer, run: Run, stamp: int, now: int) -> None:
    match timer:
        case Timer.LEASE:
            lease = run.held
            if lease and lease.expire_time > now:  # extended: one timer serves the whole lease
                k.at(lease.expire_time, Timer.LEASE, run, stamp)
            else:
                attempts.lose(k, run, now)
        case Timer.RUN_TIMEOUT:
            settling.expire(k, run, "run_timeout", now)
        case Timer.QUEUE_TIMEOUT:
            if run.state is RunState.QUEUED and not run.turn:
                settling.expire(k, run, "queue_timeout", now)
        case Timer.WALL_TIMEOUT:
            settling.expire(k, run, "wall_timeout", now)
        case Timer.WALL_BUDGET:
            settling.out_of_time(k, run, now)
        case Timer.READY:
            k.refresh(k.sessions[run.session_key], now)
        case Timer.WAIT:
            # An earlier wait of the same turn, whose attempt was lost, may have left its timer.
            if run.wait is not None and run.wait.expire_time <= now:
                waiting.resume(k, run, ResumeReason.TIMED_OUT, now)
        case Timer.QUESTION:
            asking.expire(k, run, stamp, now)
        case Timer.YIELD:
            if run.wait is not None and run.wait.yield_time <= now:
                waiting.yield_now(k, run, now)
        case Timer.ELSEWHERE:
            # Who waits for work is asked again whenever something was due.
            if (again := k.elsewhere_from(run)) > now:
                k.at(again, Timer.ELSEWHERE, run)
