"""When runs should start: long lines, children, turn times that vary, and what costs nothing."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from scheduler_svc.domain import estimates
from scheduler_svc.domain.estimates import estimate
from scheduler_svc.domain.records import SECOND, Run
from scheduler_svc.domain.turntimes import kind_of
from tests.rules import World

TURN = 5 * SECOND


def served(world: World, *run_ids: str) -> list[float]:
    """Lets everything happen; returns the seconds after now at which runs started."""
    now = world.now
    world.go_on(now + 100_000 * SECOND)
    return [(world.started[run_id] - now) / SECOND for run_id in run_ids]


def told(world: World, run_id: str, **more: Any) -> float:
    return (estimate(world.k, world.run(run_id), world.now, **more).start - world.now) / SECOND


@pytest.mark.parametrize("limit", [1, 4, 30])
def test_a_long_line_of_customers_is_worked_out_exactly_too(limit: int) -> None:
    world = World(limit)
    world.measured("a", *[TURN] * 5)
    for n in range(limit):
        world.message(f"busy-{n}")
        world.lease()
        world.pass_time(0.1)
    runs = [world.message(f"s{n}") for n in range(300)]
    said = [told(world, run_id) for run_id in runs[-3:]]
    places = [estimate(world.k, world.run(r), world.now).position for r in runs[-3:]]
    # Each is looked at as the last of its customer in line, which only the last one is in fact.
    assert said[-1] == served(world, runs[-1])[0]
    assert places[-1] == 300


def test_one_among_a_flood_starts_soon_and_the_flood_is_told_how_long_it_takes() -> None:
    world = World(4)
    world.measured("a", *[TURN] * 5)
    flood = [world.message(f"flood-{n % 50}", "flood") for n in range(1000)]
    world.lease()
    world.pass_time(1)
    one = world.message("one", "other")
    assert told(world, one) == 4.0
    assert told(world, one, near=0) <= 9.0
    last = told(world, flood[-1])
    start_one, start_last = served(world, one, flood[-1])
    assert start_one == 4.0
    assert last == pytest.approx(start_last, rel=0.05)


class Delegating(World):
    """Each root spawns one child at the end of its first turn and waits for it."""

    def complete(self, run_id: str, token: int) -> None:
        run = self.k.runs[run_id]
        if run.depth or run.turn > 1:
            super().complete(run_id, token)
            return
        leased: Any = SimpleNamespace(run=run, lease=SimpleNamespace(token=token))
        self.child(leased, key="child")
        self.wait(leased)


def lengths(run: Run) -> int:
    return SECOND // 10 if run.turn > 1 else TURN


def test_a_burst_whose_turns_wait_for_a_sub_agent_is_told_as_it_will_be() -> None:
    world = Delegating(4, lengths)
    for n in range(20):
        world.message(f"warm-{n}")
    world.go_on(world.now + 1000 * SECOND)
    runs = []
    said = []
    for n in range(20):
        runs.append(world.message(f"c{n}"))
        said.append(told(world, runs[-1]))
        world.lease()
    start = served(world, *runs)
    assert start[4:8] == [5.0] * 4, "waiting for a sub-agent holds no slot"
    for expected, real in zip(said, start, strict=True):
        assert abs(expected - real) < 0.3


def test_a_message_behind_one_that_waits_for_a_sub_agent() -> None:
    world = Delegating(4, lengths)
    world.measured("a", *[TURN] * 5)
    world.measured("child", *[TURN] * 5, child=True)
    world.measured("a", *[SECOND // 10] * 5, closing=True)
    world.message("s")
    world.go_on(world.now + TURN)
    world.lease()
    world.pass_time(2)
    behind = world.message("s")
    found = estimate(world.k, world.run(behind), world.now)
    assert found.session_wait is not None
    assert (found.position, found.session_ahead) == (2, 1)
    # What is left of the child, then the closing turn.
    assert (found.start - world.now) / SECOND == pytest.approx(3.1)
    assert served(world, behind) == [pytest.approx(3.1)]


def test_nine_in_ten_start_by_the_time_that_says_so() -> None:
    chance = random.Random(20)
    kept = late = 0
    for _ in range(60):
        world = World(4, lambda run: round(chance.lognormvariate(0.0, 0.6) * TURN))
        world.measured("a", *(round(chance.lognormvariate(0.0, 0.6) * TURN) for _ in range(40)))
        for n in range(4):
            world.message(f"busy-{n}")
        world.lease()
        runs = [world.message(f"s{n}") for n in range(16)]
        latest = {run_id: estimate(world.k, world.run(run_id), world.now) for run_id in runs}
        served(world, *runs)
        kept += sum(world.started[r] <= latest[r].start_p90 for r in runs)
        late += sum(world.started[r] > latest[r].start for r in runs)
    share, above = kept / (60 * 16), late / (60 * 16)
    assert 0.85 <= share <= 0.98, f"{share:.3f} started by their p90"
    assert 0.35 <= above <= 0.65, f"{above:.3f} started after their estimate"


def test_an_estimate_costs_no_more_when_the_line_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: what is looked at does not grow with the line."""
    looked = 0
    plain = kind_of

    def counted(run: Run) -> Any:
        nonlocal looked
        looked += 1
        return plain(run)

    monkeypatch.setattr(estimates, "kind_of", counted)
    world = World(8)
    world.measured("a", *[TURN] * 5)
    costs = []
    for n in range(5000):
        run_id = world.message(f"s{n}")
        if n == 7:
            world.lease()
        looked = 0
        estimate(world.k, world.run(run_id), world.now)
        costs.append(looked)
    assert max(costs) <= 2 * estimates.NEAR
    assert max(costs[1000:]) <= 12, "the slots, and the run itself"
