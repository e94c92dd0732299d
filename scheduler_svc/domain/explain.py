"""Why a run is where it is: the chain of reasons, first what holds it now, then what will next.

Each reason says itself in one English sentence. The sentences hold no names of other runs, sessions
or customers, so that whoever may see the run may read them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import msgspec

from scheduler_svc.domain import asking
from scheduler_svc.domain.kernel import PATIENCE, Kernel
from scheduler_svc.domain.lanes import GlobalLane
from scheduler_svc.domain.records import (
    SECOND,
    Failure,
    Lease,
    Run,
    RunState,
    Wait,
    WaitKind,
)
from svckit import words as said
from svckit.words import count

# Runs that a reason names at most.
NAMED = 20
# So far down the line it is looked who goes first; beyond, it is counted.
LOOKED_AT = 1000


class Ref(msgspec.Struct, frozen=True):
    """Another run, as it was."""

    run_id: str
    session_key: str
    customer_key: str
    label: str
    state: RunState
    state_time: int


class Executing(msgspec.Struct, frozen=True):
    """It executes."""

    lease: Lease


class BehindRun(msgspec.Struct, frozen=True):
    """`run` holds the session lane, or is directly ahead; `wait` is what it waits for."""

    run: Ref
    ahead: int
    wait: Wait | None


class Collecting(msgspec.Struct, frozen=True):
    """More messages may join it until then."""

    until: int


class BackingOff(msgspec.Struct, frozen=True):
    """The next attempt comes then. `failure` is what the last one reported, if it did."""

    until: int
    attempts: int
    max_attempts: int
    failure: Failure | None


class LaneBusy(msgspec.Struct, frozen=True):
    """The global lane has no slot for it, or others go first. Holders longest first."""

    lane: str
    limit: int
    running: int
    holders: list[Ref]
    own_ahead: int = 0
    others_ahead: int = 0
    customers_ahead: int = 0


class NoWorker(msgspec.Struct, frozen=True):
    """A slot is free, but no worker asks that may take it; `worker` is the one that it waits for.

    `last_poll` is 0 when none did since the start.
    """

    queue: str
    last_poll: int
    worker: str = ""


class WaitingForChildren(msgspec.Struct, frozen=True):
    """Children are live. `live` names the oldest."""

    live: list[Ref]
    live_count: int
    settled_count: int
    holds_lane: bool
    wait: Wait


class WaitingForApproval(msgspec.Struct, frozen=True):
    """A person has to answer one of these open questions. The first default is taken at `until`."""

    question_ids: list[str]
    until: int


class WaitingForLimit(msgspec.Struct, frozen=True):
    """A limit has to pass. `provider` is empty for a limit of the worker itself."""

    provider: str
    limit: str
    until: int


class Stopping(msgspec.Struct, frozen=True):
    """It is being stopped. `unconfirmed` are runs of its subtree that still execute."""

    reason: str
    unconfirmed: list[Ref]
    elapsed: int


class Ended(msgspec.Struct, frozen=True):
    """It is terminal."""

    failure: Failure | None


Kind = (
    Executing
    | BehindRun
    | Collecting
    | BackingOff
    | LaneBusy
    | NoWorker
    | WaitingForChildren
    | WaitingForApproval
    | WaitingForLimit
    | Stopping
    | Ended
)


class Reason(msgspec.Struct, frozen=True):
    """One link of the chain."""

    kind: Kind
    text: str


def explain(k: Kernel, run: Run, now: int, *, asked_for: bool) -> list[Reason]:
    """The reasons of a run, at least one. `asked_for` says that a worker waits that may take it."""
    if run.terminal:
        return [ended(run)]
    if run.stopping:
        return [_stopping(k, run, now)]
    if run.lease is not None:
        return [_executing(run, run.lease, now)]
    reasons = []
    if run.state is RunState.SUSPENDED:
        reasons.append(_waiting(k, run, now))
    else:
        behind = _behind(k, run)
        reasons += [behind] if behind is not None else []
        if run.ready_time > now:
            reasons.append(_pausing(run, now))
    lane = _lane(k, run)
    if lane is not None:
        reasons.append(lane)
    if not reasons:
        reasons.append(_no_worker(k, run, now, asked_for=asked_for))
    return reasons


def ended(run: Run) -> Reason:
    """The reason of a terminal run."""
    words = {
        RunState.SUCCEEDED: "It succeeded",
        RunState.FAILED: "It failed",
        RunState.CANCELLED: "It was cancelled",
        RunState.EXPIRED: "It expired",
    }[run.state]
    why = f": {run.failure.message}" if run.failure is not None else ""
    return Reason(Ended(run.failure), _sentence(words + why))


def _executing(run: Run, lease: Lease, now: int) -> Reason:
    turn = f"turn {run.turn}" + (f", attempt {run.attempt}" if run.attempt > 1 else "")
    return Reason(
        Executing(lease), f"It has been executing {turn} for {span(now - lease.lease_time)}."
    )


def _stopping(k: Kernel, run: Run, now: int) -> Reason:
    left = [_ref(node) for node in islice(_at_work(k, run), NAMED + 1)]
    elapsed = max(0, now - run.state_time)
    why = f" ({run.cancel_reason})" if run.cancel_reason else ""
    named = f"more than {NAMED} runs" if len(left) > NAMED else count(len(left), "run")
    still = "has" if len(left) == 1 else "have"
    return Reason(
        Stopping(run.cancel_reason, left[:NAMED], elapsed),
        f"It is being stopped{why}; {named} of its tree {still} not confirmed after "
        f"{span(elapsed)}.",
    )


def _at_work(k: Kernel, run: Run) -> Iterator[Run]:
    if run.held is not None:
        yield run
    for child in run.live:
        yield from _at_work(k, k.runs[child])


def _waiting(k: Kernel, run: Run, now: int) -> Reason:
    wait = run.wait
    assert wait is not None
    if wait.kind is WaitKind.LIMIT:
        return _limit(k, wait, now)
    if wait.kind is WaitKind.APPROVAL:
        return _approval(k, run, wait, now)
    live = [child for child in wait.run_ids if child in run.live]
    settled = len(wait.run_ids) - len(live)
    also = f"; {count(settled, 'other')} already done" if settled else ""
    return Reason(
        WaitingForChildren(
            [_ref(k.runs[child]) for child in live[:NAMED]],
            len(live),
            settled,
            run.holds_lane,
            wait,
        ),
        f"It waits for {count(len(live), 'sub-agent')}{also}{_kept(run)}.",
    )


def _kept(run: Run) -> str:
    return f"; worker {run.kept.worker} keeps its process meanwhile" if run.kept else ""


def _approval(k: Kernel, run: Run, wait: Wait, now: int) -> Reason:
    found = (k.questions.get(question_id) for question_id in wait.question_ids)
    asked = [question for question in found if question is not None]
    first = min(asked, key=lambda question: question.expire_time)
    ids, until = [question.question_id for question in asked], first.expire_time
    left = f"{span(until - now)} left"
    if len(asked) == 1:
        text = f"It waits for an answer: {first.title} ({left}){_kept(run)}."
    else:
        text = (
            f"It waits for answers to {len(asked)} questions, first: {first.title} ({left})"
            f"{_kept(run)}."
        )
    return Reason(WaitingForApproval(ids, until), text)


def _limit(k: Kernel, wait: Wait, now: int) -> Reason:
    until, name, of = wait.expire_time, wait.name or "a limit", ""
    call = k.limits.reservations.get(wait.reservation)
    if call is not None:
        until = k.limits.limiter(call.limiter).expected(call, now)
        of, name = call.limiter.partition("/")[0], call.limit or name
    whose = f" of provider {of}" if of else ""
    when = f" for {span(until - now)} more" if until > now else ""
    return Reason(
        WaitingForLimit(of, name, until), f"It waits for {name.replace('_', ' ')}{whose}{when}."
    )


def _behind(k: Kernel, run: Run) -> Reason | None:
    session = k.sessions[run.session_key]
    ahead = session.ahead_of(run)
    if not ahead:
        return None
    first = k.runs[session.holder or _directly_ahead(k, run)]
    wait = asking.lane_wait(k, first)
    if wait is not None and wait.kind is WaitKind.CHILDREN:
        live = sum(child in first.live for child in wait.run_ids)
        what = f"An earlier message of the session waits for {count(live, 'sub-agent')}"
    elif wait is not None and wait.kind is WaitKind.APPROVAL:
        what = "An earlier message of the session is waiting for your approval"
    elif wait is not None:
        what = "An earlier message of the session waits for a limit"
    elif first.lease is not None:
        what = "An earlier message of the session is being worked on"
    else:
        what = "An earlier message of the session goes first"
    more = f"; {ahead} are ahead in all" if ahead > 1 else ""
    return Reason(BehindRun(_ref(first), ahead, wait), f"{what}{more}.")


def _directly_ahead(k: Kernel, run: Run) -> str:
    line = k.sessions[run.session_key].line()
    return line[line.index(run.run_id) - 1]


def _pausing(run: Run, now: int) -> Reason:
    left = span(run.ready_time - now)
    if not run.turn:
        return Reason(
            Collecting(run.ready_time),
            f"It waits {left} for further messages, to answer them together.",
        )
    most = run.retry.max_attempts
    return Reason(
        BackingOff(run.ready_time, run.attempts, most, run.last_failure),
        f"Attempt {run.attempts} of {most} failed; the next one starts in {left}.",
    )


def _lane(k: Kernel, run: Run) -> Reason | None:
    """What keeps the run from a slot, or will; `None` when one is free for it."""
    lane = k.lanes[run.lane]
    own, others, customers = _goes_first(k, run, lane)
    if lane.limit and own + others < lane.free:
        return None
    at_work = [k.runs[run_id] for run_id in islice(k.executing.get(lane.name, ()), NAMED)]
    at_work.sort(key=lambda other: other.lease.lease_time if other.lease is not None else 0)
    holders = [_ref(other) for other in at_work]
    if not lane.limit:
        text = f"The lane {lane.name} is paused."
    else:
        taken = "The only slot" if lane.limit == 1 else f"All {lane.limit} slots"
        verb = "is" if lane.limit == 1 else "are"
        text = f"{taken} of lane {lane.name} {verb} taken"
        if lane.free:
            text = f"The free slots of lane {lane.name} go to others first"
        if own + others:
            text += f"; {count(own + others, 'other run')} will start before"
        text += "."
    return Reason(
        LaneBusy(lane.name, lane.limit, lane.running, holders, own, others, customers), text
    )


def _goes_first(k: Kernel, run: Run, lane: GlobalLane) -> tuple[int, int, int]:
    """Ready runs of the same customer and of others that go first, and how many others."""
    queue = lane.queue(run.queue)
    if not run.ready_since:  # not in line yet: behind its customer's, and others take turns with it
        own = queue.first.of_customer(run.customer_key) + queue.resumed.of_customer(
            run.customer_key
        )
        others = len(queue) - own
        first = queue.first.customer_count - bool(queue.first.of_customer(run.customer_key))
        return own, min(others, (own + 1) * first + len(queue.resumed)), first
    own = others = 0
    customers: set[str] = set()
    for run_id in queue.upcoming(LOOKED_AT):
        if run_id == run.run_id:
            return own, others, len(customers)
        customer = k.runs[run_id].customer_key
        if customer == run.customer_key:
            own += 1
        else:
            others += 1
            customers.add(customer)
    line = queue.resumed if run.resumed else queue.first
    own = max(own, line.of_customer(run.customer_key) - 1)
    others = max(others, min(len(line) - 1 - own, (own + 1) * (line.customer_count - 1)))
    return own, others, max(len(customers), line.customer_count - 1)


def _no_worker(k: Kernel, run: Run, now: int, *, asked_for: bool) -> Reason:
    if asked_for:
        lane = k.lanes[run.lane]
        return Reason(
            LaneBusy(lane.name, lane.limit, lane.running, []), "A slot is free; it starts at once."
        )
    if not k.may_take(run, "", now):
        return _other_worker(k, run, now)
    last = k.last_polls.get(run.queue, 0)
    when = f"the last one did {span(now - last)} ago" if last else "none has since the start"
    return Reason(
        NoWorker(run.queue, last),
        f"A slot is free, but no worker of queue {run.queue} asks for work ({when}).",
    )


def _other_worker(k: Kernel, run: Run, now: int) -> Reason:
    """A slot is free, but only one worker may take the run now, and that one does not ask."""
    if run.kept is not None:
        worker = run.kept.worker
        text = f"A slot is free; it goes on at worker {worker}, which keeps its process."
    else:
        worker = run.preferred_worker
        text = (
            f"A slot is free; it waits for worker {worker}, which holds what it needs. Others may "
            f"take it when that worker is silent for {span(PATIENCE)}."
        )
    return Reason(NoWorker(run.queue, k.last_calls.get((run.queue, worker), 0), worker), text)


def _ref(run: Run) -> Ref:
    return Ref(run.run_id, run.session_key, run.customer_key, run.label, run.state, run.state_time)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else text + "."


def span(us: int) -> str:
    """A length of time in microseconds, as people say it."""
    return said.span(us / SECOND)
