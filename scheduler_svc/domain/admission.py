"""Taking work in: messages for sessions, and child runs.

One admission path for everything: a root run enters its session lane, a child run gets a session of
its own. Depth and children are checked against the run's own caps and every ancestor's.
"""

from __future__ import annotations

import enum

import msgspec

from scheduler_svc.domain import collecting, requests, settling, starting, steering
from scheduler_svc.domain.budgets import ancestors, exceeded
from scheduler_svc.domain.emits import ChildSpawned
from scheduler_svc.domain.kernel import Kernel, KnownRequest
from scheduler_svc.domain.lanes import Session
from scheduler_svc.domain.leasing import leased_run
from scheduler_svc.domain.records import NewRun, QueueMode, Run
from svckit.errors import (
    FlowCancelling,
    LaneFull,
    LaneNotFound,
)


class Outcome(enum.IntEnum):
    """What became of a message. Numbers of `EnqueueOutcome`."""

    QUEUED = 1
    COLLECTED = 2
    STEERED = 3
    STEER_FELL_BACK = 4
    INTERRUPTED = 5


class Accepted(msgspec.Struct, frozen=True):
    """How a message was accepted."""

    run_id: str
    outcome: Outcome
    deduplicated: bool
    # Newest sequence of the session before the message.
    last_sequence: int


def enqueue(
    k: Kernel,
    new: NewRun,
    now: int,
    *,
    parent_lease: tuple[str, int] | None,
    tool_call_id: str = "",
) -> Accepted:
    """Accepts one message: as a run of its own, or for a run that waits or holds the lane.

    `parent_lease` is (run id, fencing token) of the parent for a child run. Raises
    `RequestIdReused`, `LaneNotFound`, `LaneFull`, `BudgetExceeded`, `FlowCancelling`, `LeaseLost`.
    """
    known = requests.seen(k, new.request_id, new.body_hash)
    if known is not None:
        return _repeated(k, known)
    if new.lane not in k.lanes:
        raise LaneNotFound(
            f"no global lane is named {new.lane!r}; configured are: {', '.join(sorted(k.lanes))}",
            metadata={"lane": new.lane},
        )
    if parent_lease is not None:
        return _child(k, new, now, parent_lease, tool_call_id)
    session = k.session(new.session_key)
    before = session.head
    if new.mode is QueueMode.COLLECT:
        joined = collecting.open_run(k, session, new)
        if joined is not None:
            collecting.join(k, joined, new, now)
            requests.remember(k, new.request_id, new.body_hash, joined.run_id)
            return Accepted(joined.run_id, Outcome.COLLECTED, False, before)
    _make_room(k, session, new, now)
    outcome = Outcome.QUEUED
    if new.mode is QueueMode.STEER:
        target = steering.target(k, session)
        # What is said to a harness is no message for the agent before it, nor the other way round.
        if target is not None and target.queue == new.queue:
            steering.offer_with_fallback(k, target, new, now)
            requests.remember(k, new.request_id, new.body_hash, target.run_id)
            return Accepted(target.run_id, Outcome.STEERED, False, before)
        if session.next_run():
            outcome = Outcome.STEER_FELL_BACK
    if new.mode is QueueMode.INTERRUPT:
        # Before the new run comes: a run that others wait for may yield, and would not be stopped.
        if _interrupt(k, session, now):
            outcome = Outcome.INTERRUPTED
    else:
        collecting.close(k, session, now)
    starting.start(k, new, now)
    requests.remember(k, new.request_id, new.body_hash, new.run_id)
    return Accepted(new.run_id, outcome, False, before)


def _make_room(k: Kernel, session: Session, new: NewRun, now: int) -> None:
    waiting, cap = _waiting(k, session), new.lane_cap
    if waiting < cap:
        return
    over = waiting - cap + 1
    if not new.drop_oldest or over > len(session.fresh):
        raise LaneFull(
            f"{waiting} messages wait in this session; at most {cap} may",
            metadata={"sessionKey": session.key, "waiting": str(waiting), "cap": str(cap)},
            retry_after=5.0,
        )
    # More than one when the cap was lowered.
    for run in sorted((k.runs[run_id] for _, run_id in session.fresh), key=_order)[:over]:
        settling.drop(k, run, now)


def _waiting(k: Kernel, session: Session) -> int:
    # Steered messages count too: what no turn takes becomes a run of its own.
    holder = k.runs.get(session.holder)
    return len(session.fresh) + (len(holder.steered) if holder is not None else 0)


def _order(run: Run) -> int:
    return run.order


def _interrupt(k: Kernel, session: Session, now: int) -> bool:
    """Stops the run that holds the session lane; false when none does."""
    holder = k.runs.get(session.holder)
    if holder is None:
        return False
    settling.cancel(k, holder, "a newer message interrupted it", "interrupt", now)
    return True


def _child(
    k: Kernel, new: NewRun, now: int, parent_lease: tuple[str, int], tool_call_id: str
) -> Accepted:
    parent = leased_run(k, *parent_lease)
    if parent.stopping:
        raise FlowCancelling(
            "the parent is being stopped and takes no new run",
            metadata={"flowId": parent.flow_id, "runId": parent.run_id},
        )
    _check_caps(k, parent)
    kind = "acp" if new.queue == "acp" else "subagent"
    run = starting.record(k, new, now, session_key=f"{parent.session_key}:{kind}:{new.run_id}")
    run.flow_id, run.parent_id, run.depth = parent.flow_id, parent.run_id, parent.depth + 1
    run.tool_call_id = tool_call_id
    # A child cannot choose these: fairness and order are the customer's, not the model's.
    run.customer_key, run.priority, run.delivers_later = parent.customer_key, parent.priority, False
    parent.live.append(run.run_id)
    for ancestor in ancestors(k, run):
        ancestor.descendants += 1
        k.touch(ancestor)
    k.emit(
        parent,
        ChildSpawned(run.run_id, run.session_key, tool_call_id, run.label, run.queue),
        now,
    )
    starting.admit(k, run, new, now)
    requests.remember(k, new.request_id, new.body_hash, run.run_id)
    return Accepted(run.run_id, Outcome.QUEUED, False, last_sequence=0)


def _check_caps(k: Kernel, parent: Run) -> None:
    depth = parent.depth + 1
    for run in (parent, *ancestors(k, parent)):
        if run.caps.max_depth is not None and depth > run.caps.max_depth:
            raise exceeded(run, "max_depth", run.caps.max_depth, parent.depth, depth)
        if run.caps.max_descendants is not None and run.descendants >= run.caps.max_descendants:
            raise exceeded(run, "max_descendants", run.caps.max_descendants, run.descendants, 1)
    cap = parent.caps.max_children
    if cap is not None and len(parent.live) >= cap:
        raise exceeded(parent, "max_children", cap, len(parent.live), 1)


def _repeated(k: Kernel, known: KnownRequest) -> Accepted:
    run = k.runs.get(known.run_id)
    session = k.sessions.get(run.session_key) if run else None
    return Accepted(known.run_id, Outcome.QUEUED, True, session.head if session else 0)
