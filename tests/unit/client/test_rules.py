from __future__ import annotations

from collections.abc import Iterator

import pytest

from conveyor_client.supervision.rules import GiveUp, Life, Limits, Restart


def growing() -> Iterator[float]:
    pause = 1.0
    while True:
        yield pause
        pause *= 2


@pytest.fixture
def life() -> Life:
    return Life(growing, Limits(first_starts=3, later_starts=4, stable_after=10))


def test_a_service_that_says_it_cannot_start_ends_the_suite_at_once(life: Life) -> None:
    assert life.ended(2, now=0.0) == GiveUp(2, "cannot start")


def test_another_failed_first_start_is_tried_again_a_few_times(life: Life) -> None:
    assert life.ended(1, now=0.0) == Restart(1.0, "ended with exit code 1")
    assert life.ended(-11, now=1.0) == Restart(2.0, "killed by signal 11")
    assert life.ended(1, now=2.0) == GiveUp(1, "ended with exit code 1, 3 failed starts in a row")


def test_whatever_ends_a_healthy_service_it_is_started_again(life: Life) -> None:
    for code in (0, 1, 2, -9):
        life.became_ready(now=0.0)
        assert isinstance(life.ended(code, now=1.0), Restart)


def test_pauses_grow_while_it_keeps_dying_and_start_small_after_a_stable_time(life: Life) -> None:
    def die_after(seconds: float) -> float:
        life.became_ready(now=100.0)
        verdict = life.ended(-9, now=100.0 + seconds)
        assert isinstance(verdict, Restart)
        return verdict.delay

    assert [die_after(1.0), die_after(1.0), die_after(9.9)] == [1.0, 2.0, 4.0]
    assert die_after(10.0) == 1.0
    assert die_after(1.0) == 2.0


def test_health_forgives_failed_starts(life: Life) -> None:
    life.ended(1, now=0.0)
    life.ended(1, now=1.0)
    life.became_ready(now=2.0)
    life.ended(-9, now=3.0)
    # Three failed starts would have been too many before the first health.
    assert [type(life.ended(1, now=4.0 + i)) for i in range(4)] == [Restart] * 3 + [GiveUp]


def test_a_restart_that_cannot_start_is_given_up_with_its_own_code(life: Life) -> None:
    life.became_ready(now=0.0)
    life.ended(-9, now=1.0)
    verdicts = [life.ended(2, now=2.0 + i) for i in range(4)]
    assert verdicts[-1] == GiveUp(2, "cannot start, 4 failed starts in a row")
    assert all(isinstance(verdict, Restart) for verdict in verdicts[:-1])
