"""What measured turn times say about the next turn."""

from __future__ import annotations

import random

import msgspec
import pytest

from scheduler_svc.domain.records import (
    SECOND,
    ResumeReason,
    Resumption,
    Run,
    Wait,
    WaitKind,
)
from scheduler_svc.domain.turntimes import (
    ENOUGH,
    KEPT,
    MOST_KINDS,
    Assumed,
    Times,
    TurnKind,
    TurnRecord,
    TurnTimes,
    closing,
    kind_of,
)

KIND = TurnKind("agent", "main/demo", child=False, closing=False)


def run(**more: object) -> Run:
    fixed = {"run_id": "r", "flow_id": "r", "order": 1, "session_key": "s", "customer_key": "c"}
    fixed |= {"queue": "agent", "lane": "main", "estimate_key": "main/demo", "create_time": 1}
    return msgspec.convert({**fixed, **more}, Run)


def test_times_that_are_all_alike_are_expected_exactly() -> None:
    times = Times([5 * SECOND] * 20)
    assert (times.mean, times.p50, times.p90) == (5 * SECOND,) * 3
    assert times.deviation == 0
    assert times.left(2 * SECOND) == 3 * SECOND
    assert times.left(5 * SECOND) == 0
    assert times.left(7 * SECOND) == 2 * SECOND, "late by two: expected to be late by two more"


def test_newer_times_count_for_more() -> None:
    times = Times([1 * SECOND] * 32 + [9 * SECOND] * 32)
    assert times.p50 == 9 * SECOND
    assert times.mean > 7 * SECOND


def test_one_turn_that_hung_moves_the_expectation_little() -> None:
    times = Times([5 * SECOND] * 30 + [900 * SECOND] + [5 * SECOND] * 33)
    assert times.mean == 5 * SECOND
    assert times.left(6 * SECOND) == SECOND
    assert times.deviation > 5 * SECOND


def test_what_is_left_is_what_longer_turns_took_longer() -> None:
    values = [random.Random(7).randrange(1, 100) for _ in range(10)]
    times = Times(values)
    for elapsed in range(max(times._sorted)):
        longer = [(t, w) for t, w in zip(times._sorted, _weights(values), strict=True)]
        longer = [(t, w) for t, w in longer if t > elapsed]
        mean = sum(t * w for t, w in longer) / sum(w for _, w in longer)
        assert times.left(elapsed) == round(mean) - elapsed


def _weights(newest_last: list[int]) -> list[float]:
    pairs = sorted((t, 0.5 ** (age / 16)) for age, t in enumerate(reversed(newest_last)))
    return [weight for _, weight in pairs]


def test_too_few_turns_say_nothing() -> None:
    times = TurnTimes()
    for _ in range(ENOUGH - 1):
        times.ended(KIND, SECOND, waits=True)
    assert times.measured(KIND) is None
    assert times.waits(KIND) == 0
    times.ended(KIND, SECOND, waits=False)
    measured = times.measured(KIND)
    assert measured is not None
    assert measured.samples == ENOUGH
    assert times.waits(KIND) == pytest.approx(0.8)


def test_what_is_assumed_says_that_it_is_no_measurement() -> None:
    assumed = Assumed(5 * SECOND)
    assert (assumed.samples, assumed.mean, assumed.p90) == (0, 5 * SECOND, 10 * SECOND)
    assert assumed.left(2 * SECOND) == 3 * SECOND
    assert assumed.left(6 * SECOND) == SECOND


def test_a_kind_is_stored_now_and_then_and_comes_back_as_it_was() -> None:
    times = TurnTimes()
    stored = []
    for n in range(1, 201):
        for key, record in times.ended(KIND, n, waits=n % 2 == 0).items():
            assert key == "agent/root/first/main/demo"
            stored.append((n, msgspec.json.encode(record)))
        times.came_back(KIND, 3 * n)
    assert [n for n, _ in stored] == [5, *range(8, 201, 8)]
    again = TurnTimes()
    again.take_in(msgspec.json.decode(stored[-1][1], type=TurnRecord))
    [record] = again
    assert record.took == list(range(201 - KEPT, 201))
    before, after = times.measured(KIND), again.measured(KIND)
    assert before is not None
    assert after is not None
    assert (before.mean, before.p90) == (after.mean, after.p90)
    away = times.away(KIND)
    assert away is not None
    assert away.p50 > 400


def test_kinds_that_were_not_seen_for_long_are_forgotten() -> None:
    times = TurnTimes()
    forgotten = []
    for n in range(MOST_KINDS + 3):
        kind = KIND._replace(estimate_key=f"k{n}")
        forgotten += [k for k, r in times.ended(kind, 1, waits=False).items() if r is None]
        times.ended(KIND, 1, waits=False)  # seen all the time
    assert forgotten == [f"agent/root/first/k{n}" for n in range(4)]
    assert len(list(times)) == MOST_KINDS


def test_first_turns_closing_turns_and_children_are_kinds_of_their_own() -> None:
    assert kind_of(run()) == KIND
    assert kind_of(run(depth=1)) == KIND._replace(child=True)
    children, limit = Wait(kind=WaitKind.CHILDREN), Wait(kind=WaitKind.LIMIT)
    settled = Resumption(reason=ResumeReason.CHILDREN_SETTLED, wait=children)
    granted = Resumption(reason=ResumeReason.LIMIT_GRANTED, wait=limit)
    resumed = msgspec.structs.replace(run(turn=1), resumption=settled)
    assert kind_of(resumed) == closing(KIND)
    # A limit only interrupts a turn: what follows is of the same kind.
    interrupted = msgspec.structs.replace(run(turn=1), resumption=granted)
    assert kind_of(interrupted) == KIND
    assert kind_of(msgspec.structs.replace(interrupted, told=["child"])) == closing(KIND)
