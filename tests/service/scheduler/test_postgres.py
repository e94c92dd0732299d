"""What is PostgreSQL's own: the schema, who leads, and commits whose answer gets lost."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import asyncpg
import pytest

from scheduler_svc.domain.records import Lease, Run, RunState
from scheduler_svc.store import postgres_sql as sql
from scheduler_svc.store.base import Batch, Known
from scheduler_svc.store.postgres import PostgresStore
from scheduler_svc.store.postgres_link import ERRORS
from svckit.errors import NotLeader, StartError, StoreUnavailable
from svckit.postgres import PostgresAddress
from svckit.testing import eventually
from svckit.testing.postgres import PostgresServer
from svckit.testing.proxy import Proxy, proxy


class Disk:
    """A file system of a test's own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resize(self, mebibytes: int) -> None:
        options = f"remount,size={mebibytes}m"
        subprocess.run(["mount", "-o", options, str(self.path)], check=True)


@contextmanager
def small_disk(path: Path, mebibytes: int) -> Iterator[Disk]:
    """A disk of the server's user, or no test where that is not allowed."""
    path.mkdir()
    owner = path.parent.stat()
    options = f"size={mebibytes}m,uid={owner.st_uid},gid={owner.st_gid},mode=700"
    command = ["mount", "-t", "tmpfs", "-o", options, "conveyor-test", str(path)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def make(url: str, *, leads: float = 60.0, patience: float = 10.0) -> PostgresStore:
    return PostgresStore(PostgresAddress.parse(url), leads=leads, patience=patience)


@asynccontextmanager
async def opened(url: str, **options: float) -> AsyncIterator[PostgresStore]:
    store = make(url, **options)
    await store.acquire()
    yield store
    await store.close()


def run(n: int, session: str = "a", *, executing: bool = False) -> Run:
    lease = Lease(token=n, worker="w", incarnation=1, lease_time=1, expire_time=2)
    return Run(
        run_id=f"r{n}",
        flow_id=f"r{n}",
        order=n,
        session_key=session,
        customer_key="c",
        queue="agent",
        lane="main",
        create_time=1,
        state=RunState.RUNNING if executing else RunState.QUEUED,
        lease=lease if executing else None,
    )


def batch(*runs: Run) -> Batch:
    return Batch(time=1, runs=list(runs), payloads={r.run_id: b"p" for r in runs})


async def unfinished(store: PostgresStore) -> list[str]:
    return [found.run_id for found in (await store.load()).runs]


# -- The schema ---------------------------------------------------------------------------------


async def test_schedulers_that_start_at_once_make_one_schema(postgres_url: str) -> None:
    stores = [make(postgres_url, leads=0) for _ in range(4)]
    await asyncio.gather(*(store.acquire() for store in stores))
    for store in stores:
        assert await unfinished(store) == []
        await store.close()


async def test_a_newer_schema_is_refused(postgres: PostgresServer, postgres_url: str) -> None:
    async with opened(postgres_url):
        pass
    postgres.execute("UPDATE scheduler.schema_version SET version = 99", postgres_url)
    with pytest.raises(StartError, match=f"schema 99.*knows {sql.SCHEMA_VERSION}"):
        await make(postgres_url).acquire()


async def test_a_schema_of_its_own(postgres: PostgresServer, postgres_url: str) -> None:
    async with opened(postgres_url):
        pass
    rows = postgres.execute(
        "SELECT DISTINCT schemaname FROM pg_tables "
        "WHERE schemaname NOT IN ('pg_catalog', 'information_schema')",
        postgres_url,
    )
    assert rows == [["scheduler"]]


async def test_what_waiting_does_not_help_is_told_at_once(
    postgres: PostgresServer, postgres_url: str
) -> None:
    with pytest.raises(StartError, match="a database that does not exist"):
        await make(postgres.url("nowhere")).acquire()
    address = postgres_url.replace("conveyor@", "nobody:secret-word@")
    with pytest.raises(StartError, match="user or the password") as caught:
        await make(address).acquire()
    assert "secret-word" not in str(caught.value)
    postgres.execute("DROP ROLE IF EXISTS guest")
    postgres.execute("CREATE ROLE guest LOGIN")
    with pytest.raises(StartError, match="may not create the schema"):
        await make(postgres_url.replace("conveyor@", "guest@")).acquire()
    postgres.execute("DROP ROLE guest")


async def test_a_server_that_asks_for_a_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breakable_postgres: PostgresServer
) -> None:
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
    server = breakable_postgres
    with server.database() as url:
        server.ask_for_password("asked_once", "right")
        url = url.replace("conveyor@", "asked_once@")
        for wrong in (url, url.replace("@", ":wrong@")):
            with pytest.raises(StartError, match="user or the password"):
                await make(wrong).acquire()
        monkeypatch.setenv("PGPASSWORD", "right")
        async with opened(url) as store:
            assert await unfinished(store) == []


async def test_a_server_that_comes_later_is_waited_for(
    caplog: pytest.LogCaptureFixture, breakable_postgres: PostgresServer
) -> None:
    caplog.set_level(logging.WARNING)
    server = breakable_postgres
    with server.database() as url:
        server.stop()
        with pytest.raises(StartError, match=rf"does not answer at 127.0.0.1:{server.port}/"):
            await make(url, patience=0.1).acquire()
        caplog.clear()
        store = make(url, patience=60)
        starting = asyncio.create_task(store.acquire())
        await eventually(lambda: "waiting for PostgreSQL" in caplog.messages)
        await asyncio.get_running_loop().run_in_executor(None, server.start)
        await starting
        assert caplog.messages.count("waiting for PostgreSQL") == 1
        await store.commit(batch(run(1)))
        await store.close()


# -- What the database refuses by itself --------------------------------------------------------


async def test_two_executing_runs_of_a_session_are_refused(postgres_url: str) -> None:
    async with opened(postgres_url) as store:
        await store.commit(batch(run(1, executing=True), run(2)))
        with pytest.raises(asyncpg.UniqueViolationError):
            await store.commit(Batch(time=1, runs=[run(2, executing=True)]))
        await store.commit(Batch(time=1, runs=[run(3, "b", executing=True)]))
        # The end of one and the start of the next, in whatever order they come.
        await store.commit(Batch(time=1, runs=[run(2, executing=True), run(1)]))
        await store.commit(Batch(time=1, runs=[run(2), run(1, executing=True)]))
        # Also when the next one is new.
        await store.commit(batch(run(4, executing=True), run(1)))


async def test_an_error_of_one_commit_leaves_nothing_and_the_next_goes_on(
    postgres_url: str,
) -> None:
    async with opened(postgres_url) as store:
        await store.commit(batch(run(1)))
        other = run(2)
        other.order = 1
        with pytest.raises(asyncpg.UniqueViolationError):
            await store.commit(Batch(time=1, runs=[other], payloads={"r2": b""}, limits={"m": 1}))
        await store.commit(Batch(time=1, token=5))
        loaded = await store.load()
        assert ([r.run_id for r in loaded.runs], loaded.limits, loaded.last_token) == (
            ["r1"],
            {},
            5,
        )


async def test_a_name_of_a_client_with_a_nul_does_not_refuse_the_commit(postgres_url: str) -> None:
    """Else no turn of such a run could ever end, nor what shares its commits."""
    async with opened(postgres_url) as store:
        odd = {("turn_time", f"agent/{name}"): b"{}" for name in ("a\0b", "a\ufffdb", "a")}
        await store.commit(Batch(time=1, facts=dict(odd)))
        await store.commit(Batch(time=1, facts={("turn_time", "agent/a\0b"): None}))
        assert set((await store.load()).facts) == {("turn_time", "agent/a")}


async def test_keys_that_no_database_has_are_not_found(postgres_url: str) -> None:
    async with opened(postgres_url) as store:
        known = await store.lookup(["\0"], ["\0"], ["\0"], [("\0", "\0")])
        assert known == Known()
        assert await store.session_head("\0") is None


# -- Who leads ----------------------------------------------------------------------------------


async def test_one_leads_until_its_lease_ends_or_it_resigns(postgres_url: str) -> None:
    async with opened(postgres_url, leads=0) as one, opened(postgres_url, leads=0) as two:
        with pytest.raises(NotLeader):
            await one.commit(batch(run(1)))
        first = await one.campaign("h1", "one:1", 0.3)
        assert (first.epoch, first.holder) == (1, "h1")
        other = await two.campaign("h2", "two:2", 0.3)
        assert (other.epoch, other.holder, other.address) == (1, "h1", "one:1")
        assert other.seconds_left <= 0.3
        with pytest.raises(NotLeader):
            await two.commit(batch(run(1)))
        with pytest.raises(NotLeader):
            await two.prune(requests_before=9, ended_before=9)
        await one.commit(batch(run(1)))

        async def taken() -> bool:
            return (await two.campaign("h2", "two:2", 60)).holder == "h2"

        await eventually(taken)
        for refused in (one.commit(batch(run(2))), one.renew(1)):
            with pytest.raises(NotLeader) as caught:
                await refused
        assert caught.value.metadata == {"leader": "two:2", "epoch": "2"}
        with pytest.raises(NotLeader):
            await one.prune(requests_before=9, ended_before=9)
        await one.resign()  # it has nothing to give
        await two.commit(batch(run(2)))
        assert await unfinished(two) == ["r1", "r2"]
        await two.resign()
        with pytest.raises(NotLeader):
            await two.commit(batch(run(3)))
        assert (await one.campaign("h3", "one:1", 60)).epoch == 3


async def test_a_lease_that_ended_lasts_on_when_nobody_took_it(postgres_url: str) -> None:
    async with opened(postgres_url, leads=0) as one, opened(postgres_url, leads=0) as two:
        await one.campaign("h1", "one:1", 0.01)

        async def ended() -> bool:
            row = await one._fetch("SELECT expire_time < clock_timestamp() FROM leader")
            return bool(row[0][0])

        await eventually(ended)
        await one.renew(60)
        assert (await two.campaign("h2", "two:2", 60)).holder == "h1"


async def test_a_write_under_way_holds_up_the_next_leader_but_no_renewal(
    postgres_url: str,
) -> None:
    async with opened(postgres_url, leads=0) as one, opened(postgres_url, leads=0) as two:
        await one.campaign("h1", "one:1", 0.01)
        async with one._pool.acquire() as db, db.transaction():
            assert await db.fetchval(sql.LEADING, 1)
            await one.renew(0.01)
            await asyncio.sleep(0.02)  # the lease is over: only the write stands in the way
            assert (await two.campaign("h2", "two:2", 60)).holder == "h1"
        assert (await two.campaign("h2", "two:2", 60)).holder == "h2"


async def test_a_leader_that_stops_in_the_middle_of_a_write_is_ended(postgres_url: str) -> None:
    async with opened(postgres_url, leads=0) as one, opened(postgres_url, leads=0) as two:
        await one.campaign("h1", "one:1", 0.01)
        db = await one._pool.acquire()
        await db.execute("BEGIN")
        assert await db.fetchval(sql.LEADING, 1)

        async def taken() -> bool:
            return (await two.campaign("h2", "two:2", 60)).holder == "h2"

        await eventually(taken, timeout=10)
        with pytest.raises(ERRORS):
            await db.execute("COMMIT")
        await one._pool.release(db)


# -- Commits whose answer gets lost -------------------------------------------------------------


@asynccontextmanager
async def behind_a_proxy(
    server: PostgresServer, url: str
) -> AsyncIterator[tuple[PostgresStore, Proxy]]:
    async with proxy(server.port) as net:
        through = url.replace(f":{server.port}/", f":{net.port}/")
        async with opened(through) as store:
            await store.load()
            await store.commit(batch(run(99, "z")))  # the statement is known to the server
            yield store, net


async def committed_unheard(store: PostgresStore, net: Proxy, what: Batch) -> asyncio.Task[None]:
    """A commit that the server has done, and whose answer never comes."""
    net.hold_answers = True
    commit = asyncio.create_task(store.commit(what))
    await eventually(lambda: net.held_answers)
    net.hold_answers = False
    return commit


async def test_a_commit_that_happened_although_its_answer_got_lost_is_loaded(
    postgres: PostgresServer, postgres_url: str
) -> None:
    async with behind_a_proxy(postgres, postgres_url) as (store, net):
        commit = await committed_unheard(store, net, batch(run(1)))
        net.cut_clients()
        with pytest.raises(StoreUnavailable):
            await commit
        # What memory says is in doubt: nothing is written before everything was loaded.
        with pytest.raises(StoreUnavailable):
            await store.commit(batch(run(2)))
        assert await unfinished(store) == ["r1", "r99"]
        await store.commit(batch(run(2)))
        assert await unfinished(store) == ["r1", "r2", "r99"]


async def test_a_commit_that_comes_to_the_server_after_all_is_refused(
    postgres: PostgresServer, postgres_url: str
) -> None:
    """The server has the old connection and gets its last words only after we have loaded."""
    async with behind_a_proxy(postgres, postgres_url) as (store, net):
        await store.commit(Batch(time=1, runs=[], token=1))  # the statement is prepared
        net.hold_requests = True
        commit = asyncio.create_task(store.commit(Batch(time=1, token=7)))
        await eventually(lambda: net.held)
        net.hold_requests = False
        net.cut_clients()
        with pytest.raises(StoreUnavailable):
            await commit
        assert (await store.load()).last_token == 1
        answered = net.held_answers
        net.hold_answers = True
        net.deliver()
        await eventually(lambda: net.held_answers > answered)  # it was executed
        net.hold_answers = False
        assert (await store.load()).last_token == 1


async def test_loading_waits_for_a_commit_that_is_still_under_way(
    postgres: PostgresServer, postgres_url: str
) -> None:
    async with behind_a_proxy(postgres, postgres_url) as (store, net):
        await store.commit(batch(run(1)))
        blocker = await asyncpg.connect(postgres_url)
        await blocker.execute("BEGIN; UPDATE scheduler.records SET descendants = 0")
        commit = asyncio.create_task(store.commit(Batch(time=1, runs=[run(1, executing=True)])))

        async def waiting() -> int:
            [[found]] = postgres.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            )
            return int(found)

        await eventually(waiting)
        net.cut_clients()
        with pytest.raises(StoreUnavailable):
            await commit
        loading = asyncio.create_task(store.load())

        async def both_wait() -> bool:
            return await waiting() == 2

        await eventually(both_wait)
        assert not loading.done()
        await blocker.execute("COMMIT")
        assert (await loading).runs[0].lease is not None  # what the old connection wrote
        await blocker.close()


async def test_a_caller_that_is_cancelled_leaves_no_doubt_behind(
    postgres: PostgresServer, postgres_url: str
) -> None:
    async with behind_a_proxy(postgres, postgres_url) as (store, net):
        commit = await committed_unheard(store, net, batch(run(1)))
        commit.cancel()
        with pytest.raises(asyncio.CancelledError):
            await commit
        with pytest.raises(StoreUnavailable):
            await store.commit(batch(run(2)))
        assert await unfinished(store) == ["r1", "r99"]


# -- A server that ends and comes back ----------------------------------------------------------


async def test_a_restart_while_idle_is_not_noticed(breakable_postgres: PostgresServer) -> None:
    server = breakable_postgres
    with server.database() as url:
        async with opened(url) as store:
            await store.commit(batch(run(1)))
            await asyncio.to_thread(server.restart, "immediate")
            await store.commit(batch(run(2)))
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
            assert set(await store.get_runs(["r1", "r2"])) == {"r1", "r2"}
            await asyncio.to_thread(server.restart, "fast")
            await store.renew(60)
            assert await unfinished(store) == ["r1", "r2"]


async def test_a_server_that_is_away_or_takes_no_writes_is_unavailable(
    breakable_postgres: PostgresServer,
) -> None:
    server = breakable_postgres
    with server.database() as url:
        async with opened(url) as store:
            await store.commit(batch(run(1)))
            await asyncio.to_thread(server.stop, "immediate")
            for call in (
                store.commit(batch(run(2))),
                store.load(),
                store.get_runs(["r1"]),
                store.renew(60),
                store.prune(requests_before=9, ended_before=9),
            ):
                with pytest.raises(StoreUnavailable):
                    await call
            server.start()
            server.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            await asyncio.to_thread(server.restart, "fast")
            with pytest.raises(StoreUnavailable):
                await store.load()
            server.execute("ALTER SYSTEM RESET default_transaction_read_only")
            await asyncio.to_thread(server.restart, "fast")
            assert await unfinished(store) == ["r1"]


async def test_a_server_that_lost_commits_is_not_written_to_unseen(
    breakable_postgres: PostgresServer,
) -> None:
    """As a standby that was promoted may have: memory has to be built again."""
    server = breakable_postgres
    with server.database() as url:
        async with opened(url) as store:
            await store.commit(batch(run(1)))
            await store.commit(batch(run(2)))
            await asyncio.to_thread(server.restart, "fast")
            server.execute("DELETE FROM scheduler.runs WHERE run_id = 'r2'", url)
            server.execute("DELETE FROM scheduler.records WHERE ord = 2", url)
            server.execute("UPDATE scheduler.meta SET value = value - 1 WHERE key = 'commits'", url)
            with pytest.raises(StoreUnavailable, match="changed under us"):
                await store.commit(batch(run(3)))
            assert await unfinished(store) == ["r1"]
            await store.commit(batch(run(2)))


async def test_a_disk_that_fills_up_and_gets_space(breakable_postgres: PostgresServer) -> None:
    server, stored = breakable_postgres, 1
    with small_disk(server.directory / "small", 24) as disk:
        server.execute(f"CREATE TABLESPACE small LOCATION '{disk.path}'")
        server.execute("CREATE DATABASE crowded TABLESPACE small")
        try:
            async with opened(server.url("crowded")) as store:
                await store.commit(batch(run(1)))
                batches = [
                    Batch(time=1, runs=[run(n)], payloads={f"r{n}": os.urandom(500_000)})
                    for n in range(2, 80)
                ]

                async def fill() -> None:
                    nonlocal stored
                    while True:
                        await store.commit(batches[stored - 1])
                        stored += 1

                with pytest.raises(StoreUnavailable):
                    await fill()
                assert [r.order for r in (await store.load()).runs] == list(range(1, stored + 1))
                disk.resize(64)
                await store.commit(batches[stored - 1])
                assert len(await unfinished(store)) == stored + 1
        finally:
            server.execute("DROP DATABASE crowded WITH (FORCE)")
            server.execute("DROP TABLESPACE small")
