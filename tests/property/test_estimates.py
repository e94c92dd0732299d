"""Estimates against what then happens: the real rules, driven on with the expected turn times."""

from __future__ import annotations

import os

import hypothesis.strategies as st
from hypothesis import Phase, given, settings

from scheduler_svc.domain.records import SECOND
from tests.rules import World

# More examples for a longer search: PROPERTY_SCALE=20 pytest tests/property
SCALE = int(os.environ.get("PROPERTY_SCALE", "1"))

TIMES = {"a": 5 * SECOND, "b": 3 * SECOND}

messages = st.tuples(
    st.integers(0, 3),  # customer
    st.integers(0, 2),  # which of its sessions
    st.sampled_from("ab"),  # agent
    st.integers(-3, 3),  # priority
    st.integers(0, 40),  # tenths of a second until the next message
)


# Shrinking is quick, explaining is not.
PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.target, Phase.shrink)


@settings(max_examples=100 * SCALE, deadline=None, phases=PHASES)
@given(
    limit=st.integers(1, 4),
    weights=st.dictionaries(st.sampled_from(["c0", "c1", "c2"]), st.integers(1, 4)),
    arrivals=st.lists(messages, min_size=1, max_size=40),
    idle=st.integers(0, 60),
    later=st.integers(1, 4),
)
def test_with_turn_times_as_expected_and_no_new_arrivals_it_is_exact(
    limit: int,
    weights: dict[str, int],
    arrivals: list[tuple[int, int, str, int, int]],
    idle: int,
    later: int,
) -> None:
    world = World(limit, lambda run: TIMES[run.estimate_key], weights=weights)
    for key, time in TIMES.items():
        world.measured(key, *[time] * 5)
    for customer, session, key, priority, pause in arrivals:
        world.message(f"c{customer}-{session}", f"c{customer}", key, priority=priority)
        world.go_on(world.now + pause * SECOND // 10)
    world.go_on(world.now + idle * SECOND // 10)
    world.k.lanes["main"].limit = later  # lowering it stops nobody
    told, now = world.estimates(), world.now
    world.go_on(now + 1000 * SECOND)
    assert not world.k.runs
    for run_id, said in told.items():
        assert said.start == world.started[run_id], run_id
        earlier = sum(now < world.started[o] < said.start for o in told if o != run_id)
        same_time = sum(world.started[o] == said.start for o in told if o != run_id)
        assert earlier < said.position <= 1 + earlier + same_time
        assert said.start_p90 >= said.start
