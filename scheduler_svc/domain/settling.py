"""How runs end: from the leaves up, each end told to the parent, nothing left behind.

A run that ends badly first cancels what is live below it and stays `CANCELLING` until that has
ended; then it takes its own end state. So no run is terminal while a descendant is not.
"""

from __future__ import annotations

from scheduler_svc.domain import asking, budgets, reserving, steering, waiting
from scheduler_svc.domain.emits import ChildAnnounced, Noted
from scheduler_svc.domain.kernel import Kernel
from scheduler_svc.domain.lanes import Session
from scheduler_svc.domain.records import Ending, Failure, PreviousRun, Run, RunState

# Earlier runs of a session that the next turn is told about, at most.
MOST_PREVIOUS = 20


def succeed(k: Kernel, run: Run, now: int) -> None:
    """The run has replied, and nothing of it is live or untold."""
    _finish(k, run, RunState.SUCCEEDED, None, now)


def fail(k: Kernel, run: Run, failure: Failure, now: int) -> None:
    """An executing run fails for good: what is live below it is cancelled, then it ends."""
    run.ending = Ending(RunState.FAILED, failure)
    asking.cancel_open(k, run, now)
    for child_id in list(run.live):
        _stop(k, k.runs[child_id], _cancelled("the parent run failed", "ancestor"), now)
    stopped(k, run, now)


def cancel(k: Kernel, run: Run, reason: str, cause: str, now: int) -> int:
    """Asks a run and everything below it to stop. Returns how many runs that changed.

    `cause` is `request`, `ancestor` or `interrupt`. Runs of which no worker has anything in hand
    end at once, children before parents; the others when their worker confirms. The session's
    waiting runs stay.
    """
    return _stop(k, run, _cancelled(reason, cause), now)


def drop(k: Kernel, run: Run, now: int) -> None:
    """A never-started run makes room for a newer message of its full session; its sender is told.

    It ends as `CANCELLED`.
    """
    text = "A newer message took the place of this one: too many wait in this conversation."
    k.emit(run, Noted("DROPPED_FROM_LANE", text), now)
    failure = Failure("DROPPED_FROM_LANE", text, {"sessionKey": run.session_key})
    _stop(k, run, Ending(RunState.CANCELLED, failure), now)


def expire(k: Kernel, run: Run, timeout: str, now: int) -> None:
    """A time limit of the run has passed; `timeout` names it. As `cancel`, with another end."""
    failure = Failure("RUN_EXPIRED", f"{timeout} has passed", {"timeout": timeout})
    _stop(k, run, Ending(RunState.EXPIRED, failure), now)


def out_of_time(k: Kernel, run: Run, now: int) -> None:
    """The budget of wall time is used up. As `expire`, and the failure names the budget."""
    _stop(k, run, Ending(RunState.EXPIRED, budgets.too_long(run, now)), now)


def stopped(k: Kernel, run: Run, now: int) -> None:
    """A stopping run does not execute: it ends, or waits for what is still live below it.

    Its session lane is free either way.
    """
    assert run.ending is not None
    if not run.live:
        _finish(k, run, run.ending.state, run.ending.failure, now)
        return
    # No turn will take what was steered to it, and what falls back must not be overtaken.
    steering.miss(k, run, now)
    reserving.leave_line(k, run, now)
    k.leave_line(run)
    if run.state is not RunState.CANCELLING:
        _begin_cancelling(k, run, now)
    k.free_slot(run, now)
    k.refresh(k.sessions[run.session_key], now)


def _stop(k: Kernel, run: Run, ending: Ending, now: int) -> int:
    if run.terminal or run.stopping:
        return 0
    # Marked before the children end, so that their ends do not wake it.
    run.ending, run.cancel_reason = ending, ending.failure.message
    k.touch(run)
    asking.cancel_open(k, run, now)
    count = 1
    below = _cancelled(ending.failure.message, "ancestor")
    for child_id in list(run.live):
        count += _stop(k, k.runs[child_id], below, now)
    if run.run_id not in k.runs:
        return count  # the end of its last child has ended it
    if run.held is not None:
        _begin_cancelling(k, run, now)
        if not run.holds_lane:
            k.leave_line(run)
        k.refresh(k.sessions[run.session_key], now)
    else:
        stopped(k, run, now)
    return count


def _begin_cancelling(k: Kernel, run: Run, now: int) -> None:
    assert run.ending is not None
    run.wait = None
    k.set_state(
        run,
        RunState.CANCELLING,
        now,
        failure=run.ending.failure,
        cause=run.ending.failure.message,
    )


def _cancelled(reason: str, cause: str) -> Ending:
    failure = Failure("RUN_CANCELLED", reason[:256] or "cancelled", {"cause": cause})
    return Ending(RunState.CANCELLED, failure)


def _finish(k: Kernel, run: Run, state: RunState, failure: Failure | None, now: int) -> None:
    steering.miss(k, run, now)
    asking.cancel_open(k, run, now)
    session = k.sessions[run.session_key]
    if run.turn:
        session.previous.append(PreviousRun(run.run_id, state, run.closed_turn))
        _forget_oldest(k, session)
    run.failure, run.end_time, run.wait = failure, now, None
    k.leave_line(run)
    k.set_state(
        run, state, now, failure=failure, cause=failure.message if failure is not None else ""
    )
    k.free_slot(run, now)
    k.forget(run)
    reserving.run_ended(k, run, now)
    k.refresh(session, now)
    if run.parent_id:
        _announce(k, run, now)


def _forget_oldest(k: Kernel, session: Session) -> None:
    """Keeps the list of earlier runs short where no turn ever ends that is told of them.

    Each was told to all turns since that began. Those that had something to say are kept longest:
    their words belong to the conversation.
    """
    if len(session.previous) <= MOST_PREVIOUS:
        return
    gone = next((n for n, past in enumerate(session.previous) if not past.turn), 0)
    del session.previous[gone]
    holder = k.runs.get(session.holder)
    if holder is not None and gone < holder.told_previous:
        holder.told_previous -= 1
        k.touch(holder)


def _announce(k: Kernel, child: Run, now: int) -> None:
    parent = k.runs[child.parent_id]
    parent.live.remove(child.run_id)
    parent.untold.append(child.run_id)
    k.touch(parent)
    children = len(parent.live) + len(parent.untold) + len(parent.told)
    k.emit(parent, ChildAnnounced(child.run_id, len(parent.live), children), now)
    if not parent.stopping:
        waiting.child_settled(k, parent, now)
    elif parent.held is None and not parent.live:
        stopped(k, parent, now)
