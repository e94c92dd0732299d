"""Messages for a run that is at work.

A steered message is offered with every lease and every extension until a call that ends or suspends
the turn names it as taken. What no turn takes was missed: it becomes a run of its own, at the place
in the session's order where it was accepted, or is only reported.
"""

from __future__ import annotations

import msgspec

from scheduler_svc.domain import requests, starting, waiting
from scheduler_svc.domain.emits import InputAccepted, Steered
from scheduler_svc.domain.kernel import Kernel
from scheduler_svc.domain.lanes import Session
from scheduler_svc.domain.records import (
    NewRun,
    QueueMode,
    ResumeReason,
    Run,
    RunState,
    SteerOffer,
    WaitKind,
)
from svckit.errors import LaneFull, NotSteerable, RunAlreadyEnded


def target(k: Kernel, session: Session) -> Run | None:
    """The run of a session that a steered message reaches; `None` when no turn could take it."""
    run = k.runs.get(session.holder)
    return run if run is not None and _steerable(run) else None


def _steerable(run: Run) -> bool:
    if run.stopping or run.turn == 0:
        return False
    return run.state in (RunState.RUNNING, RunState.SUSPENDED, RunState.QUEUED)


def steer(
    k: Kernel,
    run_id: str,
    request_id: str,
    body_hash: bytes,
    data: bytes,
    message: bytes,
    now: int,
    *,
    most: int,
) -> Run:
    """Offers a message to one run, without a fallback.

    At most `most` messages wait to be taken. Raises `RunAlreadyEnded`, `NotSteerable`, `LaneFull`
    or `RequestIdReused`. The caller makes sure that the run is known: live, or among
    `Kernel.ended`.
    """
    run = k.runs.get(run_id) or k.ended[run_id]
    if requests.seen(k, request_id, body_hash):
        return run
    details = {"runId": run_id, "state": run.state.name}
    if run.terminal:
        raise RunAlreadyEnded(f"the run has ended as {run.state.name}", metadata=details)
    if not _steerable(run):
        raise NotSteerable(
            f"the run is {run.state.name} and takes no message now", metadata=details
        )
    if len(run.steered) >= most:
        raise LaneFull(
            f"{len(run.steered)} messages wait to be taken by the run; at most {most} may",
            metadata={
                "sessionKey": run.session_key,
                "waiting": str(len(run.steered)),
                "cap": str(most),
            },
            retry_after=5.0,
        )
    requests.remember(k, request_id, body_hash, run_id)
    _offer(k, run, SteerOffer(request_id=request_id, input=data), message, now)
    return run


def offer_with_fallback(k: Kernel, run: Run, new: NewRun, now: int) -> None:
    """Offers a session's message to the run that holds its lane."""
    order = starting.take_order(k)
    k.sessions[run.session_key].offered = order
    offer = SteerOffer(
        request_id=new.request_id,
        input=new.payload_input,
        fallback=msgspec.structs.replace(new, mode=QueueMode.FOLLOWUP),
        order=order,
    )
    _offer(k, run, offer, new.message, now)


def _offer(k: Kernel, run: Run, offer: SteerOffer, message: bytes, now: int) -> None:
    key = (run.run_id, offer.request_id)
    k.steers[key] = k.changes.steers[key] = offer
    run.steered.append(offer.request_id)
    k.touch(run)
    k.emit(run, InputAccepted(message), now)
    if run.wait is not None and run.wait.kind is WaitKind.CHILDREN:
        waiting.resume(k, run, ResumeReason.STEERED, now)


def take(k: Kernel, run: Run, request_ids: list[str], now: int) -> None:
    """The turn that ends or suspends names what it took."""
    for request_id in request_ids:
        if request_id in run.steered:
            _drop(k, run, request_id)
            k.emit(run, Steered(request_id), now)


def miss(k: Kernel, run: Run, now: int) -> None:
    """What is left was missed: it falls back, or is reported."""
    for request_id in list(run.steered):
        offer = _drop(k, run, request_id)
        new = offer.fallback
        k.emit(
            run,
            Steered(request_id, missed=True, fallback_run_id=new.run_id if new else ""),
            now,
        )
        if new is not None:
            starting.start(k, new, now, order=offer.order, told=True)
            requests.remember(k, request_id, new.body_hash, new.run_id)


def _drop(k: Kernel, run: Run, request_id: str) -> SteerOffer:
    key = (run.run_id, request_id)
    run.steered.remove(request_id)
    k.changes.steers[key] = None
    k.touch(run)
    return k.steers.pop(key)
