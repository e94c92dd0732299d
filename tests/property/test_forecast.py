"""A forecast says what the kernel would do with endless workers, provider limits included."""

from __future__ import annotations

import heapq
import itertools
from typing import Any

import hypothesis.strategies as st
import msgspec
from hypothesis import given, settings

from scheduler_svc.domain import admission, leasing, reserving, turns
from scheduler_svc.domain.arrivals import Burst, Chance, Draw, Listed, Message, Rate
from scheduler_svc.domain.distributions import Fixed, Percentiles, Samples
from scheduler_svc.domain.forecasting import Children, Load, simulate
from scheduler_svc.domain.kernel import Config, Kernel
from scheduler_svc.domain.leasing import Leased
from scheduler_svc.domain.limits import SHORT_WAIT, Outcome, ProviderRates
from scheduler_svc.domain.records import SECOND, AnnounceMode, NewRun, Run, Wait, WaitKind
from scheduler_svc.forecast.__main__ import dice
from tests.property.test_invariants import SCALE

ENDLESS = 10**15
# The kernel's clock never shows 0, which means "none" there.
EPOCH = 10**12


class Told(msgspec.Struct):
    """What happened, in the words of a `Tally`."""

    # (customer, start, wait), in the order of start.
    starts: list[tuple[str, int, int]] = []
    # (customer, end), in the order of end.
    ends: list[tuple[str, int]] = []
    completions: list[int] = []
    replies: dict[str, int] = {}
    turns: int = 0
    unfinished: int = 0
    waited: dict[str, int] = {}
    session_wait: int = 0
    peaks: dict[str, int] = {}


class Suite:
    """The real kernel, with a gateway and workers that play a load."""

    def __init__(self, load: Load, chance: Chance) -> None:
        self.load, self.chance = load, chance
        self.k = Kernel(
            Config(
                lanes=load.lanes,
                lease_ttl=ENDLESS,
                max_children=1000,
                max_descendants=1000,
                weights=dict(load.arrivals.weights),
                providers={"p": ProviderRates(load.requests_per_minute, load.tokens_per_minute)},
            )
        )
        self.limited = bool(load.requests_per_minute or load.tokens_per_minute)
        self.begun: dict[str, int] = {}  # run -> turns that did not only wait for the provider
        self.told = Told(waited=dict.fromkeys(load.lanes, 0), peaks=dict.fromkeys(load.lanes, 0))
        self.events: list[tuple[int, int, Any]] = []
        self.count = itertools.count()
        self.numbers: dict[str, int] = {}  # root run -> its number among the messages
        self.turn_times: dict[str, int] = {}
        self.own_times: dict[str, int] = {}
        self.arrived: dict[str, int] = {}

    def play(self) -> Told:
        leasing.greet(self.k, "agent", "w", 1, EPOCH)
        arrivals = list(self._messages())
        while arrivals or self.events or self.k.limits.next_time() is not None:
            due = [arrivals[0][0]] if arrivals else []
            due += [self.events[0][0]] if self.events else []
            granted = self.k.limits.next_time()
            due += [granted - EPOCH] if granted is not None else []
            now = min(due)
            while self.events and self.events[0][0] == now:
                self._end(heapq.heappop(self.events)[2], now)
            while arrivals and arrivals[0][0] == now:
                self._enqueue(arrivals.pop(0)[1], now)
            reserving.sweep(self.k, now + EPOCH)
            self._lease(now)
            for lane in self.k.lanes.values():
                self.told.peaks[lane.name] = max(self.told.peaks[lane.name], lane.waiting)
            self.k.take_changes()
        self.told.unfinished = len(self.k.runs)
        return self.told

    def _lease(self, now: int) -> None:
        if not self.limited:
            for leased in leasing.lease_ready(self.k, "agent", "w", 1, 10**6, now + EPOCH):
                self._begin(leased, now)
            return
        # As `lease_ready`, but every worker has asked for its model call, and has given its slot
        # back where it must wait, before the next one gets a run.
        while lanes := [lane for lane in self.k.lanes.values() if lane.free and lane.waiting]:
            for lane in lanes:
                run = self.k.runs[lane.queue("agent").pop()]
                self._begin(leasing._lease(self.k, run, "w", 1, now + EPOCH), now)

    def _messages(self) -> Any:
        arrivals = self.load.arrivals
        if isinstance(arrivals, Burst):
            for j, i in itertools.product(range(arrivals.messages), range(arrivals.customers)):
                yield 0, (str(i + 1), str(i + 1), 0, 0, i * arrivals.messages + j)
            return
        for number, a in enumerate(arrivals.play(self.chance)):
            session = a.session_key or a.customer_key
            yield a.at, (a.customer_key, session, a.priority, a.turn_time, number)

    def _enqueue(self, message: Any, now: int) -> None:
        customer, session, priority, turn_time, number = message
        run_id = f"m{number}"
        self.numbers[run_id], self.own_times[run_id] = number, turn_time
        self.arrived[run_id] = now
        admission.enqueue(
            self.k,
            new_run(run_id, session, customer, "main", priority),
            now + EPOCH,
            parent_lease=None,
        )

    def _begin(self, leased: Leased, now: int) -> None:
        run, children = leased.run, self.load.children
        grant = leased.grant
        if grant is None and self.limited:
            grant = reserving.reserve(
                self.k, self.k.runs[run.run_id], f"{run.run_id}/{run.turn}", provider_id="p",
                credential_id="", model="", tokens=self.load.tokens_per_turn, cost=0,
                now=now + EPOCH,
            )  # fmt: skip
        if grant is not None and grant.delay > SHORT_WAIT:
            wait = Wait(kind=WaitKind.LIMIT, name="p", reservation=grant.reservation_id)
            turns.suspend(
                self.k, run.run_id, leased.lease.token, "", wait=wait, hold_lane=True,
                interim=b"", taken=[], now=now + EPOCH,
            )  # fmt: skip
            return
        start = now + grant.delay if grant is not None else now
        self.told.turns += 1
        self.begun[run.run_id] = turn = self.begun.get(run.run_id, 0) + 1
        if run.depth:
            assert children is not None
            parent = self.numbers[run.parent_id]
            index = int(run.run_id.rpartition("/")[2])
            time = children.time.at(self.chance(Draw.CHILD, parent * children.per_turn + index))
        elif turn == 1:
            number = self.numbers[run.run_id]
            time = self.own_times[run.run_id] or self.load.turn_time.at(
                self.chance(Draw.TURN, number)
            )
            waited = start - self.arrived[run.run_id]
            self.told.starts.append((run.customer_key, start, waited))
        else:
            assert children is not None
            assert children.closing_time is not None
            time = children.closing_time.at(
                self.chance(Draw.CLOSING_TURN, self.numbers[run.run_id])
            )
        reservation = grant.reservation_id if grant is not None else ""
        event = (start + time, next(self.count), (leased, reservation))
        heapq.heappush(self.events, event)

    def _end(self, ended_turn: tuple[Leased, str], now: int) -> None:
        leased, reservation = ended_turn
        if reservation:
            tokens = self.load.tokens_per_turn
            reserving.settle(self.k, reservation, "p", Outcome.ANSWERED, tokens, 0, now + EPOCH)
        run, token, children = leased.run, leased.lease.token, self.load.children
        if not run.depth and self.begun[run.run_id] == 1 and children is not None:
            for index in range(children.per_turn):
                admission.enqueue(
                    self.k,
                    new_run(f"{run.run_id}/{index}", "", "", children.lane, 0),
                    now + EPOCH,
                    parent_lease=(run.run_id, token),
                    tool_call_id=str(index),
                )
            if not children.background:
                wait = Wait(kind=WaitKind.CHILDREN)
                turns.suspend(
                    self.k, run.run_id, token, "", wait=wait, hold_lane=True, interim=b"",
                    taken=[], now=now + EPOCH,
                )  # fmt: skip
                return
        ended: Run = turns.complete(
            self.k, run.run_id, token, "", result=None, reply=None, mode=AnnounceMode.ALL,
            taken=[], steered_is_next_prompt=False, now=now + EPOCH,
        )  # fmt: skip
        if not ended.depth:
            self.told.replies.setdefault(ended.customer_key, now)
        if ended.terminal:
            self.told.waited[ended.lane] += ended.global_wait
            self.told.session_wait += ended.session_wait
            if not ended.depth:
                self.told.ends.append((ended.customer_key, now))
                self.told.completions.append(now - self.arrived[ended.run_id])


def new_run(run_id: str, session: str, customer: str, lane: str, priority: int) -> NewRun:
    return NewRun(
        run_id=run_id,
        request_id=run_id,
        body_hash=b"",
        session_key=session,
        customer_key=customer,
        queue="agent",
        lane=lane,
        priority=priority,
        lane_cap=ENDLESS,
    )


def forecast(load: Load, chance: Chance) -> Told:
    tally = simulate(load, chance)
    arrivals = load.arrivals
    names = (
        arrivals.keys()
        if isinstance(arrivals, Listed)
        else [str(i + 1) for i in range(len(tally.arrival))]
    )
    told = Told(
        turns=tally.turns,
        unfinished=tally.unfinished,
        waited={use.lane.name: use.waited for use in tally.lanes},
        session_wait=tally.session_wait,
        peaks={use.lane.name: use.peak_waiting for use in tally.lanes},
        replies={names[i]: time for i, time in enumerate(tally.reply) if time >= 0},
    )
    told.starts = [(names[i], tally.start[i], 0) for i in tally.by_start() if tally.start[i] >= 0]
    told.ends = [(names[i], time) for i, time in enumerate(tally.end) if time >= 0]
    return told


seconds = st.integers(1, 6).map(lambda n: n * SECOND)
times = st.one_of(
    seconds.map(Fixed),
    st.tuples(seconds, seconds, seconds, seconds).map(lambda t: Percentiles(*sorted(t))),
    st.lists(seconds, min_size=1, max_size=4).map(lambda t: Samples(sorted(t))),
)
messages = st.builds(
    Message,
    at=st.integers(0, 12).map(lambda n: n * SECOND),
    customer_key=st.sampled_from("abc"),
    session_key=st.sampled_from("rstu"),
    weight=st.integers(1, 3),
    priority=st.integers(-4, 4),
    turn_time=st.just(0) | seconds,
)
arrivals = st.one_of(
    st.builds(Burst, st.integers(1, 8), st.integers(1, 4)),
    st.builds(
        Rate, st.floats(0.1, 3.0), st.integers(1, 8).map(lambda n: n * SECOND), st.booleans()
    ),
    st.lists(messages, min_size=1, max_size=16).map(Listed),
)
children = st.none() | st.builds(
    Children,
    per_turn=st.integers(1, 3),
    time=times,
    background=st.booleans(),
    closing_time=times,
    lane=st.sampled_from(["subagent", "main"]),
)
loads = st.builds(
    Load,
    arrivals=arrivals,
    turn_time=times,
    lanes=st.fixed_dictionaries({"main": st.integers(0, 3), "subagent": st.integers(0, 3)}),
    children=children,
    requests_per_minute=st.sampled_from([0, 0, 12, 25, 200]),
    tokens_per_minute=st.sampled_from([0, 0, 2_000, 20_000]),
    tokens_per_turn=st.sampled_from([1, 90, 400]),
)


@settings(max_examples=150 * SCALE, deadline=None)
@given(load=loads, seed=st.integers(-(2**63), 2**63 - 1))
def test_a_forecast_gives_the_times_of_the_kernel(load: Load, seed: int) -> None:
    chance = dice(seed)
    real, told, tally = Suite(load, chance).play(), forecast(load, chance), simulate(load, chance)
    assert told.turns == real.turns
    assert told.unfinished == real.unfinished
    assert told.replies == real.replies
    assert told.peaks == real.peaks
    first: dict[str, int] = {}
    for customer, start, _ in real.starts:
        first.setdefault(customer, start)
    assert {customer: start for customer, start, _ in told.starts} == first
    assert [start for _, start, _ in told.starts] == sorted(first.values())
    assert list(tally.waits) == [wait for _, _, wait in real.starts]
    # Flows that end at the same instant may do so in any order.
    assert sorted(tally.completions) == sorted(real.completions)
    last = dict(real.ends)
    assert all(last[customer] == end for customer, end in told.ends)
    if not real.unfinished:
        assert dict(told.ends) == last
        assert told.waited == real.waited
        assert told.session_wait == real.session_wait
