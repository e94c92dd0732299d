"""Invariant 14: a customer who floods, also over many sessions, delays another's next start by a
bounded number of dispatches. On the whole kernel: sessions, lanes, leases and ends of turns."""

from __future__ import annotations

import itertools
import random

from hypothesis import given
from hypothesis import strategies as st

from scheduler_svc.domain import admission, leasing
from scheduler_svc.domain.kernel import Config, Kernel
from scheduler_svc.domain.leasing import Leased
from scheduler_svc.domain.records import SECOND, NewRun
from tests.rules import complete


class Play:
    """A kernel with one worker that always has a free slot."""

    def __init__(self, limit: int) -> None:
        self.k = Kernel(Config(lanes={"main": limit}, lease_ttl=60 * SECOND))
        self.now = 1
        self.ids = itertools.count(1)
        self.at_work: list[Leased] = []
        self.dispatched: list[str] = []

    def send(self, customer: str, session: str) -> str:
        number = next(self.ids)
        new = NewRun(
            run_id=f"r{number:05}",
            request_id=f"q{number}",
            body_hash=b"",
            session_key=f"{customer}/{session}",
            customer_key=customer,
            queue="agent",
            lane="main",
            lane_cap=1000,
        )
        admission.enqueue(self.k, new, self.now, parent_lease=None)
        return new.run_id

    def dispatch(self) -> None:
        for leased in leasing.lease_ready(self.k, "agent", "w", 1, 64, self.now):
            self.at_work.append(leased)
            self.dispatched.append(leased.run.run_id)

    def end_one(self, chance: random.Random) -> None:
        leased = self.at_work.pop(chance.randrange(len(self.at_work)))
        self.now += 1
        complete(self.k, leased.run.run_id, leased.lease.token, self.now)
        self.k.take_changes()


@given(
    limit=st.integers(1, 6),
    messages=st.integers(1, 120),
    sessions=st.integers(1, 60),
    others=st.integers(0, 4),
    before=st.integers(0, 60),
    seed=st.integers(0, 1000),
)
def test_a_flood_delays_another_customer_by_a_bounded_number_of_dispatches(
    limit: int, messages: int, sessions: int, others: int, before: int, seed: int
) -> None:
    chance = random.Random(seed)
    play = Play(limit)
    for n in range(messages):
        play.send("flood", str(n % sessions))
    for n in range(others):  # customers who wait as well, with several messages each
        for m in range(3):
            play.send(f"other-{n}", str(m))
    play.dispatch()
    for _ in range(before):
        if play.at_work:
            play.end_one(chance)
            play.dispatch()
    mine = play.send("me", "one")
    play.dispatch()
    started = len(play.dispatched)
    while mine not in play.dispatched:
        play.end_one(chance)
        play.dispatch()
    ahead = play.dispatched[started:].index(mine) if mine in play.dispatched[started:] else 0
    # At most one of each customer that waits goes before, however much it sent.
    assert ahead <= 1 + others
