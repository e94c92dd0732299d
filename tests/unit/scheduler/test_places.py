"""Who is told that a waiting message moved, and how often."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import pytest

from scheduler_svc.domain.estimates import Estimate, moved
from scheduler_svc.domain.records import SECOND, Wait, WaitKind
from scheduler_svc.engine import Engine
from scheduler_svc.hub import Hub
from scheduler_svc.places import MOST_LOOKS, Places
from scheduler_svc.store.base import EventQuery, EventRow
from svckit.clock import FakeClock
from tests.rules import World

NOW = 1000 * SECOND
TOLD = Estimate(position=3, start=NOW + 10 * SECOND, start_p90=NOW + 12 * SECOND)


@pytest.mark.parametrize(
    ("changes", "worth"),
    [
        ({}, False),
        ({"position": 2}, True),
        ({"start": 0}, True),
        ({"start": TOLD.start + SECOND}, False),
        ({"start": TOLD.start + 2 * SECOND}, True),  # a fifth of the 8 s that are left is 1.6 s
        ({"session_wait": Wait(kind=WaitKind.CHILDREN)}, True),
    ],
)
def test_what_is_worth_telling_again(changes: dict[str, Any], worth: bool) -> None:
    after = msgspec.structs.replace(TOLD, **changes)
    assert moved(TOLD, NOW, after, NOW + 2 * SECOND) is worth
    assert moved(TOLD, NOW, after, NOW + 2 * SECOND - 1) is False, "at most every 2 s"


class Looking:
    """The look that the service takes every half second, over rules without a server."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.hub = Hub()
        engine = type("Stub", (), {"hub": self.hub})()
        self.places = Places(cast(Engine, engine), FakeClock())

    def look(self) -> None:
        self.places.look(self.world.k, self.world.now)

    def position(self, run_id: str) -> int:
        place = self.hub.places.get(run_id)
        return place.estimate.position if place is not None else 0


def test_only_waiting_roots_that_somebody_watches_are_told() -> None:
    world = World(limit=1)
    looking = Looking(world)
    world.message("busy")
    world.lease()
    seen, unseen = world.message("seen"), world.message("unseen")
    looking.hub.watch(EventQuery(session_key="seen"))
    looking.hub.watch(EventQuery(session_key="busy"))
    looking.hub.watch(EventQuery(flow_id=unseen), places=False)
    looking.look()
    assert looking.position(seen) == 0, "it was accepted just now"
    world.pass_time(1)
    looking.look()
    assert looking.position(seen) == 1
    assert looking.position(unseen) == 0
    # Somebody who joins later gets the newest, once.
    late = looking.hub.watch(EventQuery(flow_id=seen))
    [place] = late.sent.places(looking.hub.places.seen_by(late.query))
    assert place.run_id == seen
    assert late.sent.places(looking.hub.places.seen_by(late.query)) == []


def test_a_place_is_forgotten_when_the_run_moves_on() -> None:
    world = World(limit=0)
    looking = Looking(world)
    run_id = world.message("s")
    watcher = looking.hub.watch(EventQuery(session_key="s"))
    world.pass_time(1)
    looking.look()
    watcher.wake.clear()
    assert looking.position(run_id) == 1
    row = EventRow(1, "s", 1, run_id, run_id, "run_state_changed", None, b"")
    looking.hub.publish([row])
    assert looking.position(run_id) == 0
    assert not looking.hub.places.seen_by(watcher.query)


def test_a_long_line_is_looked_at_in_turns() -> None:
    world = World(limit=0)
    looking = Looking(world)
    runs = [world.message(f"s{n}") for n in range(3 * MOST_LOOKS)]
    for n in range(3 * MOST_LOOKS):
        looking.hub.watch(EventQuery(session_key=f"s{n}"))
    world.pass_time(1)
    told = []
    for _ in range(4):
        looking.look()
        told.append(sum(looking.position(run_id) > 0 for run_id in runs))
        world.pass_time(0.5)
    assert told == [MOST_LOOKS, 2 * MOST_LOOKS, 3 * MOST_LOOKS, 3 * MOST_LOOKS]


def test_who_watches_everything_sees_the_front_of_every_line() -> None:
    world = World(limit=1)
    looking = Looking(world)
    runs = [world.message(f"s{n}") for n in range(2 * MOST_LOOKS)]
    looking.hub.watch(EventQuery())
    world.pass_time(1)
    looking.look()
    assert [looking.position(run_id) > 0 for run_id in runs] == [True] * 50 + [False] * 50
