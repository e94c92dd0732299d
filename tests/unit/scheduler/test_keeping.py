"""Kept leases and preferred workers, by the rules alone."""

from __future__ import annotations

from typing import Any

import msgspec

from scheduler_svc.domain import leasing, recovery, settling, sweeping, turns
from scheduler_svc.domain.explain import explain
from scheduler_svc.domain.fairness import FairLine
from scheduler_svc.domain.kernel import PATIENCE, Kernel
from scheduler_svc.domain.leasing import Leased
from scheduler_svc.domain.records import SECOND, Failure, Run, RunState, Wait, WaitKind
from tests.rules import World

TTL = 10 * SECOND


class Keeping(World):
    """Worker `w` keeps its leases; `x` is another one."""

    def __init__(self, limit: int = 2, **config: Any) -> None:
        super().__init__(limit, **config)
        self.k.config = msgspec.structs.replace(self.k.config, lease_ttl=TTL)

    def keep(self, leased: Leased, seconds: float = 5) -> Run:
        wait = Wait(kind=WaitKind.LIMIT, expire_time=self.now + round(seconds * SECOND))
        return turns.suspend(
            self.k, leased.run.run_id, leased.lease.token, "keep",
            wait=wait, hold_lane=True, interim=b"", taken=[], now=self.now, keep=True,
        )  # fmt: skip

    def take(self, worker: str = "w", most: int = 9) -> list[str]:
        leasing.greet(self.k, "agent", worker, 1, self.now)
        found = leasing.lease_ready(self.k, "agent", worker, 1, most, self.now)
        return [leased.run.run_id for leased in found]

    def later(self, seconds: float) -> None:
        """Time passes, and what is due happens in its turn."""
        until = self.now + round(seconds * SECOND)
        while (due := self.k.next_time()) is not None and due <= until:
            self.now = max(self.now, due)
            sweeping.sweep(self.k, self.now)
        self.now = until

    def status(self, leased: Leased) -> leasing.LeaseStatus:
        lease = (leased.run.run_id, leased.lease.token)
        [found] = leasing.extend(self.k, "w", 1, [lease], self.now)
        return found

    def restarted(self, run_id: str) -> Kernel:
        record = msgspec.json.decode(msgspec.json.encode(self.run(run_id)), type=Run)
        snapshot = recovery.Snapshot(runs=[record], last_time=self.now)
        return recovery.rebuild(self.k.config, snapshot, self.now)


class Entry(msgspec.Struct):
    run_id: str
    customer_key: str
    create_time: int = 0
    priority: int = 0
    order: int = 0
    resumed: bool = False
    place: int = 0


def test_who_is_passed_over_keeps_its_place_and_gains_nothing_by_waiting() -> None:
    line = FairLine({})
    for n in range(6):
        line.push(Entry(f"a{n}", "ann", order=n))
        line.push(Entry(f"b{n}", "ben", order=n))
    # Nobody may take Ann's first four but one worker, which is away.
    kept = {"a0", "a1", "a2", "a3"}
    taken = [line.pop_for(lambda run_id: run_id not in kept) for _ in range(6)]
    assert taken == ["a4", "b0", "a5", "b1", "b2", "b3"]
    # Back, it serves her first, and then in turns: not all that she waited for at once.
    assert [line.pop_for(lambda _: True) for _ in range(6)] == ["a0", "b4", "a1", "b5", "a2", "a3"]
    assert line.pop_for(lambda _: True) == ""


def test_what_is_passed_over_is_not_passed_over_by_the_forecast_of_the_line() -> None:
    line = FairLine({})
    for name in ("ann", "ben", "cleo"):
        for n in range(3):
            line.push(Entry(f"{name}{n}", name, order=n))
    line.pop_for(lambda run_id: run_id.startswith("ben"))
    line.pop_for(lambda run_id: run_id.startswith("ben"))
    expected = list(line.in_order())
    assert [line.pop() for _ in range(len(line))] == expected


def test_attempts_whose_kept_lease_was_lost_are_counted() -> None:
    world = Keeping()
    run_id = world.message("s")
    for attempt in (1, 2, 3):
        [leased] = world.lease()
        assert (leased.run.turn, leased.run.attempt) == (1, attempt)
        world.keep(leased, seconds=100)
        world.later(15 if attempt < 3 else 9)
    world.later(5)
    failure = world.k.ended[run_id].failure
    assert failure is not None
    assert (failure.reason, failure.metadata["lastReason"]) == ("ATTEMPTS_EXHAUSTED", "LEASE_LOST")


def test_a_turn_that_was_due_counts_the_lease_that_was_lost_before_it() -> None:
    world = Keeping()
    run_id = world.message("s")
    world.keep(world.lease()[0], seconds=5)
    world.later(9)
    assert world.run(run_id).state is RunState.QUEUED
    assert world.take("x") == [], "only the worker that keeps it gets it"
    world.later(1.5)
    run = world.run(run_id)
    assert (run.kept, run.attempts, run.ready_time > world.now) == (None, 1, True)
    world.later(2)
    assert world.take("x") == [run_id]
    assert (run.turn, run.attempt, run.attempts) == (2, 1, 2)


def test_the_worker_may_extend_the_kept_lease_while_the_next_is_on_its_way() -> None:
    world = Keeping()
    run_id = world.message("s")
    [first] = world.lease()
    world.keep(first)
    world.later(6)
    world.take()
    lease = world.run(run_id).lease
    assert lease is not None
    before = lease.expire_time
    world.later(3)
    assert not world.status(first).lost
    assert lease.expire_time == before + 3 * SECOND


def test_after_a_restart_a_kept_lease_still_ends() -> None:
    world = Keeping()
    run_id = world.message("s")
    [leased] = world.lease()
    world.keep(leased, seconds=100)
    world.k = world.restarted(run_id)
    world.later(8)
    assert not world.status(leased).lost
    world.later(8)
    assert world.run(run_id).state is RunState.SUSPENDED
    world.later(3)
    assert world.run(run_id).state is RunState.QUEUED
    assert world.status(leased).lost


def test_a_cancelled_run_holds_its_lane_until_what_is_kept_has_stopped() -> None:
    world = Keeping()
    run_id = world.message("s")
    other = world.message("s")
    [leased] = world.lease()
    world.keep(leased)
    settling.cancel(world.k, world.run(run_id), "stop", "request", world.now)
    assert world.take() == []
    turns.fail(
        world.k, run_id, leased.lease.token, "end", failure=Failure("RUN_CANCELLED", "stop"),
        retryable=False, retry_after=0, taken=[], now=world.now,
    )  # fmt: skip
    assert world.k.ended[run_id].state is RunState.CANCELLED
    assert world.take() == [other]


def test_a_run_waits_for_its_preferred_worker_as_long_as_that_calls() -> None:
    world = Keeping()
    world.take("w")
    run_id = world.message("s", preferred_worker="w")
    assert world.take("x") == []
    world.later(20)
    leasing.greet(world.k, "agent", "w", 1, world.now)
    world.later(15)
    assert world.take("x") == [], "15 s ago it called"
    # Who waits is asked again when something is due: that is when the patience ends.
    assert world.k.next_time() is not None
    world.later(15)
    assert world.take("x") == [run_id]


def test_a_worker_that_never_called_counts_from_the_start() -> None:
    world = Keeping()
    world.k.start_time = world.now
    run_id = world.message("s", preferred_worker="nobody")
    assert world.take("x") == []
    world.later(PATIENCE / SECOND)
    assert world.take("x") == [run_id]


def test_why_a_run_waits_names_the_worker() -> None:
    world = Keeping()
    run_id = world.message("s")
    [leased] = world.lease()
    world.keep(leased)

    def why(run_id: str) -> str:
        return explain(world.k, world.run(run_id), world.now, asked_for=False)[0].text

    assert why(run_id) == "It waits for a limit for 5.0 s more."
    world.later(6)
    assert why(run_id) == "A slot is free; it goes on at worker w, which keeps its process."
    preferring = world.message("t", preferred_worker="w")
    assert why(preferring).startswith("A slot is free; it waits for worker w, which holds what")
    settling.cancel(world.k, world.run(run_id), "stop", "request", world.now)
    assert "1 run of its tree has not confirmed" in why(run_id)
