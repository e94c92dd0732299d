"""The textbook questions, with figures that were derived by hand."""

from __future__ import annotations

import pytest

from scheduler_svc.domain.arrivals import Burst, Listed, Message, Rate
from scheduler_svc.domain.distributions import Fixed, Percentiles, Samples
from scheduler_svc.domain.forecasting import Children, Load, simulate
from scheduler_svc.domain.foresight import Constraint, Forecast, Spread, foresee
from scheduler_svc.domain.foresight import provider_utilisation as provider_use
from scheduler_svc.domain.limits import REQUESTS, TOKENS
from scheduler_svc.domain.records import SECOND
from scheduler_svc.forecast import writing
from scheduler_svc.forecast.__main__ import dice

FIVE = Fixed(5 * SECOND)
BOTH = {"main": 4, "subagent": 8}
CENT = 10_000


def play(load: Load, seed: int = 0) -> Forecast:
    return foresee(load, dice(seed))


def at(times: object) -> list[float]:
    return [time / SECOND for time in times]  # type: ignore[attr-defined]


def test_seven_customers_at_limit_four() -> None:
    """Four start at once, three when those end."""
    load = Load(Burst(7), FIVE, {"main": 4}, cost_per_turn=CENT)
    found = play(load)
    tally = found.tally
    assert at(tally.start) == [0, 0, 0, 0, 5, 5, 5]
    assert at(tally.end) == at(tally.reply) == [5, 5, 5, 5, 10, 10, 10]
    assert list(tally.wave) == [1, 1, 1, 1, 2, 2, 2]
    waves = tally.waves
    assert (at(waves.starts), at(waves.ends)) == ([0, 5], [5, 10])
    assert list(waves.customers) == [4, 3]
    assert tally.makespan == 10 * SECOND
    assert found.wait == Spread(0, 5 * SECOND, 5 * SECOND, 5 * SECOND)
    assert found.completion == Spread(5 * SECOND, 10 * SECOND, 10 * SECOND, 10 * SECOND)
    # Eight slots take all seven at once.
    nobody_waits = Spread(0, 0, 0, 0)
    assert found.constraint == Constraint("lane", "main", 4, 8, nobody_waits, 5 * SECOND)
    result = writing.result(load, found)
    assert (result.runs, result.turns, result.cost_micros_usd) == (7, 7, 70_000)
    [lane] = result.lanes
    assert (lane.peak_running, lane.peak_waiting) == (4, 3)
    assert lane.utilisation == pytest.approx(35 / 40)  # 7 turns of 5 s on 4 slots for 10 s


# Every turn and every child take 5 s, so all happens at multiples of 5. Resumed turns go first, and
# after three of them one first turn goes. F is a first turn, C a closing one:
#    0 F1-4 · 5 F5-8 · 10 C1-3 F9 · 15 C4-6 F10 · 20 C7-9 F11 · 25 C10 F12-14 · 30 C11 F15-17
#   35 C12-14 F18 · 40 C15-17 F19 · 45 C18 F20 · 50 C19 · 55 C20, which ends at 60
BLAST_STARTS = [0] * 4 + [5] * 4 + [10, 15, 20] + [25] * 3 + [30] * 3 + [35, 40, 45]
BLAST_ENDS = [15] * 3 + [20] * 3 + [25] * 3 + [30, 35] + [40] * 3 + [45] * 3 + [50, 55, 60]


@pytest.mark.parametrize("background", [False, True])
def test_twenty_customers_answer_one_blast_and_each_spawns_one_sub_agent(background: bool) -> None:
    children = Children(1, FIVE, background, closing_time=FIVE)
    load = Load(Burst(20), FIVE, BOTH, children, cost_per_turn=CENT)
    found = play(load)
    tally = found.tally
    assert at(tally.start) == BLAST_STARTS
    assert at(tally.end) == BLAST_ENDS
    # In the background the first turn answers; waiting, the closing one does.
    replies = [start + 5 for start in BLAST_STARTS] if background else BLAST_ENDS
    assert at(tally.reply) == replies
    assert tally.makespan == 60 * SECOND
    assert found.constraint is not None
    assert (found.constraint.lane, found.constraint.raised) == ("main", 8)
    result = writing.result(load, found)
    assert (result.runs, result.turns, result.cost_micros_usd) == (40, 60, 600_000)
    main, sub = result.lanes
    assert (main.peak_running, main.peak_waiting) == (4, 16)
    # At most four first turns end together, and so do their children.
    assert (sub.peak_running, sub.peak_waiting) == (4, 0)


def test_a_narrow_lane_of_the_children_binds() -> None:
    """One child at a time: 4 x 5 s of children one after the other, from 5 on."""
    found = play(Load(Burst(4), FIVE, {"main": 4, "subagent": 1}, Children(1, FIVE)))
    assert at(found.tally.end) == [10, 15, 20, 25]
    assert found.constraint is not None
    # Waits of 0 + 5 + 10 + 15 s; two at a time are done at 15.
    assert (found.constraint.lane, found.constraint.raised_makespan) == ("subagent", 15 * SECOND)


def test_fifty_five_customers_in_a_peak_hour() -> None:
    """One every 65.45 s, five minutes each: 4.58 slots are needed, and there are four.

    Customer 4k+j starts 300 k seconds after customer j, and came only 261.82 k seconds after it.
    """
    load = Load(Rate(55 / 3600, 3600 * SECOND, even=True), Fixed(300 * SECOND), {"main": 4})
    found = play(load)
    tally = found.tally
    assert len(tally.arrival) == 55
    gap = 3600 / 55
    for number in range(55):
        k, j = divmod(number, 4)
        assert tally.arrival[number] / SECOND == pytest.approx(number * gap, abs=1e-5)
        assert tally.start[number] / SECOND == pytest.approx(j * gap + 300 * k, abs=1e-5)
    assert tally.makespan / SECOND == pytest.approx(2 * gap + 300 * 14, abs=1e-5)
    assert found.wait is not None
    assert found.wait.most / SECOND == pytest.approx(13 * (300 - 4 * gap), abs=1e-5)
    assert found.constraint is not None
    assert (found.constraint.lane, found.constraint.raised_wait) == ("main", Spread(0, 0, 0, 0))


def test_fifty_five_customers_with_quick_turns_meet_no_limit() -> None:
    found = play(Load(Rate(55 / 3600, 3600 * SECOND, even=True), FIVE, {"main": 4}))
    assert (found.wait, found.constraint) == (Spread(0, 0, 0, 0), None)


def test_a_provider_with_fifteen_requests_a_minute_binds_and_not_the_gateway() -> None:
    """Requests go 61.2 s / 15 = 4.08 s apart: two turns of 5 s overlap, four slots are plenty."""
    load = Load(Burst(20), FIVE, {"main": 4}, requests_per_minute=15, cost_per_turn=CENT)
    found = play(load)
    tally = found.tally
    assert at(tally.start) == pytest.approx([4.08 * i for i in range(20)])
    assert tally.makespan == 82_520_000
    constraint = found.constraint
    assert constraint is not None
    assert (constraint.limit, constraint.lane, constraint.value) == (REQUESTS, None, 15)
    # Twice as many: 2.04 s apart. Three turns overlap.
    assert (constraint.raised, constraint.raised_makespan) == (30, 43_760_000)
    result = writing.result(load, found)
    [main] = result.lanes
    assert (main.peak_running, main.peak_waiting) == (2, 0)  # who waits for it holds no slot
    assert result.provider_utilisation == pytest.approx(20 / (15 * 82.52 / 60))
    assert result.cost_micros_usd == 200_000


def test_tokens_bind_when_turns_are_long() -> None:
    """Ten calls of 1000 tokens fit into the 90 % that are given out: 61.2 s / 9 = 6.8 s apart."""
    load = Load(Burst(5), FIVE, {"main": 4}, tokens_per_minute=10_000, tokens_per_turn=1_000)
    found = play(load)
    assert at(found.tally.start) == pytest.approx([0, 6.8, 13.6, 20.4, 27.2])
    assert found.constraint is not None
    assert found.constraint.limit == TOKENS
    assert writing.result(load, found).tokens == 5_000


def test_short_waits_for_the_provider_keep_the_slot() -> None:
    """120 a minute are 0.51 s apart: less than the second from which a slot is given back."""
    found = play(Load(Burst(2), FIVE, {"main": 1}, requests_per_minute=120))
    assert at(found.tally.start) == [0, 5]
    found = play(Load(Burst(2), FIVE, {"main": 2}, requests_per_minute=120))
    assert at(found.tally.start) == [0, 0.51]
    assert found.tally.lanes[0].busy == 10_510_000


def test_messages_of_one_session_wait_for_each_other() -> None:
    found = play(Load(Burst(1, messages=3), FIVE, {"main": 4}))
    assert found.constraint == Constraint(None, None)
    assert list(found.tally.waves.customers) == [1]
    assert found.wait == Spread(5 * SECOND, 10 * SECOND, 10 * SECOND, 10 * SECOND)


def test_a_paused_lane_has_no_times_and_says_what_one_slot_would_give() -> None:
    load = Load(Burst(3, messages=2), FIVE, {"main": 0})
    found = play(load)
    assert found.constraint is not None
    assert (found.constraint.lane, found.constraint.raised) == ("main", 1)
    assert found.constraint.raised_makespan == 30 * SECOND
    result = writing.result(load, found)
    assert (result.customers, result.runs, result.turns, result.stuck_runs) == (3, 6, 0, 6)
    assert not result.HasField("wait")
    assert result.waves == []


def test_children_in_a_paused_lane_leave_their_parents_stuck() -> None:
    load = Load(Burst(2), FIVE, {"main": 4, "subagent": 0}, Children(1, FIVE, background=True))
    found = play(load)
    assert at(found.tally.reply) == [5, 5]
    assert list(found.tally.end) == [-1, -1]
    assert writing.result(load, found).stuck_runs == 4


def test_weights_and_priorities_of_a_list() -> None:
    messages = [Message(0, "a", f"a{i}", weight=2) for i in range(4)]
    messages += [Message(0, "b", f"b{i}") for i in range(2)]
    messages.append(Message(0, "b", "b2", priority=1))
    found = play(Load(Listed(messages), FIVE, {"main": 1}))
    assert found.tally.makespan == 35 * SECOND
    # Passes of a: ½ 1 1½ 2, of b: 1 2 3, and what came first goes first: a b a a b a b.
    assert at(found.tally.start) == [0, 5]
    assert at(found.tally.end) == [30, 35]


def test_draws_are_the_same_whatever_the_limits_are() -> None:
    """So what doubling a limit gives is never luck."""
    times = Percentiles(2 * SECOND, 8 * SECOND, 20 * SECOND, 60 * SECOND)
    tallies = [simulate(Load(Burst(50), times, {"main": limit}), dice(7)) for limit in (1, 3, 1000)]
    spans = [[e - s for s, e in zip(t.start, t.end, strict=True)] for t in tallies]
    assert spans[0] == spans[1] == spans[2]
    assert len(set(spans[0])) > 40


def test_drawn_times_have_the_percentiles_that_were_given() -> None:
    times = Percentiles(2 * SECOND, 8 * SECOND, 20 * SECOND, 60 * SECOND)
    drawn = sorted(times.at(i / 10_000) for i in range(10_000))
    assert drawn[5_000] == 2 * SECOND
    assert drawn[9_000] == 8 * SECOND
    assert drawn[9_900] == 20 * SECOND
    assert drawn[-1] < 60 * SECOND
    assert drawn[1_000] == SECOND // 2  # mirrored: 2 * 2 / 8
    assert Samples([1, 2, 3]).at(0.999_999) == 3


def test_a_poisson_hour_has_about_its_mean_and_an_even_one_exactly() -> None:
    for even, few, many in ((True, 600, 600), (False, 520, 680)):
        arrivals = list(Rate(600 / 3600, 3600 * SECOND, even).play(dice(1)))
        assert few <= len(arrivals) <= many
        assert [a.at for a in arrivals] == sorted(a.at for a in arrivals)
        assert arrivals[-1].at < 3600 * SECOND


def test_utilisation_of_a_provider_without_limits_is_none() -> None:
    load = Load(Burst(1), FIVE, {"main": 1})
    assert provider_use(load, play(load).tally) == 0.0
