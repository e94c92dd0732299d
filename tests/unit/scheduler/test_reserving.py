"""What becomes of reserved model calls when their runs are lost, stopped, or kept waiting."""

from __future__ import annotations

import pytest

from scheduler_svc.domain import (
    admission,
    attempts,
    leasing,
    reserving,
    settling,
    sweeping,
    turns,
)
from scheduler_svc.domain.kernel import Config, Kernel
from scheduler_svc.domain.leasing import Leased
from scheduler_svc.domain.limits import PATIENCE, Outcome, ProviderRates
from scheduler_svc.domain.records import SECOND, Caps, NewRun, Run, RunState, Wait, WaitKind
from scheduler_svc.domain.reserving import Grant

START = 1_700_000_000 * SECOND


class World:
    """A kernel on a clock of its own, with one worker."""

    def __init__(self) -> None:
        rates = {"p": ProviderRates(requests_per_minute=30)}
        lanes = {"main": 4, "subagent": 4}
        self.k = Kernel(Config(lanes=lanes, lease_ttl=15 * SECOND, providers=rates))
        self.now = START
        self._count = 0

    def send(self, parent: Leased | None = None, max_tokens: int | None = None) -> str:
        """A message for a session of its own, or a child."""
        self._count += 1
        name = f"r{self._count}"
        new = NewRun(
            run_id=name,
            request_id=name,
            body_hash=b"",
            session_key="" if parent else f"s-{name}",
            customer_key="c",
            queue="agent",
            lane="subagent" if parent else "main",
            caps=Caps(reply_reserve=0.0, max_tokens=max_tokens),
        )
        lease = (parent.run.run_id, parent.lease.token) if parent else None
        admission.enqueue(self.k, new, self.now, parent_lease=lease)
        self.k.take_changes()
        return name

    def lease(self) -> Leased:
        [leased] = leasing.lease_ready(self.k, "agent", "w", 1, 1, self.now)
        return leased

    def reserve(self, leased: Leased, call: str, provider: str = "p", tokens: int = 10) -> Grant:
        return reserving.reserve(
            self.k,
            self.k.runs[leased.run.run_id],
            f"{leased.run.run_id}/{call}",
            provider_id=provider,
            credential_id="",
            model="m",
            tokens=tokens,
            cost=0,
            now=self.now,
        )

    def wait_for(self, leased: Leased, grant: Grant) -> Run:
        wait = Wait(kind=WaitKind.LIMIT, reservation=grant.reservation_id)
        return turns.suspend(
            self.k,
            leased.run.run_id,
            leased.lease.token,
            f"d{leased.lease.token}",
            wait=wait,
            hold_lane=True,
            interim=b"",
            taken=[],
            now=self.now,
        )

    def throttle(self, call: str, provider: str) -> None:
        reserving.settle(self.k, call, f"{provider}/", Outcome.THROTTLED, 0, 0, self.now)

    def pass_time(self, span: int) -> None:
        self.now += span
        sweeping.sweep(self.k, self.now)

    @property
    def outstanding(self) -> list[str]:
        return sorted(self.k.limits.reservations)


@pytest.fixture
def w() -> World:
    return World()


def granted_but_not_leased(w: World) -> tuple[Leased, str]:
    """A root at work, and its child that was woken with a grant and waits for a slot."""
    w.send(max_tokens=100)
    root = w.lease()
    child = w.send(root)
    w.reserve(root, "1")
    leased = w.lease()
    w.wait_for(leased, w.reserve(leased, "1", tokens=60))
    w.pass_time(3 * SECOND)
    assert w.k.runs[child].state is RunState.QUEUED
    return root, child


def test_a_cancelled_run_gives_back_a_grant_that_it_had_not_begun(w: World) -> None:
    root, child = granted_but_not_leased(w)
    settling.cancel(w.k, w.k.runs[child], "", "request", w.now)
    assert w.outstanding == [f"{root.run.run_id}/1"]
    assert w.k.changes.facts["reservation", f"{child}/1"] is None
    w.reserve(root, "2", provider="free", tokens=90)


def test_a_grant_of_a_run_that_waits_long_for_a_slot_does_not_count_as_used(w: World) -> None:
    root, child = granted_but_not_leased(w)
    for _ in range(PATIENCE // SECOND // 10 + 1):  # the root's worker is alive all the time
        w.pass_time(10 * SECOND)
        leasing.extend(w.k, "w", 1, [(root.run.run_id, root.lease.token)], w.now)
    assert f"{child}/1" not in w.outstanding
    resumed = w.lease()
    assert (resumed.run.run_id, resumed.grant) == (child, None)
    w.reserve(resumed, "2", tokens=90)


def test_a_lost_worker_leaves_no_probe_in_line_that_stops_everybody(w: World) -> None:
    w.send()
    w.send()
    lost, other = w.lease(), w.lease()
    w.reserve(lost, "1", provider="free")
    w.throttle("", "free")
    waits = w.reserve(lost, "2", provider="free")
    w.wait_for(other, w.reserve(other, "1", provider="free"))
    assert waits.delay > SECOND
    attempts.lose(w.k, w.k.runs[lost.run.run_id], w.now)
    assert w.k.changes.facts["reservation", waits.reservation_id] is None
    w.pass_time(5 * SECOND)
    assert w.k.runs[other.run.run_id].state is RunState.QUEUED, "it is the probe"


def test_a_run_that_is_being_stopped_stands_in_no_line(w: World) -> None:
    w.send()
    root = w.lease()
    w.send(root)
    w.lease()
    w.reserve(root, "1")
    grant = w.reserve(root, "2")
    w.wait_for(root, grant)
    settling.cancel(w.k, w.k.runs[root.run.run_id], "", "request", w.now)
    assert w.k.runs[root.run.run_id].state is RunState.CANCELLING, "its child is at work"
    assert grant.reservation_id not in w.outstanding
