"""When model calls may go: what a minute sees, whose turn it is, what a refusal changes."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler_svc.domain.limits import (
    MINUTE,
    PATIENCE,
    SHORT_WAIT,
    SLACK,
    Limiter,
    LimiterState,
    Limits,
    Outcome,
    Phase,
    ProviderRates,
    Reservation,
)
from scheduler_svc.domain.records import SECOND

START = 1_700_000_000 * SECOND


class World:
    """A limiter with everybody who uses it, on a clock of its own.

    `starts` are (time, tokens used) as the provider sees them.
    """

    def __init__(self, rates: ProviderRates) -> None:
        self.rates = rates
        self.limiter = Limiter("p/", rates)
        self.now = START
        self.calls: dict[str, Reservation] = {}
        self.granted: list[str] = []
        self.starts: list[tuple[int, int]] = []
        self.order: list[int] = []

    def ask(self, tokens: int = 1, used: int | None = None) -> Reservation:
        number = len(self.calls) + 1
        call = Reservation(id=f"c{number}", limiter="p/", number=number, tokens=tokens)
        self.calls[call.id] = call
        self.limiter.reserve(call, self.now)
        if call.phase is Phase.GRANTED:
            self.go(call, used)
        return call

    def go(self, call: Reservation, used: int | None = None) -> None:
        self.starts.append((call.time, call.tokens if used is None else used))
        self.order.append(call.number)
        self.granted.append(call.id)

    def pass_time(self, span: int) -> None:
        """Time passes; whoever's time comes is woken and starts at once."""
        end = self.now + span
        while (time := self.limiter.next_time()) is not None and time <= end:
            self.now = max(self.now, time)
            call = self.limiter.release(self.now)
            assert call is not None
            self.limiter.start(call, self.now)
            self.go(call)
        self.now = end

    def restart(self, jump: int = 0) -> None:
        """The scheduler starts again from what it stored, perhaps by another clock."""
        self.now += jump
        state = msgspec.json.decode(msgspec.json.encode(self.limiter.state), type=LimiterState)
        waiting = sorted(self.limiter.waiting.values(), key=lambda call: call.number)
        self.limiter = Limiter("p/", self.rates, state)
        self.limiter.settle_after_restart(self.now)
        for call in waiting:
            self.limiter.put_in_line(call, self.now)

    def most_in_a_minute(self) -> tuple[int, int]:
        """(requests, tokens) of the fullest 60 s, wherever they begin."""
        found = [(0, 0)]
        starts = sorted(self.starts)
        for index, (begin, _) in enumerate(starts):
            inside = [n for time, n in starts[index:] if time < begin + 60 * SECOND]
            found.append((len(inside), sum(inside)))
        return max(r for r, _ in found), max(t for _, t in found)


steps = st.lists(
    st.tuples(
        st.sampled_from(["ask", "wait", "report", "drop"]),
        st.integers(1, 400),
        st.integers(0, 40 * SECOND),
    ),
    max_size=120,
)


@settings(deadline=None, max_examples=200)
@given(rpm=st.integers(1, 120), steps=steps)
def test_no_minute_sees_more_requests_than_the_limit(
    rpm: int, steps: list[tuple[str, int, int]]
) -> None:
    world = World(ProviderRates(requests_per_minute=rpm))
    for what, size, span in steps:
        match what:
            case "ask":
                for _ in range(size % 20 + 1):
                    world.ask()
            case "wait":
                world.pass_time(span)
            case "drop":
                for call_id in list(world.limiter.waiting)[: size % 3]:
                    world.limiter.drop(call_id)
            case _:
                if world.granted:
                    call = world.calls[world.granted.pop()]
                    world.limiter.report(call, Outcome.ANSWERED, 1, 0, world.now)
    assert world.most_in_a_minute()[0] <= rpm
    assert world.order == sorted(world.order), "nobody overtakes"


@settings(deadline=None, max_examples=200)
@given(tpm=st.integers(100, 10_000), steps=steps)
def test_no_minute_sees_more_tokens_than_the_limit(
    tpm: int, steps: list[tuple[str, int, int]]
) -> None:
    world = World(ProviderRates(tokens_per_minute=tpm))
    largest = 0
    for what, size, span in steps:
        if what == "ask":
            largest = max(largest, size)
            world.ask(size)
        elif what == "wait":
            world.pass_time(span)
    assert world.most_in_a_minute()[1] <= max(tpm, 0.9 * tpm + largest)
    assert world.order == sorted(world.order)


@settings(deadline=None, max_examples=100)
@given(
    rpm=st.integers(1, 60),
    asked=st.integers(1, 60),
    lives=st.lists(st.tuples(st.integers(0, 90 * SECOND), st.integers(0, 7200)), max_size=4),
)
def test_a_restart_never_gives_a_minute_more_than_the_limit(
    rpm: int, asked: int, lives: list[tuple[int, int]]
) -> None:
    """Whatever the clock says afterwards: seen by a clock that was not moved, the limit holds."""
    world = World(ProviderRates(requests_per_minute=rpm))
    for _ in range(asked):
        world.ask()
    moved = 0
    for span, jump in lives:
        world.pass_time(span)
        seconds = (jump - 3600) * SECOND
        world.restart(seconds)
        # What was seen so far, told by the clock of this life.
        world.starts = [(time + seconds, n) for time, n in world.starts]
        moved += seconds
        waits = world.limiter.next_time()
        if waits is not None:
            assert waits >= world.now + world.limiter.requests.cost(1)  # type: ignore[union-attr]
            assert waits <= world.now + MINUTE, "a clock that went back stops nobody for long"
    world.pass_time(asked * MINUTE)
    assert world.most_in_a_minute()[0] <= rpm
    assert not world.limiter.waiting, "all go in the end"


def test_calls_are_spaced_and_told_their_time() -> None:
    world = World(ProviderRates(requests_per_minute=15))
    calls = [world.ask() for _ in range(4)]
    interval = MINUTE // 15
    assert [call.time - START for call in calls] == [i * interval for i in range(4)]
    assert [call.phase for call in calls] == [Phase.GRANTED] + 3 * [Phase.WAITING]
    assert {call.limit for call in calls[1:]} == {"requests_per_minute"}
    world.pass_time(MINUTE)
    assert [time - START for time, _ in world.starts] == [i * interval for i in range(4)]


def test_a_short_wait_is_slept_and_a_longer_one_stands_in_line() -> None:
    world = World(ProviderRates(requests_per_minute=120))
    calls = [world.ask() for _ in range(4)]
    assert [call.phase for call in calls[:2]] == [Phase.GRANTED] * 2
    assert calls[1].time - START == MINUTE // 120 <= SHORT_WAIT
    assert calls[2].phase is Phase.WAITING
    assert calls[3].phase is Phase.WAITING, "it does not overtake"


def test_what_was_not_used_makes_the_line_faster() -> None:
    world = World(ProviderRates(tokens_per_minute=6000))
    first = world.ask(5000)
    second = world.ask(1000)
    before = world.limiter.next_time()
    world.limiter.report(first, Outcome.ANSWERED, 50, 0, START)
    after = world.limiter.next_time()
    assert second.phase is Phase.WAITING
    assert before is not None
    assert after is not None
    assert before - after == world.limiter.tokens.cost(4950)  # type: ignore[union-attr]


def test_a_429_stops_everything_and_then_one_probe_goes() -> None:
    world = World(ProviderRates(requests_per_minute=60))
    first = world.ask()
    waiting = [world.ask() for _ in range(4)]
    world.pass_time(2 * SECOND)
    assert world.order == [1, 2]
    world.limiter.report(first, Outcome.THROTTLED, 0, 10 * SECOND, world.now)
    stopped = world.now
    world.pass_time(9 * SECOND)
    assert world.order == [1, 2]
    world.pass_time(60 * SECOND)
    assert world.order == [1, 2, 3], "one probe, and nobody before it is answered"
    assert world.starts[-1][0] == stopped + 10 * SECOND
    late = world.ask()
    assert late.phase is Phase.WAITING
    world.limiter.report(waiting[1], Outcome.ANSWERED, 1, 0, world.now)
    world.pass_time(60 * SECOND)
    assert world.order == [1, 2, 3, 4, 5, 6]


def test_a_probe_that_is_refused_too_cools_down_for_longer() -> None:
    world = World(ProviderRates())
    world.limiter.report(None, Outcome.THROTTLED, 0, 0, world.now)
    pauses = []
    for _ in range(7):
        pauses.append(world.limiter.state.cool_until - world.now)
        call = world.ask()
        world.pass_time(pauses[-1])
        assert world.granted[-1] == call.id
        world.limiter.report(call, Outcome.THROTTLED, 0, 0, world.now)
    assert [pause // SECOND for pause in pauses] == [2, 4, 8, 16, 32, 60, 60]


def test_calls_that_were_refused_together_are_one_refusal() -> None:
    world = World(ProviderRates())
    for _ in range(5):
        world.limiter.report(None, Outcome.THROTTLED, 0, SECOND, world.now)
        world.pass_time(SECOND // 100)
    assert world.limiter.state.throttles == 1
    assert world.limiter.state.cool_until <= START + 2 * SECOND


def test_a_probe_that_nobody_reports_gives_its_place_to_the_next() -> None:
    world = World(ProviderRates(requests_per_minute=60))
    world.limiter.report(None, Outcome.THROTTLED, 0, 5 * SECOND, world.now)
    lost, following = world.ask(), world.ask()
    world.pass_time(20 * SECOND)
    assert world.granted == [lost.id]
    world.limiter.abandon(lost)
    world.pass_time(0)
    assert world.granted == [lost.id, following.id]


def test_an_old_answer_ends_no_cool_down() -> None:
    world = World(ProviderRates())
    old, refused = world.ask(), world.ask()
    world.limiter.report(refused, Outcome.THROTTLED, 0, SECOND, world.now)
    world.pass_time(2 * SECOND)
    world.limiter.report(old, Outcome.ANSWERED, 1, 0, world.now)
    probe, following = world.ask(), world.ask()
    assert probe.phase is Phase.GRANTED
    assert following.phase is Phase.WAITING


def test_trouble_pauses_only_when_it_repeats() -> None:
    world = World(ProviderRates())
    for _ in range(4):
        world.limiter.report(None, Outcome.UNAVAILABLE, 0, 0, world.now)
    assert world.limiter.state.cool_until == 0
    world.limiter.report(None, Outcome.UNAVAILABLE, 0, 0, world.now)
    assert world.limiter.state.cool_until == world.now + SECOND
    world.pass_time(SECOND)
    calls = [world.ask() for _ in range(3)]
    assert {call.phase for call in calls} == {Phase.GRANTED}, "no probe: its end shows by itself"
    world.limiter.report(calls[0], Outcome.ANSWERED, 1, 0, world.now)
    assert world.limiter.state.troubles == 0


@pytest.mark.parametrize("late", [SLACK + 1, 3 * SECOND, 500 * SECOND])
def test_a_late_start_moves_what_follows(late: int) -> None:
    """The run waited for a slot: its call goes now, and the next one an interval after it."""
    world = World(ProviderRates(requests_per_minute=15))
    world.ask()
    second, third = world.ask(), world.ask()
    time = world.limiter.next_time()
    assert time is not None
    granted = world.limiter.release(time)
    assert granted is second
    world.limiter.start(second, time + late)
    assert (second.phase, second.time) == (Phase.GRANTED, time + late)
    assert world.limiter.next_time() == time + late + MINUTE // 15
    assert third.phase is Phase.WAITING


def test_starts_that_are_late_together_are_spaced_again() -> None:
    world = World(ProviderRates(requests_per_minute=15))
    world.ask()
    calls = [world.ask() for _ in range(3)]
    interval = MINUTE // 15
    for _ in calls:
        time = world.limiter.next_time()
        assert time is not None
        world.limiter.release(time)
    now = START + 60 * SECOND
    for call in calls:
        world.limiter.start(call, now)
    # The newest grant is moved; the others go in line again, in their order.
    assert calls[2].phase is Phase.GRANTED or calls[0].phase is Phase.GRANTED
    times = [call.time for call in calls if call.phase is Phase.GRANTED]
    while world.limiter.waiting:
        time = world.limiter.next_time()
        assert time is not None
        released = world.limiter.release(time)
        assert released is not None
        times.append(released.time)
    assert len(times) == 3
    assert all(b - a >= interval for a, b in itertools.pairwise(times))


def test_a_call_that_was_never_sent_gives_its_place_back() -> None:
    world = World(ProviderRates(requests_per_minute=15, tokens_per_minute=10_000))
    call = world.ask(9000)
    world.limiter.report(call, Outcome.NOT_SENT, 0, 0, world.now)
    again = world.ask(9000)
    assert (again.phase, again.time) == (Phase.GRANTED, START)


def test_a_reservation_that_was_noted_twice_expires_once() -> None:
    """Waking a run notes the end of its grant again: looking at both broke the rules."""
    limits = Limits({"p": ProviderRates(requests_per_minute=15)})
    call = Reservation(id="c", limiter="p/", number=1, tokens=1)
    limits.limiter("p/").reserve(call, START)
    limits.add(call)
    limits.expires(call)
    limits.expires(call)
    assert limits.expired(START + PATIENCE) == [call]
    assert limits.expired(START + PATIENCE) == []


def test_places_that_were_left_do_not_pile_up_behind_a_long_cool_down() -> None:
    w = World(ProviderRates())
    w.limiter.report(None, Outcome.THROTTLED, 0, 3600 * SECOND, START)
    first = w.ask()
    for _ in range(1000):
        w.limiter.drop(w.ask().id)
    assert len(w.limiter._line) < 200
    last = w.ask()
    w.pass_time(3600 * SECOND)
    assert w.granted == [first.id]
    w.limiter.report(first, Outcome.ANSWERED, 1, 0, w.now)
    w.pass_time(SECOND)
    assert w.granted == [first.id, last.id]
