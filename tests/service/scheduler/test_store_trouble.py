"""A store that fails: nothing is lost, nothing is half done, and the service recovers by itself."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from conveyor.scheduler.v1 import lane_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_svc.domain.kernel import Kernel
from scheduler_svc.store.base import LaneStore
from scheduler_svc.store.sqlite import SqliteStore
from svckit.errors import Internal, StartError, StoreUnavailable
from svckit.grpc.client import call
from svckit.grpc.status import from_proto
from svckit.testing import eventually

from .conftest import Driver, driver, settings


class Failing:
    """Refuses commits while told to."""

    def __init__(self, inner: LaneStore) -> None:
        self._inner = inner
        self.full = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def commit(self, batch: Any) -> None:
        if self.full:
            raise StoreUnavailable("full")
        await self._inner.commit(batch)


async def health(s: Driver) -> int:
    stub: Any = health_pb2_grpc.HealthStub(s.channel)
    response = await stub.Check(health_pb2.HealthCheckRequest())
    return int(response.status)


async def accepts(s: Driver, item: pb.EnqueueItem) -> bool:
    try:
        response = await s.scheduler.EnqueueRuns(pb.EnqueueRunsRequest(items=[item]))
    except aio.AioRpcError:
        return False
    return bool(response.results[0].HasField("accepted"))


async def test_a_full_store_refuses_and_recovers(tmp_path: Path, store: str) -> None:
    stores: list[Failing] = []

    def wrap(inner: LaneStore) -> Failing:
        stores.append(Failing(inner))
        return stores[0]

    async with driver(settings(tmp_path, store), wrap=wrap) as s:
        await s.send("a", "before")
        poll = asyncio.create_task(s.lease(1, 0))
        assert len(await poll) == 1
        stores[0].full = True
        # Of the call, not of the item: a turn that spawns would take that for a refusal for good.
        with pytest.raises(StoreUnavailable) as refused:
            await call(
                s.scheduler.EnqueueRuns(
                    pb.EnqueueRunsRequest(items=[s.item("b", "lost", request_id="same")])
                )
            )
        assert refused.value.retry_after is not None
        assert await health(s) == health_pb2.HealthCheckResponse.NOT_SERVING
        stores[0].full = False

        async def accepted() -> bool:
            return await accepts(s, s.item("b", "lost", request_id="same"))

        await eventually(accepted)
        assert await health(s) == health_pb2.HealthCheckResponse.SERVING
        assert len(await s.log("b")) == 2
        leased = await s.lease_one()
        assert leased.run.spec.session_key == "b"


async def test_sqlite_that_is_full_says_so_and_recovers(tmp_path: Path) -> None:
    def limit(pages: int) -> Any:
        return s.engine.store._run(  # type: ignore[attr-defined]
            lambda db: db.execute(f"PRAGMA max_page_count = {pages}").fetchall()
        )

    async with driver(settings(tmp_path)) as s:
        await s.send("a", "before")
        await limit(1)  # SQLite keeps it at the present size
        error = None
        for n in range(50):
            item = s.item("a", "x" * 100_000, request_id=f"big-{n}")
            if not await accepts(s, item):
                error = from_proto(await s.refused(item))
                break
        assert error is not None
        assert error.reason == "STORE_UNAVAILABLE"
        await limit(1_000_000)

        async def accepted() -> bool:
            return await accepts(s, s.item("c", "after", request_id="after"))

        await eventually(accepted)


async def test_a_bug_in_a_rule_rebuilds_memory_and_hides_its_text(tmp_path: Path) -> None:
    async with driver(settings(tmp_path)) as s:
        await s.send("a")

        def broken(k: Kernel, now: int) -> None:
            k.runs.clear()
            raise RuntimeError("secret")

        with pytest.raises(Internal) as caught:
            await s.engine.submit(broken)
        assert "secret" not in str(caught.value)

        async def recovered() -> bool:
            return s.engine._available

        await eventually(recovered)
        leased = await s.lease_one()
        assert leased.run.spec.session_key == "a"


async def test_state_survives_a_restart_and_leases_are_renewed(tmp_path: Path) -> None:
    config = settings(tmp_path)
    async with driver(config) as s:
        await s.send("a", "one")
        await s.send("a", "two")
        leased = await s.lease_one()
        [child] = await s.spawn(leased, "x")
    async with driver(config) as s:
        [status] = await s.extend(leased)
        assert not status.lost
        await s.wait_for_children(leased, child)
        await s.complete(await s.lease_one(), "result")
    async with driver(config) as s:
        joined = await s.lease_one()
        assert [c.text for c in joined.resumption.children] == ["result"]
        await s.complete(joined)
        assert (await s.lease_one()).run.inputs[0].message.parts[0].text == "two"
        await s.log("a")


async def test_the_place_of_a_steered_message_is_not_given_away_after_a_restart(
    tmp_path: Path,
) -> None:
    """Found by the state machine: a new run took the order, and its row, of the steered message."""
    config = settings(tmp_path)
    async with driver(config) as s:
        await s.send("a", "one")
        leased = await s.lease_one()
        await s.send("a", "two", mode=lane_pb2.QUEUE_MODE_STEER)
    async with driver(config) as s:
        other = await s.send("b", "three", request_id="three")
        await s.complete(leased)
        assert await s.state(other.run.run_id) == "QUEUED"
        texts = {i.run.inputs[0].message.parts[0].text for i in await s.lease(10)}
        assert texts == {"two", "three"}


async def start(path: Path) -> None:
    store = SqliteStore(path)
    try:
        await store.acquire()
    finally:
        await store.close()


async def test_a_directory_made_for_the_store_is_its_owners_only(tmp_path: Path) -> None:
    await start(tmp_path / "data" / "scheduler.db")
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


async def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "scheduler.db"
    path.write_bytes(b"this is no database, however long it may be" * 100)
    with pytest.raises(StartError, match="damaged or is no database"):
        await start(path)


async def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    import apsw

    path = tmp_path / "scheduler.db"
    await start(path)
    db = apsw.Connection(str(path))
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StartError, match="schema 99"):
        await start(path)


async def test_a_second_scheduler_on_one_store_is_refused(tmp_path: Path) -> None:
    first = SqliteStore(tmp_path / "scheduler.db")
    await first.acquire()
    with pytest.raises(StartError, match="another scheduler"):
        await start(tmp_path / "scheduler.db")
    await first.close()


async def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="cannot write here"):
        await start(tmp_path / "file" / "data" / "scheduler.db")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_read_only_directory_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)  # noqa: ASYNC240
    with pytest.raises(StartError, match="cannot write"):
        await start(tmp_path / "scheduler.db")


async def test_a_poll_whose_caller_left_gives_its_run_back(tmp_path: Path) -> None:
    async with driver(settings(tmp_path)) as s:
        poll = asyncio.create_task(s.lease(1, 30))

        async def waits() -> bool:
            return bool(s.engine._polls)

        await eventually(waits)
        poll.cancel()
        with pytest.raises(asyncio.CancelledError):
            await poll

        async def gone() -> bool:
            return not s.engine._polls

        await eventually(gone)
        await s.send("a")
        leased = await s.lease_one()
        assert leased.lease.attempt == 1
