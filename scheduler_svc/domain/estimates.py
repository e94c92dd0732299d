"""When a waiting run should start, from what executes, what waits, and how long turns take.

Where little is in line (`near`), its global lane is played forward by the rules that `ReadyQueue`
follows: executing turns end when turns like them do, runs that wait for children come back, and the
next in a session joins the line when the one before it has ended. With turn times as expected and
without new arrivals that is exact. Where much is in line it is worked out from counts, so that an
estimate costs no more with 100,000 runs in line than with a hundred.

A provider limit is no obstacle to a start: a run that has to wait for one does so without a slot,
once it has begun. It comes back at its reserved time.

Nobody knows when a run starts in a lane that is paused, behind a run that waits for a person, or
while no worker asks for work: then there is no estimate.

Not looked at: runs of another queue that share the lane's slots, how many slots workers have, and
pauses between attempts of other sessions. They are seldom, and each new estimate corrects the last.
"""

from __future__ import annotations

import heapq
from itertools import islice
from math import sqrt
from typing import NamedTuple

import msgspec

from scheduler_svc.domain import asking
from scheduler_svc.domain.kernel import Kernel
from scheduler_svc.domain.lanes import RESUMED_BEFORE_FIRST, GlobalLane, ReadyQueue, Session
from scheduler_svc.domain.records import (
    SECOND,
    AnnounceMode,
    ResumeReason,
    Resumption,
    Run,
    RunState,
    Wait,
    WaitKind,
)
from scheduler_svc.domain.turntimes import Assumed, Times, TurnKind, closing, kind_of

# Up to so many executing, ready and suspended runs of the lane it is played forward.
NEAR = 48
# With more slots than this, when they end is worked out anew only after so many microseconds for
# each: about one percent of a processor.
FEW_SLOTS = 16
KEPT_PER_SLOT = 200
# With more than this they are taken to free up evenly.
MOST_SLOTS = 1024
# Children that are looked at one by one.
MOST_CHILDREN = 20
# A worker with a free slot asks again at least this often.
LONGEST_POLL = 60 * SECOND
# What is told of a waiting run again: not sooner than this, and when its start moved by more than a
# fifth of what is left, within these bounds.
TELLING_PAUSE = 2 * SECOND
LEAST_MOVE, MOST_MOVE = SECOND // 2, 2 * SECOND
# Nine in ten of a normal distribution are below so many deviations.
NINE_IN_TEN = 1.2816


class Estimate(msgspec.Struct, frozen=True):
    """Where a run stands. Times are microseconds; a `start` of 0 means that there is no estimate.

    `position` is 0 for a run that does not wait; else 1 plus the runs that wait now and should
    start before, but later than now: whoever takes a slot at once is not in line any more.
    """

    position: int = 0
    session_ahead: int = 0
    global_ahead: int = 0
    start: int = 0
    start_p90: int = 0
    basis: Times | Assumed | None = None
    # What the suspended run that holds the session lane waits for.
    session_wait: Wait | None = None


class _Start(NamedTuple):
    """When a run starts, behind how many others, and after how many turns have ended.

    `at_once` are runs of its own session that start now.
    """

    time: int
    ahead: int
    turns: int
    at_once: int = 0


def estimate(k: Kernel, run: Run, now: int, *, near: int = NEAR) -> Estimate:
    """When and behind whom a run should start. Costs O(slots + min(line, `near`))."""
    if run.state is not RunState.QUEUED:
        # One that a message was steered to: nothing wakes it but what it waits for.
        waits = run.wait is not None and run.wait.kind is not WaitKind.CHILDREN
        return Estimate(session_wait=run.wait if waits else None)
    session, lane = k.sessions[run.session_key], k.lanes[run.lane]
    holder = k.runs.get(session.holder) if session.holder != run.run_id else None
    session_ahead = session.ahead_of(run)
    # Those that only wait start before; the one that executes has started.
    before = session_ahead - (holder is not None and holder.lease is not None)
    wait = asking.lane_wait(k, holder) if holder is not None else None
    queue = lane.queue(run.queue)
    found: _Start | None
    if session.ready == run.run_id and 0 < lane.free >= lane.waiting:
        found = _Start(now, 0, 0)
    elif not lane.limit or session_ahead > near or _in_line(k, lane) > near:
        found = _far(k, run, session, lane, queue, session_ahead, now)
    else:
        play = _Play(k, run, now, near)
        found = play.until_start()
        if found is None and play.too_long:
            found = _far(k, run, session, lane, queue, session_ahead, now)
    if found is None or not lane.limit or _deserted(k, run, now):
        ahead = found.ahead if found is not None else max(0, len(queue) - lane.free)
        return Estimate(1 + before + ahead, session_ahead, ahead, session_wait=wait)
    basis = k.expected_turn(kind_of(run), run.lane)
    start = max(found.time, now)
    return Estimate(
        position=1 + before - found.at_once + found.ahead,
        session_ahead=session_ahead,
        global_ahead=found.ahead,
        start=start,
        start_p90=start + _spread(basis, found.turns, lane.limit),
        basis=basis,
        session_wait=wait,
    )


def _deserted(k: Kernel, run: Run, now: int) -> bool:
    """True when nobody serves the run's queue: no worker has a run of its lane, none asks."""
    return not k.executing.get(run.lane) and now > k.last_polls.get(run.queue, 0) + LONGEST_POLL


def moved(before: Estimate, told_at: int, after: Estimate, now: int) -> bool:
    """True when a run stands so much elsewhere than was told at `told_at` that it is told again."""
    if now < told_at + TELLING_PAUSE:
        return False
    if before.position != after.position or bool(before.start) != bool(after.start):
        return True
    old, new = before.session_wait, after.session_wait
    if (old.kind if old is not None else None) != (new.kind if new is not None else None):
        return True
    left = max(0, before.start - now)
    return abs(after.start - before.start) > min(MOST_MOVE, max(LEAST_MOVE, left // 5))


def _in_line(k: Kernel, lane: GlobalLane) -> int:
    return lane.running + lane.waiting + lane.suspended


def _spread(basis: Times | Assumed, turns: int, slots: int) -> int:
    """How much later than expected nine in ten runs start, after so many turns have ended.

    Turns that end one after the other add up their variances; several slots share them. On top, the
    expected turn time itself is only as sure as the turns that it comes from are many.
    """
    waves = turns / slots
    turn = basis.deviation * sqrt(waves / slots)
    mean = basis.deviation * waves / sqrt(max(1, basis.samples))
    return round(NINE_IN_TEN * sqrt(turn * turn + mean * mean))


def back_at(k: Kernel, run: Run, now: int) -> int | None:
    """When a suspended run should come back to its lane; `None` when nobody can know."""
    wait = run.wait
    if wait is None:
        return None
    if wait.kind is WaitKind.CHILDREN:
        live = [child for child in wait.run_ids if child in run.live]
        back = _settled_at(k, live, wait.mode, now)
        return min(back, wait.expire_time) if wait.expire_time else back
    call = k.limits.reservations.get(wait.reservation)
    if call is not None:
        return max(now, call.time)
    return max(now, wait.expire_time) if wait.expire_time else None


def _settled_at(k: Kernel, children: list[str], mode: AnnounceMode, now: int) -> int:
    ends = [_ends_at(k, k.runs[child], now) for child in children[:MOST_CHILDREN]]
    if not ends:
        return now
    return min(ends) if mode is AnnounceMode.EACH else max(ends)


def _ends_at(k: Kernel, run: Run, now: int) -> int:
    turn = k.expected_turn(kind_of(run), run.lane)
    if run.lease is not None:
        return now + _left(run, turn, now)
    lane = k.lanes[run.lane]
    if run.state is RunState.QUEUED and lane.limit:
        waves = max(0, lane.waiting - lane.free) / lane.limit
        return now + round((1 + waves) * turn.mean)
    return now + turn.mean


def _left(run: Run, turn: Times | Assumed, now: int) -> int:
    """What a turn that executes still takes. One that is being stopped ends once it hears of it."""
    if run.stopping or run.lease is None:
        return 0
    return turn.left(now - run.lease.lease_time)


# -- Near: the lane played forward ----------------------------------------------------------------


class _Turn:
    """Turns of one kind: how long they take, and how many are followed by a wait for children."""

    __slots__ = ("due", "kind", "mean", "share", "times")

    def __init__(self, k: Kernel, kind: TurnKind, lane: str) -> None:
        self.kind = kind
        self.times = k.expected_turn(kind, lane)
        self.mean = self.times.mean
        self.share = k.turn_times.waits(kind)
        # Grows by the share with every turn; at 1 the next wait is due.
        self.due = 0.5


# The number keeps what happens at the same time in order. With a turn it ends, without one the run
# joins the line.
_Event = tuple[int, int, Run, _Turn | None]


class _Play:
    """The global lane of a run, played forward until the run starts."""

    def __init__(self, k: Kernel, wanted: Run, now: int, most: int) -> None:
        self._k = k
        self._wanted = wanted
        self._now = self._time = now
        self._most = most
        # It was given up: more would have to be played than pays.
        self.too_long = False
        lane = k.lanes[wanted.lane]
        self._free = lane.limit - lane.running
        self._queue = lane.queue(wanted.queue).copy()
        self._events: list[_Event] = []
        self._count = 0
        self._turns: dict[tuple[str, int, bool], _Turn] = {}
        # Runs as they will be when they come back from a wait.
        self._resumed: dict[str, Run] = {}
        # Session -> the run whose turn it is, and those behind it, the next one last. What is not
        # here is as in the kernel.
        self._front: dict[str, str] = {}
        self._behind: dict[str, list[str]] = {}
        for run_id in k.executing.get(wanted.lane, ()):
            run = k.runs[run_id]
            turn = self._turn(run)
            self._at(now + _left(run, turn.times, now), run, turn)
        for run_id in k.suspended.get(wanted.lane, ()):
            run = k.runs[run_id]
            back = back_at(k, run, now)
            if back is not None:
                self._at(back, _after_wait(run))
        self._own_session()

    def _own_session(self) -> None:
        # What the lane does not show: the session's next run pauses, or is of another lane.
        k, session = self._k, self._k.sessions[self._wanted.session_key]
        head = k.runs.get(session.next_run())
        if head is None or session.ready == head.run_id:
            return
        if head.lane != self._wanted.lane:
            self._at(_ends_at(k, head, self._now), head, self._turn(head))
        elif head.state is RunState.QUEUED:
            self._at(max(head.ready_time, self._now), head)

    def _turn(self, run: Run) -> _Turn:
        key = (run.estimate_key, run.depth, run.resumption is None and not run.told)
        turn = self._turns.get(key)
        if turn is None or not key[2]:  # later turns are of several kinds
            turn = _Turn(self._k, kind_of(run), run.lane)
            turn = self._turns.setdefault(
                (run.estimate_key, run.depth, not turn.kind.closing), turn
            )
        return turn

    def _at(self, time: int, run: Run, turn: _Turn | None = None) -> None:
        self._count += 1
        heapq.heappush(self._events, (time, self._count, run, turn))

    def until_start(self) -> _Start | None:
        """The start; `None` when it never comes, or not after `most` others (`too_long`)."""
        wanted, turns, at_once = self._wanted, 0, 0
        ahead: set[str] = set()
        for _ in range(4 * self._most):
            while self._free > 0 and (run_id := self._queue.pop()):
                if run_id == wanted.run_id:
                    return _Start(self._time, len(ahead), turns, at_once)
                run = self._resumed.get(run_id) or self._k.runs[run_id]
                if run.session_key == wanted.session_key:
                    at_once += self._time == self._now
                elif self._time > self._now and self._k.runs[run_id].state is RunState.QUEUED:
                    ahead.add(run_id)
                self._free -= 1
                turn = self._turn(run)
                self._at(self._time + turn.mean, run, turn)
            if not self._events:
                return None
            self._time = self._events[0][0]
            while self._events and self._events[0][0] == self._time:
                _, _, run, ending = heapq.heappop(self._events)
                if ending is None:
                    self._joins(run)
                    continue
                if run.lane == wanted.lane:
                    self._free += 1
                    turns += 1
                self._ends(run, ending)
        self.too_long = True
        return None

    def _joins(self, run: Run) -> None:
        key = run.session_key
        self._resumed[run.run_id] = run
        front = self._front.get(key)
        if front is None:
            front = self._k.sessions[key].next_run()
        if front and front != run.run_id:
            self._line_behind(key, front).append(run.run_id)
            return
        self._front[key] = run.run_id
        self._queue.push(run)

    def _ends(self, run: Run, turn: _Turn) -> None:
        k = self._k
        if (turn.share or run.live) and not run.stopping:
            turn.due += 1.0 if run.live else turn.share
            if turn.due >= 1.0:
                turn.due -= 1.0
                self._at(self._time + self._away(run, turn.kind), _after_wait(run))
                return
        key = run.session_key
        behind = self._behind.get(key)
        if behind is None:
            if k.sessions[key].unfinished == 1:
                self._front[key] = ""
                return
            behind = self._line_behind(key, run.run_id)
        self._front[key] = following = behind.pop() if behind else ""
        if not following:
            return
        after = self._resumed.get(following) or k.runs[following]
        if after.lane != self._wanted.lane:
            turn = self._turn(after)
            self._at(self._time + turn.mean, after, turn)
        elif after.ready_time > self._time:
            self._at(after.ready_time, after)
        else:
            self._queue.push(after)

    def _line_behind(self, key: str, front: str) -> list[str]:
        behind = self._behind.get(key)
        if behind is None:
            session = self._k.sessions[key]
            behind = self._behind[key] = [r for r in session.line() if r != front][::-1]
        return behind

    def _away(self, run: Run, kind: TurnKind) -> int:
        if run.live:
            settled = _settled_at(self._k, run.live, AnnounceMode.ALL, self._now)
            return max(0, settled - self._time)
        away = self._k.turn_times.away(kind)
        return away.mean if away is not None else 0


def _after_wait(run: Run) -> Run:
    """The run as it joins the line again: its next turn is a closing one, and it knows no more of
    its children."""
    wait = run.wait
    if wait is not None and wait.kind is not WaitKind.CHILDREN:
        reason = ResumeReason.LIMIT_GRANTED
    else:
        reason, wait = ResumeReason.CHILDREN_SETTLED, None
    return msgspec.structs.replace(
        run, turn=run.turn or 1, live=[], resumption=Resumption(reason=reason, wait=wait)
    )


# -- Far: worked out from counts ------------------------------------------------------------------


def _far(
    k: Kernel,
    run: Run,
    session: Session,
    lane: GlobalLane,
    queue: ReadyQueue,
    session_ahead: int,
    now: int,
) -> _Start | None:
    kind = kind_of(run)
    turn = k.expected_turn(kind, run.lane).mean
    # What a customer's turn costs the lane: closing turns are part of it.
    share = k.turn_times.waits(kind)
    cost = turn + round(share * k.expected_turn(closing(kind), run.lane).mean) if share else turn
    if session.next_run() == run.run_id:
        ahead = max(0, _ready_ahead(run, queue) - lane.free)
        turns = ahead + (not lane.free or ahead > 0)
        start = max(run.ready_time, _freed(k, lane, turns, cost, now))
        return _Start(start, ahead, turns)
    # One round per run ahead in the session: it executes, then its customer's turn comes again.
    head = k.runs[session.next_run()]
    begin = now
    if head.lease is None:
        back = back_at(k, head, now) if head.wait is not None else max(now, head.ready_time)
        if back is None:
            return None
        ahead = max(0, len(queue) and _ready_ahead(head, queue) - lane.free)
        begin = max(back, _freed(k, lane, ahead + (not lane.free), cost, now)) + turn
    else:
        begin = _ends_at(k, head, now)
    rivals = 0 if lane.free else _rivals(k, run, lane, queue)
    round_time = max(turn, rivals * cost // max(1, lane.limit))
    # Those that compete now may soon be done; after all unfinished work it is the last one.
    all_work = (len(k.runs) - lane.suspended) * cost // max(1, lane.limit)
    start = min(begin + session_ahead * round_time - turn, now + all_work)
    ahead = min(len(k.runs) - 1 - session_ahead, session_ahead * max(0, rivals - 1))
    return _Start(max(begin, start), ahead, session_ahead + ahead)


def _rivals(k: Kernel, run: Run, lane: GlobalLane, queue: ReadyQueue) -> int:
    """How many turns the lane serves for each of the run's session, while all go on as now."""
    first = queue.first
    customers = first.customer_count
    for run_id in islice(k.executing.get(lane.name, ()), FEW_SLOTS):
        other = k.runs[run_id]
        if not first.of_customer(other.customer_key):
            customers += k.sessions[other.session_key].unfinished > 1
    return customers * max(1, first.of_customer(run.customer_key))


def _ready_ahead(run: Run, queue: ReadyQueue) -> int:
    """How many ready runs go before one that is the last of its customer in line."""
    own = queue.resumed if run.resumed else queue.first
    mine = max(1, own.of_customer(run.customer_key))
    ahead = max(0, min(len(own) - 1, mine * own.customer_count - 1))
    if run.resumed:
        return ahead + min(len(queue.first), ahead // RESUMED_BEFORE_FIRST)
    return ahead + min(len(queue.resumed), (ahead + 1) * RESUMED_BEFORE_FIRST)


def _freed(k: Kernel, lane: GlobalLane, turns: int, cost: int, now: int) -> int:
    """When so many slots have been freed, counted from now, if each is taken again at once."""
    if turns <= 0:
        return now
    if not lane.limit or max(lane.limit, lane.running) > MOST_SLOTS:
        return now + turns * cost // max(1, lane.limit)
    ends = _ends(k, lane, now)
    if lane.free:  # taken at once
        ends = sorted([now + cost] * lane.free + ends)
    # After lowering the limit, the first to end free no slot.
    spare = max(0, len(ends) - lane.limit)
    waves, place = divmod(turns - 1, len(ends) - spare)
    return max(now, ends[spare + place]) + waves * cost


def _ends(k: Kernel, lane: GlobalLane, now: int) -> list[int]:
    """When the executing turns of a lane should end, in order."""
    kept = k.lane_ends.get(lane.name)
    if (
        kept is not None
        and len(kept[1]) == lane.running > FEW_SLOTS
        and 0 <= now - kept[0] < lane.running * KEPT_PER_SLOT
    ):
        return kept[1]
    ends = []
    for run_id in k.executing.get(lane.name, ()):
        run = k.runs[run_id]
        ends.append(now + _left(run, k.expected_turn(kind_of(run), run.lane), now))
    ends.sort()
    k.lane_ends[lane.name] = (now, ends)
    return ends
