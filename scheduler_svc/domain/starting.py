"""The first moment of a run: its record, its place in the session lane, its first events."""

from __future__ import annotations

import msgspec

from scheduler_svc.domain import collecting, waiting
from scheduler_svc.domain.emits import InputAccepted, StateChanged
from scheduler_svc.domain.kernel import Config, Kernel, Timer
from scheduler_svc.domain.records import Caps, NewRun, QueueMode, Run, RunState

# Share of its caps that a root run keeps for its own answer unless it says otherwise.
DEFAULT_REPLY_RESERVE = 0.1


def start(k: Kernel, new: NewRun, now: int, *, order: int = 0, told: bool = False) -> Run:
    """Puts a root run into its session lane.

    `order` is the place of a message that was accepted earlier, `told` means that it is in the
    session's log already; both are for steered messages that fell back.
    """
    run = record(k, new, now, session_key=new.session_key, order=order)
    if new.mode is QueueMode.COLLECT:
        collecting.begin(run, new, now)
    admit(k, run, new, now, told=told)
    return run


def record(k: Kernel, new: NewRun, now: int, *, session_key: str, order: int = 0) -> Run:
    """The record of a root run, with every default filled in."""
    if not order:
        order = take_order(k)
    return Run(
        run_id=new.run_id,
        flow_id=new.run_id,
        order=order,
        session_key=session_key,
        customer_key=new.customer_key or session_key,
        queue=new.queue,
        lane=new.lane,
        estimate_key=new.estimate_key,
        label=new.label,
        labels=new.labels,
        priority=new.priority,
        queue_timeout=new.queue_timeout,
        run_timeout=new.run_timeout,
        wall_timeout=new.wall_timeout,
        retry=new.retry,
        caps=_filled_in(new.caps, k.config, root=bool(new.session_key)),
        delivers_later=new.delivers_later,
        preferred_worker=new.preferred_worker,
        question_session_key=new.question_session_key,
        jumps=new.mode is QueueMode.INTERRUPT,
        create_time=now,
        trace=new.trace,
        state_time=now,
    )


def take_order(k: Kernel) -> int:
    """The next place in the order of acceptance."""
    order, k.next_order = k.next_order, k.next_order + 1
    return order


def admit(k: Kernel, run: Run, new: NewRun, now: int, *, told: bool = False) -> None:
    """Takes the run into its session lane and writes its first events."""
    k.add(run)
    k.changes.payloads[run.run_id] = new.payload
    if not told:
        k.emit(run, InputAccepted(new.message), now)
    k.emit(run, StateChanged(RunState.UNSPECIFIED, RunState.QUEUED, 0, 0), now)
    if run.queue_timeout:
        k.at(now + run.queue_timeout, Timer.QUEUE_TIMEOUT, run)
    if run.ready_time:
        k.at(run.ready_time, Timer.READY, run)
    if run.wall_timeout:
        k.at(now + run.wall_timeout, Timer.WALL_TIMEOUT, run)
    session = k.sessions[run.session_key]
    k.refresh(session, now)
    waiting.make_room(k, session, now)


def _filled_in(caps: Caps, config: Config, *, root: bool) -> Caps:
    def either(own: int | None, default: int) -> int:
        return default if own is None else own

    reserve = caps.reply_reserve
    if reserve is None:
        reserve = DEFAULT_REPLY_RESERVE if root and caps.spending else 0.0
    return msgspec.structs.replace(
        caps,
        reply_reserve=reserve,
        max_depth=either(caps.max_depth, config.max_depth),
        max_children=either(caps.max_children, config.max_children),
        max_descendants=either(caps.max_descendants, config.max_descendants),
    )
