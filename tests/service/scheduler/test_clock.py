"""The clock is set an hour forward or back while the scheduler is away: nothing waits for it, and
nothing is ended by it. While a process lives its clock is monotonic, whatever happens outside.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from conveyor.scheduler.v1 import run_pb2
from scheduler_svc.domain import admission, leasing, turns
from scheduler_svc.domain.kernel import Config
from scheduler_svc.domain.records import (
    SECOND,
    Failure,
    NewRun,
    RetryPolicy,
    RunState,
    Wait,
    WaitKind,
)
from scheduler_svc.engine import Engine
from scheduler_svc.store.memory import MemoryStore
from scheduler_svc.store.sqlite import SqliteStore
from svckit.clock import FakeClock, SystemClock
from svckit.testing import eventually
from tests.history import assert_holds, of_store

HOUR = 3600
START = 1_700_000_000


@pytest.fixture(params=["memory", "sqlite"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    kept = MemoryStore()
    if request.param == "memory":
        return lambda: kept
    return lambda: SqliteStore(tmp_path / "scheduler.db")


@asynccontextmanager
async def scheduler(store: Any, seconds: float) -> AsyncIterator[tuple[Engine, FakeClock]]:
    """A scheduler whose clock says so many seconds after the beginning."""
    clock = FakeClock(round((START + seconds) * 1e6))
    engine = Engine(store, Config(lanes={"main": 1}, lease_ttl=15 * SECOND), clock)
    await engine.start()
    task = asyncio.create_task(engine.run())
    try:
        yield engine, clock
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await engine.close()


async def accept(engine: Engine, **more: Any) -> None:
    payload = run_pb2.Run(spec=run_pb2.RunSpec(session_key="a", queue="agent"))
    payload.inputs.add(request_id="q")
    new = NewRun(
        run_id="r",
        request_id="q",
        body_hash=b"",
        session_key="a",
        customer_key="a",
        queue="agent",
        lane="main",
        retry=RetryPolicy(initial_backoff=2 * SECOND),
        payload=payload.SerializeToString(),
        **more,
    )
    await engine.submit(
        lambda k, now: admission.enqueue(k, new, now, parent_lease=None), sessions=["a"]
    )


async def lease(engine: Engine) -> leasing.Leased:
    [leased] = await engine.lease("agent", "w", 1, 1, 5)
    return leased


async def fail(engine: Engine, leased: leasing.Leased) -> None:
    failure = Failure("TURN_FAILED", "no")
    await engine.submit(
        lambda k, now: (
            turns.fail(
                k,
                "r",
                leased.lease.token,
                "d",
                failure=failure,
                retryable=True,
                retry_after=0,
                taken=[],
                now=now,
            )
            and None
        )
    )


async def test_a_pause_lasts_as_long_as_it_should_although_the_clock_was_set_back(
    make_store: Any,
) -> None:
    """Found by the simulation, seed 3: the next attempt came an hour late."""
    async with scheduler(make_store(), 0) as (engine, clock):
        await accept(engine)
        clock.advance(1)
        await fail(engine, await lease(engine))
    async with scheduler(make_store(), -HOUR) as (engine, clock):
        assert await engine.lease("agent", "w", 1, 1, 0) == []
        clock.advance(2.1)
        await engine.submit(lambda k, now: None)
        assert (await lease(engine)).run.attempt == 2
        history = await of_store(engine.store)
        assert_holds(history)
        times = [event.create_time.ToMicroseconds() for event in history.events]
        assert times == sorted(times), "the log never goes back in time"


async def test_a_wait_ends_in_time_although_the_clock_was_set_back(make_store: Any) -> None:
    async with scheduler(make_store(), 0) as (engine, clock):
        await accept(engine)
        leased = await lease(engine)
        wait = Wait(kind=WaitKind.LIMIT, name="x", expire_time=engine.now() + 5 * SECOND)
        await engine.submit(
            lambda k, now: (
                turns.suspend(
                    k,
                    "r",
                    leased.lease.token,
                    "d",
                    wait=wait,
                    hold_lane=True,
                    interim=b"",
                    taken=[],
                    now=now,
                )
                and None
            )
        )
    async with scheduler(make_store(), -HOUR) as (engine, clock):
        clock.advance(5.1)
        await engine.submit(lambda k, now: None)
        assert (await lease(engine)).run.turn == 2


async def test_a_turn_is_not_ended_by_a_clock_that_was_set_forward(make_store: Any) -> None:
    """The hour counted as executing time, and passed `run_timeout`."""
    async with scheduler(make_store(), 0) as (engine, clock):
        await accept(engine, run_timeout=900 * SECOND)
        leased = await lease(engine)
        clock.advance(3)
    async with scheduler(make_store(), HOUR) as (engine, clock):
        await engine.submit(lambda k, now: None)
        [status] = await engine.submit(
            lambda k, now: leasing.extend(k, "w", 1, [("r", leased.lease.token)], now)
        )
        assert not status.lost
        assert not status.cancel_requested
        clock.advance(2)
    # Once more: what was left out before must not come back.
    async with scheduler(make_store(), 3 * HOUR) as (engine, clock):
        clock.advance(1)
        await engine.submit(lambda k, now: None)
        run = engine._kernel.runs["r"]
        assert run.state is RunState.RUNNING
        await fail(engine, leased)
        stored = (await engine.store.get_runs(["r"]))["r"].run
        assert stored.executed <= (3 + 2 + 1 + 2 * 15) * SECOND


async def test_the_clock_of_a_process_does_not_follow_the_system(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SystemClock()
    before = clock.now_us()
    for jump in (HOUR, -HOUR):
        monkeypatch.setattr("svckit.clock.time.time_ns", lambda jump=jump: (START + jump) * 10**9)
        assert 0 <= clock.now_us() - before < 60 * SECOND
    await eventually(lambda: clock.now_us() > before)
