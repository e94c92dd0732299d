"""Estimates against what then happens: the real rules, driven on with the expected turn times."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import hypothesis.strategies as st
from hypothesis import given, settings

from scheduler_svc.domain import admission, leasing, turns
from scheduler_svc.domain.estimates import Estimate, estimate
from scheduler_svc.domain.kernel import Config, Kernel
from scheduler_svc.domain.records import SECOND, AnnounceMode, NewRun, Run, RunState
from scheduler_svc.domain.turntimes import TurnKind
from tests.property.test_invariants import SCALE

EVERYTHING = 100_000
"""Near enough to be played forward, whatever the test puts in line."""


class World:
    """A kernel, a clock, and workers with as many slots as it takes."""

    def __init__(self, limit: int, turn: Callable[[Run], int], **config: object) -> None:
        lanes = {"main": limit, "subagent": 8}
        self.k = Kernel(Config(lanes=lanes, lease_ttl=10**12, **config))  # type: ignore[arg-type]
        self.now = 1_000_000 * SECOND
        self.turn = turn
        self.started: dict[str, int] = {}
        self.ends: list[tuple[int, int, str]] = []
        self._ids = itertools.count(1)

    def measured(self, key: str, *times: int, child: bool = False, closing: bool = False) -> None:
        kind = TurnKind("agent", key, child, closing)
        for time in times:
            self.k.turn_times.ended(kind, time, waits=False)

    def message(self, session: str, customer: str, key: str = "a", priority: int = 0) -> str:
        run_id = f"r{next(self._ids):04}"
        new = NewRun(
            run_id=run_id,
            request_id=run_id,
            body_hash=b"",
            session_key=session,
            customer_key=customer,
            queue="agent",
            lane="main",
            estimate_key=key,
            priority=priority,
            lane_cap=1000,
        )
        admission.enqueue(self.k, new, self.now, parent_lease=None)
        return run_id

    def lease(self) -> None:
        for leased in leasing.lease_ready(self.k, "agent", "w", 1, 10_000, self.now):
            run = leased.run
            self.started.setdefault(run.run_id, self.now)
            self.ends.append((self.now + self.turn(run), leased.lease.token, run.run_id))

    def go_on(self, until: int) -> None:
        """Lets turns end, in order, and hands out what is ready, up to a point in time."""
        while True:
            self.lease()
            self.k.take_changes()
            due = [end for end in self.ends if end[0] <= until]
            if not due:
                break
            self.now = min(due)[0]
            for end in sorted(end for end in due if end[0] == self.now):
                self.ends.remove(end)
                self.end(end[2], end[1])
        self.now = until

    def end(self, run_id: str, token: int) -> None:
        turns.complete(
            self.k,
            run_id,
            token,
            "",
            result=None,
            reply=None,
            mode=AnnounceMode.ALL,
            taken=[],
            steered_is_next_prompt=False,
            now=self.now,
        )

    def estimates(self, near: int = EVERYTHING) -> dict[str, Estimate]:
        queued = [r for r in self.k.runs.values() if r.state is RunState.QUEUED]
        return {r.run_id: estimate(self.k, r, self.now, near=near) for r in queued}


TIMES = {"a": 5 * SECOND, "b": 3 * SECOND}

messages = st.tuples(
    st.integers(0, 3),  # customer
    st.integers(0, 2),  # which of its sessions
    st.sampled_from("ab"),  # agent
    st.integers(-3, 3),  # priority
    st.integers(0, 40),  # tenths of a second until the next message
)


@settings(max_examples=200 * SCALE, deadline=None)
@given(
    limit=st.integers(1, 4),
    weights=st.dictionaries(st.sampled_from(["c0", "c1", "c2"]), st.integers(1, 4)),
    arrivals=st.lists(messages, min_size=1, max_size=40),
    idle=st.integers(0, 60),
)
def test_with_turn_times_as_expected_and_no_new_arrivals_it_is_exact(
    limit: int,
    weights: dict[str, int],
    arrivals: list[tuple[int, int, str, int, int]],
    idle: int,
) -> None:
    world = World(limit, lambda run: TIMES[run.estimate_key], weights=weights)
    for key, time in TIMES.items():
        world.measured(key, *[time] * 5)
    for customer, session, key, priority, pause in arrivals:
        world.message(f"c{customer}-{session}", f"c{customer}", key, priority)
        world.go_on(world.now + pause * SECOND // 10)
    world.go_on(world.now + idle * SECOND // 10)
    told, now = world.estimates(), world.now
    world.go_on(now + 1000 * SECOND)
    assert not world.k.runs
    for run_id, said in told.items():
        assert said.start == world.started[run_id], run_id
        earlier = sum(now < world.started[o] < said.start for o in told if o != run_id)
        same_time = sum(world.started[o] == said.start for o in told if o != run_id)
        assert earlier < said.position <= 1 + earlier + same_time
        assert said.start_p90 >= said.start
