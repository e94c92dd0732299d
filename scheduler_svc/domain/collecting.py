"""Several messages, one run: they gather until it starts, and one answer is for all.

A message joins the last waiting run of its session when that was begun by one like it, so that
joining never changes the order of what is answered. The run waits for more for a while after each
message, and then for as long as its turn has not come; with its first lease it is complete.
"""

from __future__ import annotations

from scheduler_svc.domain.emits import InputAccepted
from scheduler_svc.domain.kernel import Kernel, Timer
from scheduler_svc.domain.lanes import Session
from scheduler_svc.domain.records import SECOND, Collected, NewRun, Run

# A run waits for more messages no longer than this after its first one.
LONGEST = 5 * SECOND
MOST_MESSAGES = 100
MOST_BYTES = 2 * 1024 * 1024


def begin(run: Run, new: NewRun, now: int) -> None:
    """Makes a new run one that others may join."""
    run.collected = Collected(
        spec=new.spec, latest=now + LONGEST, messages=1, size=len(new.payload_input)
    )
    _wait(run, new, now)


def open_run(k: Kernel, session: Session, new: NewRun) -> Run | None:
    """The run that a message joins; `None` when it needs one of its own."""
    run = _last(k, session)
    if (
        run is None
        or run.collected is None
        or run.collected.spec != new.spec
        or run.collected.messages >= MOST_MESSAGES
        or run.collected.size + len(new.payload_input) > MOST_BYTES
        # A message in between may still become a run of its own, behind this one.
        or run.order < session.offered
    ):
        return None
    return run


def join(k: Kernel, run: Run, new: NewRun, now: int) -> None:
    """Adds a message to a run that `open_run` gave."""
    assert run.collected is not None
    run.collected.messages += 1
    run.collected.size += len(new.payload_input)
    k.changes.inputs.setdefault(run.run_id, []).append(new.payload_input)
    k.emit(run, InputAccepted(new.message), now)
    _wait(run, new, now)
    if run.ready_time:
        k.at(run.ready_time, Timer.READY, run)
    k.touch(run)
    k.refresh(k.sessions[run.session_key], now)


def close(k: Kernel, session: Session, now: int) -> None:
    """Another run goes behind: nobody can join the last one any more, so it need not wait."""
    run = _last(k, session)
    if run is not None and run.collect_until:
        run.ready_time = 0
        k.touch(run)
        k.refresh(session, now)


def _last(k: Kernel, session: Session) -> Run | None:
    return k.runs[session.fresh[-1][1]] if session.fresh else None


def _wait(run: Run, new: NewRun, now: int) -> None:
    assert run.collected is not None
    until = min(run.collected.latest, now + new.debounce)
    run.ready_time = until if until > now else 0
