"""Reserving model calls: provider limits and budgets, asked before and told after.

`limits` knows when a call may go and `budgets` whether it fits; this module does what follows for
runs: a run that waits is resumed with its grant, one that ends leaves the line, and everything that
must outlive a restart is noted as a fact.
"""

from __future__ import annotations

import msgspec

from scheduler_svc.domain import budgets, waiting
from scheduler_svc.domain.kernel import Kernel, Timer
from scheduler_svc.domain.limits import (
    PATIENCE,
    SHORT_WAIT,
    Limiter,
    LimiterState,
    Outcome,
    Phase,
    Reservation,
)
from scheduler_svc.domain.records import ResumeReason, Run, RunState, WaitKind

LIMITER = "limiter"
RESERVATION = "reservation"
_TROUBLE = (Outcome.THROTTLED, Outcome.UNAVAILABLE)


class Grant(msgspec.Struct, frozen=True):
    """A reservation as a worker is told of it. Without a `delay` the call may go at once."""

    reservation_id: str
    time: int
    delay: int = 0
    limit: str = ""
    expire_time: int = 0


def reserve(
    k: Kernel,
    run: Run | None,
    request_id: str,
    *,
    provider_id: str,
    credential_id: str,
    model: str,
    tokens: int,
    cost: int,
    now: int,
) -> Grant:
    """Reserves one model call. Raises `BudgetExceeded`.

    The same `request_id` gets the same reservation. A run makes one call at a time: what it
    reserved before and did not report was waited for in vain, or lost with its worker.
    """
    known = k.limits.reservations.get(request_id)
    if known is not None:
        return grant(k, known, now)
    limiter = k.limits.limiter(k.limits.key(provider_id, credential_id, model))
    number = 0
    if run is not None:
        number = _forget_earlier(k, run, limiter, now)
        refused = budgets.refusal(k, run, tokens, cost)
        if refused is not None:
            raise refused
    if not number:
        number, k.limits.next_number = k.limits.next_number, k.limits.next_number + 1
    call = Reservation(
        id=request_id,
        limiter=limiter.key,
        number=number,
        tokens=tokens,
        cost=cost,
        run_id=run.run_id if run else "",
        flow_id=run.flow_id if run else "",
        path=budgets.path(k, run) if run else [],
    )
    if limiter.idle and not call.path and limiter.state.cool_until <= now:
        return Grant(call.id, now)  # nothing to count or to keep
    limiter.reserve(call, now)
    k.limits.add(call)
    budgets.hold(k, call.path, call.tokens, call.cost)
    if call.phase is Phase.GRANTED:
        k.limits.expires(call)
    _note(k, call)
    return grant(k, call, now)


def grant(k: Kernel, call: Reservation, now: int) -> Grant:
    """What a worker is told of a reservation. One that waits is far enough off to suspend for."""
    if call.phase is Phase.WAITING:
        time = max(call.time, now + SHORT_WAIT + 1)
        return Grant(call.id, time, time - now, call.limit)
    delay = max(0, call.time - now)
    return Grant(call.id, call.time, delay, call.limit if delay else "", call.expire_time)


def settle(
    k: Kernel,
    reservation_id: str,
    key: str,
    outcome: Outcome,
    tokens: int,
    asked: int,
    now: int,
) -> int:
    """A model call has ended. Returns until when its credential now cools down; 0 for not.

    `key` names the limiter for a call without a (known) reservation. `asked` is `Retry-After`.
    """
    call = k.limits.reservations.get(reservation_id)
    if call is None and key not in k.limits.limiters and outcome not in _TROUBLE:
        return 0
    limiter = k.limits.limiter(call.limiter if call else key)
    if call is not None:
        if outcome is Outcome.ANSWERED and not tokens:
            tokens = call.tokens  # the provider did not say
        _forget(k, call)
    before = msgspec.structs.replace(limiter.state)
    limiter.report(call, outcome, tokens, asked, now)
    if limiter.state != before:
        k.changes.facts[(LIMITER, limiter.key)] = limiter.state
    return limiter.state.cool_until if limiter.state.cool_until > now else 0


def waits_for(k: Kernel, run: Run, reservation_id: str) -> bool:
    """True when the run has such a reservation and it is not granted yet."""
    call = k.limits.reservations.get(reservation_id)
    return call is not None and call.run_id == run.run_id and call.phase is Phase.WAITING


def resumed(k: Kernel, run: Run, now: int) -> Grant | None:
    """The grant that a run resumes with, at the moment it is leased; `None` without one.

    The first attempt of the turn gets it. A later one cannot know whether the call was made.
    """
    wait = run.resumption.wait if run.resumption else None
    if wait is None or not wait.reservation or run.attempt != 1:
        return None
    call = k.limits.reservations.get(wait.reservation)
    if call is None or call.phase is Phase.EXPIRED:
        return None
    if call.phase is Phase.GRANTED:
        k.limits.limiter(call.limiter).start(call, now)
        if call.phase is Phase.GRANTED:
            k.limits.expires(call)
        _note(k, call)
    return grant(k, call, now)


def let_go(k: Kernel, run: Run) -> None:
    """The run stops executing and comes back later: nobody waits for what it asked meanwhile."""
    for reservation_id in sorted(k.limits.of_flow.get(run.flow_id, ())):
        call = k.limits.reservations[reservation_id]
        if call.run_id == run.run_id and call.phase is Phase.GRANTED:
            _abandon(k, call)


def leave_line(k: Kernel, run: Run, now: int) -> None:
    """The run makes no further call: it waits for none, and gives back one it has not begun."""
    for reservation_id in sorted(k.limits.of_flow.get(run.flow_id, ())):
        call = k.limits.reservations[reservation_id]
        if call.run_id == run.run_id and call.phase is Phase.WAITING:
            _forget(k, call)
        elif call.run_id == run.run_id and _not_begun(run, call):
            settle(k, call.id, call.limiter, Outcome.NOT_SENT, 0, 0, now)


def run_ended(k: Kernel, run: Run, now: int) -> None:
    """A run has ended: what it waited for is given up, and with a root what nobody reported."""
    leave_line(k, run, now)
    for reservation_id in sorted(k.limits.of_flow.get(run.flow_id, ())):
        call = k.limits.reservations[reservation_id]
        if not run.parent_id and call.phase is Phase.EXPIRED:
            _forget(k, call)
        elif call.run_id == run.run_id and call.phase is Phase.GRANTED:
            _abandon(k, call)


def sweep(k: Kernel, now: int) -> None:
    """Grants what is due, wakes who waits for it, and counts as used what nobody reported."""
    for limiter in k.limits.limiters.values():
        while (call := limiter.release(now)) is not None:
            k.limits.expires(call)
            _note(k, call)
            run = k.runs.get(call.run_id)
            if run is not None and run.wait is not None and run.wait.reservation == call.id:
                waiting.resume(k, run, ResumeReason.LIMIT_GRANTED, now)
    for call in k.limits.expired(now):
        root, run = k.runs.get(call.flow_id), k.runs.get(call.run_id)
        if run is not None and _not_begun(run, call):  # it waited for a slot all the time
            settle(k, call.id, call.limiter, Outcome.NOT_SENT, 0, 0, now)
            continue
        _abandon(k, call)
        if call.path and root is not None:
            k.changes.facts[(RESERVATION, call.id)] = call
        else:
            _forget(k, call)


def rebuild(k: Kernel, facts: dict[tuple[str, str], bytes], now: int) -> None:
    """Takes in what was stored. Buckets are empty after a restart, never full."""
    for (kind, key), value in facts.items():
        if kind == LIMITER:
            state = msgspec.json.decode(value, type=LimiterState)
            k.limits.limiter(key, state).settle_after_restart(now)
    calls = [
        msgspec.json.decode(value, type=Reservation)
        for (kind, _), value in facts.items()
        if kind == RESERVATION
    ]
    for call in sorted(calls, key=lambda call: call.number):
        limiter = k.limits.limiter(call.limiter)
        k.limits.add(call)
        budgets.hold(k, call.path, call.tokens, call.cost)
        if call.phase is Phase.WAITING:
            limiter.put_in_line(call, now)
        elif call.phase is Phase.GRANTED:
            call.expire_time = min(call.expire_time, now + SHORT_WAIT + PATIENCE)
            k.limits.expires(call)
    for run in k.runs.values():
        reservation = run.wait.reservation if run.wait else ""
        if reservation and reservation not in k.limits.reservations:  # nothing would wake it
            k.at(now, Timer.WAIT, run, run.turn)
    for limiter in k.limits.limiters.values():
        if limiter.state.probe not in k.limits.reservations:
            limiter.state.probe = ""


def due_time(k: Kernel, run: Run, now: int) -> tuple[str, str, int] | None:
    """For explanations: (provider, limit, until) of a run that waits for a provider."""
    if run.state is not RunState.SUSPENDED or run.wait is None or not run.wait.reservation:
        return None
    call = k.limits.reservations.get(run.wait.reservation)
    if call is None or run.wait.kind is not WaitKind.LIMIT:
        return None
    limiter = k.limits.limiter(call.limiter)
    time = limiter.expected(call, now) if call.phase is Phase.WAITING else call.time
    return call.limiter.partition("/")[0], call.limit, time


def _forget_earlier(k: Kernel, run: Run, limiter: Limiter, now: int) -> int:
    """Gives up what the run waited for; returns its place when it waited for the same limiter."""
    number = 0
    for reservation_id in sorted(k.limits.of_flow.get(run.flow_id, ())):
        call = k.limits.reservations[reservation_id]
        if call.run_id != run.run_id:
            continue
        if call.phase is Phase.WAITING:
            number = call.number if call.limiter == limiter.key else number
            _forget(k, call)
        elif call.phase is Phase.GRANTED:
            _abandon(k, call)
    return number


def _not_begun(run: Run, call: Reservation) -> bool:
    """True when the run was to resume with the call and has not been leased since."""
    wait = run.resumption.wait if run.resumption is not None and run.new_turn else None
    return wait is not None and wait.reservation == call.id


def _abandon(k: Kernel, call: Reservation) -> None:
    limiter = k.limits.limiter(call.limiter)
    if limiter.state.probe == call.id:
        limiter.abandon(call)
        k.changes.facts[(LIMITER, limiter.key)] = limiter.state


def _forget(k: Kernel, call: Reservation) -> None:
    budgets.hold(k, call.path, -call.tokens, -call.cost)
    k.limits.remove(call)
    k.changes.facts[(RESERVATION, call.id)] = None


def _note(k: Kernel, call: Reservation) -> None:
    k.changes.facts[(RESERVATION, call.id)] = call
    k.changes.facts[(LIMITER, call.limiter)] = k.limits.limiters[call.limiter].state
