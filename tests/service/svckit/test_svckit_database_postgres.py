"""A service's schema in PostgreSQL: what is different from a file, and lost connections."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from test_svckit_database import ITEM, add, count, migrations

from svckit.database import Database
from svckit.database_postgres import PostgresSchema, probe
from svckit.errors import StartError, StoreUnavailable
from svckit.postgres import PostgresAddress
from svckit.testing import eventually
from svckit.testing.postgres import PostgresServer
from svckit.testing.proxy import Proxy, proxy

__all__ = ["migrations"]


@asynccontextmanager
async def opened(url: str, migrations: Path, name: str = "agent") -> AsyncIterator[Database]:
    database = await Database.open(url, migrations=migrations, name=name)
    yield database
    await database.close()


async def test_services_that_start_at_once_have_a_schema_each(
    postgres: PostgresServer, postgres_url: str, migrations: Path
) -> None:
    names = ["agent", "agent", "agent", "gateway"]
    found = await asyncio.gather(
        *(Database.open(postgres_url, migrations=migrations, name=name) for name in names)
    )
    await found[0].run(lambda c: c.execute(add(1)))
    assert [await database.run(count) for database in found] == [1, 1, 1, 0]
    for database in found:
        await database.close()
    rows = postgres.execute(
        "SELECT schemaname, tablename FROM pg_tables WHERE tablename IN ('item', 'alembic_version')"
        " ORDER BY 1, 2",
        postgres_url,
    )
    assert rows == [[s, t] for s in ("agent", "gateway") for t in ("alembic_version", "item")]


async def test_texts_may_be_long_and_lose_only_what_the_database_has_no_place_for(
    postgres_url: str, migrations: Path
) -> None:
    revisions = (migrations / "versions" / "0001.py").read_text("utf-8")
    assert "sa.String)" in revisions
    (migrations / "versions" / "0001.py").write_text(
        revisions.replace("sa.String)", "sa.String(5))"), "utf-8"
    )
    async with opened(postgres_url, migrations) as database:
        await database.run(lambda c: c.execute(add(1, "long\0er")))
        rows = await database.run(lambda c: c.execute(sa.select(ITEM.c.text)).scalars().all())
        assert rows == ["long\ufffder"]


async def test_two_processes_of_a_service_do_not_see_each_others_halves(
    postgres_url: str, migrations: Path
) -> None:
    """Both look first and write then, as code for one process does."""
    async with opened(postgres_url, migrations) as one, opened(postgres_url, migrations) as two:
        met = threading.Barrier(2, timeout=10)
        first = {one: True, two: True}

        def take_next(database: Database, connection: sa.Connection) -> None:
            there = count(connection)
            if first.pop(database, False):
                met.wait()
            connection.execute(add(there))

        await asyncio.gather(
            *(db.run(functools.partial(take_next, db)) for db in (one, two) for _ in range(5))
        )
        ids = await one.run(lambda c: c.execute(sa.select(ITEM.c.id)).scalars().all())
        assert sorted(ids) == list(range(10))


async def test_a_server_that_restarts_is_found_again(
    migrations: Path, breakable_postgres: PostgresServer
) -> None:
    server = breakable_postgres
    with server.database() as url:
        async with opened(url, migrations) as database:
            await database.run(lambda c: c.execute(add(1)))
            for restart in (
                functools.partial(server.restart, "fast"),
                functools.partial(server.restart, "immediate"),
            ):
                restart()

                async def back() -> bool:
                    try:
                        return await database.run(count) == 1
                    except StoreUnavailable:
                        return False

                await eventually(back)
            server.kill()
            for _ in range(2):
                with pytest.raises(StoreUnavailable):
                    await database.run(count)
            server.start()
            await eventually(back)


@asynccontextmanager
async def behind_a_proxy(
    server: PostgresServer, url: str, migrations: Path
) -> AsyncIterator[tuple[Database, Proxy]]:
    async with proxy(server.port) as net:
        through = url.replace(f":{server.port}/", f":{net.port}/")
        async with opened(through, migrations) as database:
            await database.run(lambda c: c.execute(add(1)))
            yield database, net


async def test_a_commit_that_comes_to_the_server_after_all_is_refused(
    postgres: PostgresServer, postgres_url: str, migrations: Path
) -> None:
    """The server has the old connection, and gets its commit only after we are back."""
    async with behind_a_proxy(postgres, postgres_url, migrations) as (database, net):

        def write(connection: sa.Connection) -> None:
            connection.execute(add(2))
            net.hold_requests = True  # from now on: that is the commit

        writing = asyncio.create_task(database.run(write))
        await eventually(lambda: net.held)
        net.hold_requests = False
        net.cut_clients()
        with pytest.raises(StoreUnavailable):
            await writing
        assert await database.run(count) == 1
        net.deliver()
        assert await database.run(count) == 1


async def test_a_commit_that_happened_although_its_answer_got_lost_is_there(
    postgres: PostgresServer, postgres_url: str, migrations: Path
) -> None:
    async with behind_a_proxy(postgres, postgres_url, migrations) as (database, net):

        def write(connection: sa.Connection) -> None:
            connection.execute(add(2))
            net.hold_answers_from = b"COMMIT"  # what the server says when it is done

        writing = asyncio.create_task(database.run(write))
        await eventually(lambda: net.held_answers)
        net.hold_answers = False
        net.cut_clients()
        with pytest.raises(StoreUnavailable):
            await writing
        assert await database.run(count) == 2


async def test_an_error_of_one_call_leaves_the_connection_as_it_is(
    postgres_url: str, migrations: Path
) -> None:
    backend = sa.func.pg_backend_pid()
    async with opened(postgres_url, migrations) as database:
        before = await database.run(lambda c: c.scalar(sa.select(backend)))
        with pytest.raises(sa.exc.DBAPIError):
            await database.run(lambda c: c.execute(sa.text("SELECT nothing")))
        with pytest.raises(StoreUnavailable):
            await database.run(lambda c: c.execute(sa.text("SET TRANSACTION READ ONLY"))
                               and c.execute(add(2)))  # fmt: skip
        assert await database.run(lambda c: c.scalar(sa.select(backend))) == before


async def refusal(url: str, migrations: Path, patience: float = 10) -> str:
    """What an attempt to start says."""
    with ThreadPoolExecutor(1) as thread, pytest.raises(StartError) as caught:
        await asyncio.get_running_loop().run_in_executor(
            thread, functools.partial(PostgresSchema, url, migrations, "agent", patience=patience)
        )
    return str(caught.value)


async def test_what_waiting_does_not_help_is_told_at_once(
    postgres: PostgresServer, postgres_url: str, migrations: Path
) -> None:
    assert "a database that does not exist" in await refusal(postgres.url("nowhere"), migrations)
    stranger = postgres_url.replace("conveyor@", "nobody:secret-word@")
    told = await refusal(stranger, migrations)
    assert "user or the password" in told
    assert "secret-word" not in told
    assert "must name a database" in await refusal("postgresql://u@h", migrations)
    with pytest.raises(StartError, match="does not exist"):
        probe(PostgresAddress.parse(postgres.url("nowhere")))


async def test_a_server_that_asks_for_a_password(
    migrations: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    breakable_postgres: PostgresServer,
) -> None:
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
    server = breakable_postgres
    with server.database() as url:
        server.ask_for_password("asked_twice", "right")
        url = url.replace("conveyor@", "asked_twice@")
        assert "user or the password" in await refusal(url, migrations)
        assert "user or the password" in await refusal(url.replace("@", ":wrong@"), migrations)
        monkeypatch.setenv("PGPASSWORD", "right")
        async with opened(url, migrations) as database:
            assert await database.run(count) == 0


async def test_a_server_that_comes_later_is_waited_for(
    migrations: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    breakable_postgres: PostgresServer,
) -> None:
    server = breakable_postgres
    with server.database() as url:
        server.stop()
        told = await refusal(url, migrations, patience=0)
        assert f"does not answer at 127.0.0.1:{server.port}/" in told
        with pytest.raises(StartError, match="no answer"):
            probe(PostgresAddress.parse(url))
        starting = asyncio.create_task(Database.open(url, migrations=migrations, name="agent"))
        said: list[str] = []

        def waits() -> bool:
            # Where it goes depends on whether a test before this one set logging up.
            said.append(caplog.text + "".join(capsys.readouterr()))
            return any("waiting for PostgreSQL" in text for text in said)

        await eventually(waits)
        await asyncio.to_thread(server.start)
        database = await starting
        assert await database.run(count) == 0
        await database.close()
        version, safe = probe(PostgresAddress.parse(url))
        assert version.partition(".")[0].isdecimal()
        assert not safe  # servers of tests do not wait for the disk
