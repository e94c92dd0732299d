"""The engine at its edges: callers that leave, stores that refuse, the end of the process."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from scheduler_svc.domain import admission, recovery
from scheduler_svc.domain.kernel import Config, Kernel
from scheduler_svc.domain.records import SECOND, NewRun
from scheduler_svc.engine import Engine
from scheduler_svc.store.memory import MemoryStore
from scheduler_svc.store.sqlite import SqliteStore
from svckit.clock import SystemClock
from svckit.errors import ShuttingDown, StoreUnavailable
from svckit.testing import eventually

from .conftest import driver, message, settings


class Gate(MemoryStore):
    """A store whose commits wait while the gate is shut, and fail while it is full."""

    def __init__(self) -> None:
        super().__init__()
        self.open = asyncio.Event()
        self.open.set()
        self.waiting = 0
        self.full = False

    async def commit(self, batch: Any) -> None:
        self.waiting += 1
        await self.open.wait()
        self.waiting -= 1
        if self.full:
            raise StoreUnavailable("full")
        await super().commit(batch)


class Running:
    """An engine without a server."""

    def __init__(self) -> None:
        self.store = Gate()
        config = Config(lanes={"main": 4}, lease_ttl=10 * SECOND)
        self.engine = Engine(self.store, config, SystemClock())

    async def start(self) -> None:
        await self.engine.start()
        self.task = asyncio.create_task(self.engine.run())

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def send(self, session: str) -> None:
        new = NewRun(
            run_id=f"run-{session}",
            request_id=f"request-{session}",
            body_hash=b"",
            session_key=session,
            customer_key=session,
            queue="agent",
            lane="main",
            message=message("x").SerializeToString(),
        )

        def apply(k: Kernel, now: int) -> None:
            admission.enqueue(k, new, now, parent_lease=None)

        await self.engine.submit(apply, requests=[new.request_id], sessions=[session])

    async def poll_whose_leases_are_being_committed(self) -> asyncio.Task[Any]:
        self.store.open.clear()
        poll = asyncio.create_task(self.engine.lease("agent", "w", 1, 4, 30))

        async def committing() -> bool:
            return self.store.waiting > 0

        await eventually(committing)
        return poll


@pytest.fixture
async def r() -> AsyncIterator[Running]:
    running = Running()
    await running.start()
    yield running
    await running.stop()


async def leave(poll: asyncio.Task[Any]) -> None:
    poll.cancel()
    await asyncio.gather(poll, return_exceptions=True)


async def test_closing_does_not_wait_for_runs_that_nobody_can_give_back_any_more(
    r: Running,
) -> None:
    await r.send("a")
    await r.send("b")
    await leave(await r.poll_whose_leases_are_being_committed())
    await r.stop()
    r.store.open.set()
    await asyncio.wait_for(r.engine.close(), 30)


async def test_a_command_under_way_is_told_when_the_engine_stops(r: Running) -> None:
    r.store.open.clear()
    command = asyncio.create_task(r.send("a"))

    async def committing() -> bool:
        return r.store.waiting > 0

    await eventually(committing)
    await r.stop()
    with pytest.raises(ShuttingDown):
        await asyncio.wait_for(command, 30)
    await r.engine.close()
    with pytest.raises(ShuttingDown):
        await asyncio.wait_for(r.send("b"), 30)


async def test_runs_leased_to_a_caller_that_leaves_while_they_are_committed_go_back(
    r: Running,
) -> None:
    await r.send("a")
    await leave(await r.poll_whose_leases_are_being_committed())
    r.store.open.set()
    [leased] = await r.engine.lease("agent", "w", 1, 4, 5)
    assert leased.run.attempt == 1


async def test_runs_go_back_also_when_the_callers_wait_was_over(r: Running) -> None:
    """The wait ends while the leases are committed, and then the caller leaves."""
    poll = asyncio.create_task(r.engine.lease("agent", "w", 1, 4, 0.05))

    async def waits() -> bool:
        return bool(r.engine._polls)

    await eventually(waits)
    r.store.open.clear()
    sent = asyncio.create_task(r.send("a"))

    async def committing() -> bool:
        return r.store.waiting > 0

    await eventually(committing)
    await asyncio.wait([poll], timeout=0.2)
    await leave(poll)
    r.store.open.set()
    await sent
    [leased] = await r.engine.lease("agent", "w", 1, 4, 5)
    assert leased.run.attempt == 1


async def test_a_poll_that_a_failed_commit_refuses_leaves_no_unheard_error(r: Running) -> None:
    unheard: list[str] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda loop, context: unheard.append(context["message"])
    )
    await r.send("a")
    poll = await r.poll_whose_leases_are_being_committed()
    r.store.full = True
    r.store.open.set()
    with pytest.raises(StoreUnavailable):
        await poll
    del poll
    r.store.full = False

    async def recovered() -> bool:
        return r.engine._available

    await eventually(recovered)
    gc.collect()
    assert unheard == []


async def test_why_the_store_refuses_is_logged(
    r: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "scheduler_svc.engine"):
        r.store.full = True
        with pytest.raises(StoreUnavailable):
            await r.send("a")
        r.store.full = False
    assert "full" in [getattr(record, "error", "") for record in caplog.records]


async def test_a_broken_rule_of_the_schema_is_a_bug_not_a_full_disk(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "scheduler.db")
    await store.acquire()
    try:
        with pytest.raises(apsw.SQLError):
            await store._run(lambda db: db.execute("SELECT 1 FROM nowhere").get)
    finally:
        await store.close()


async def test_memory_of_ended_turns_does_not_pile_up_until_their_time_limit(
    tmp_path: Path,
) -> None:
    async with driver(settings(tmp_path, "memory", CONVEYOR_LANES__MAIN__LIMIT="64")) as s:
        kernel = s.engine._kernel
        kernel._timers_at_most = 20
        for _ in range(10):
            for n in range(8):
                await s.send(f"session-{n}")
            for leased in await s.lease(8):
                await s.complete(leased)
        assert not kernel.runs
        assert len(kernel._timers) <= 1000
        kernel._drop_stale_timers()
        assert kernel._timers == []


async def test_the_loop_goes_on_while_memory_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    # Else a leader with many unfinished runs loses the lead before it could renew its lease.
    building, seen = threading.Event(), threading.Event()
    rebuild = recovery.rebuild

    def slow(*args: Any) -> Kernel:
        building.set()
        assert seen.wait(30)
        return rebuild(*args)

    monkeypatch.setattr(recovery, "rebuild", slow)
    engine = Engine(MemoryStore(), Config(lanes={"main": 1}, lease_ttl=SECOND), SystemClock())
    start = asyncio.create_task(engine.start())
    await eventually(building.is_set)
    seen.set()
    await start
    await engine.close()
