"""A database of a service: transactions, migrations, every way in which it can be unusable."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from svckit.database import Database
from svckit.errors import StartError, StoreUnavailable

ITEM = sa.table("item", sa.column("id", sa.Integer), sa.column("text", sa.String))


def revision(directory: Path, name: str, below: str | None, up: str) -> None:
    versions = directory / "versions"
    versions.mkdir(parents=True, exist_ok=True)
    (versions / f"{name}.py").write_text(
        textwrap.dedent(
            f'''
            """{name}"""
            import sqlalchemy as sa
            from alembic import op

            revision = "{name}"
            down_revision = {below!r}
            branch_labels = None
            depends_on = None


            def upgrade() -> None:
                {up}
            '''
        ),
        "utf-8",
    )


@pytest.fixture
def migrations(tmp_path: Path) -> Path:
    directory = tmp_path / "100% migrations"
    columns = "sa.Column('id', sa.Integer, primary_key=True), sa.Column('text', sa.String)"
    revision(directory, "0001", None, f"op.create_table('item', {columns})")
    return directory


def add(item_id: int, text: str = "x") -> sa.Insert:
    return sa.insert(ITEM).values(id=item_id, text=text)


def count(connection: sa.Connection) -> int:
    return int(connection.execute(sa.select(sa.func.count()).select_from(ITEM)).scalar_one())


async def test_a_new_database_gets_the_schema_and_keeps_what_was_committed(
    database_url: str, migrations: Path
) -> None:
    db = await Database.open(database_url, migrations=migrations, name="agent")
    await db.run(lambda c: c.execute(add(1)))
    await db.close()
    await db.close()
    db = await Database.open(database_url, migrations=migrations, name="agent")
    assert await db.run(count) == 1
    await db.close()


async def test_a_failed_transaction_leaves_nothing(database_url: str, migrations: Path) -> None:
    db = await Database.open(database_url, migrations=migrations, name="agent")

    def half(connection: sa.Connection) -> None:
        connection.execute(add(1))
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await db.run(half)
    assert await db.run(count) == 0
    await db.run(lambda c: c.execute(add(1)))
    with pytest.raises(IntegrityError):
        await db.run(lambda c: c.execute(add(1)))
    await db.close()


async def test_calls_run_in_order_in_one_thread_beside_the_loop(
    database_url: str, migrations: Path
) -> None:
    db = await Database.open(database_url, migrations=migrations, name="agent")
    gate = threading.Event()
    seen: list[tuple[int, str]] = []

    def work(number: int) -> None:
        if number == 0:
            gate.wait(5)
        seen.append((number, threading.current_thread().name))

    calls = [asyncio.ensure_future(db.run(lambda _, n=n: work(n))) for n in range(3)]
    await asyncio.sleep(0)  # the loop goes on while the thread waits
    gate.set()
    await asyncio.gather(*calls)
    assert seen == [(n, "agent-db_0") for n in range(3)]
    await db.close()


async def test_a_started_transaction_is_finished_when_its_caller_leaves(
    database_url: str, migrations: Path
) -> None:
    db = await Database.open(database_url, migrations=migrations, name="agent")
    entered, gate = threading.Event(), threading.Event()

    def slow(connection: sa.Connection) -> None:
        entered.set()
        gate.wait(5)
        connection.execute(add(1))

    call = asyncio.ensure_future(db.run(slow))
    await asyncio.to_thread(entered.wait, 5)
    call.cancel()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await db.run(count) == 1
    await db.close()


async def test_an_older_schema_is_migrated_in_one_go(database_url: str, migrations: Path) -> None:
    db = await Database.open(database_url, migrations=migrations, name="agent")
    await db.run(lambda c: c.execute(add(1)))
    await db.close()
    revision(migrations, "0002", "0001", "op.add_column('item', sa.Column('more', sa.String))")
    revision(migrations, "0003", "0002", "op.execute('INSERT INTO nowhere VALUES (1)')")
    with pytest.raises(StartError):
        await Database.open(database_url, migrations=migrations, name="agent")
    revision(migrations, "0003", "0002", "op.execute('UPDATE item SET more = text')")
    db = await Database.open(database_url, migrations=migrations, name="agent")
    assert await db.run(lambda c: c.exec_driver_sql("SELECT more FROM item").scalar()) == "x"
    await db.close()


async def test_a_newer_schema_is_refused(
    database_url: str, tmp_path: Path, migrations: Path
) -> None:
    newer = tmp_path / "newer"
    revision(newer, "0009", None, "op.execute('CREATE TABLE item (id INTEGER)')")
    await (await Database.open(database_url, migrations=newer, name="agent")).close()
    with pytest.raises(StartError, match=r"agent: .*has schema 0009, .*newer") as refused:
        await Database.open(database_url, migrations=migrations, name="agent")
    # Which of several, that a person may have to put a backup in the place of.
    where = "schema agent in " if database_url.startswith("postgresql") else str(tmp_path)
    assert where in str(refused.value)


def test_alembic_is_not_imported_when_there_is_nothing_to_migrate(
    tmp_path: Path, migrations: Path
) -> None:
    code = (
        "import asyncio, sys; from pathlib import Path; from svckit.database import Database\n"
        "async def go(): await (await Database.open(sys.argv[1], migrations=Path(sys.argv[2]),"
        " name='a')).close()\n"
        "asyncio.run(go()); print('alembic' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.db"), str(migrations)]
    seen = [subprocess.check_output(command, text=True).strip() for _ in range(2)]
    assert seen == ["True", "False"]


@pytest.mark.parametrize(
    "content", [b"this is not a database" * 100, b"SQLite format 3\x00" + b"\xff" * 5000]
)
async def test_a_corrupt_file_is_refused(tmp_path: Path, migrations: Path, content: bytes) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(content)
    with pytest.raises(StartError, match=r"agent: .*a\.db is damaged"):
        await Database.open(path, migrations=migrations, name="agent")


async def test_damage_inside_the_file_is_found_at_start(tmp_path: Path, migrations: Path) -> None:
    path = tmp_path / "a.db"
    db = await Database.open(path, migrations=migrations, name="agent")
    await db.run(lambda c: [c.execute(add(n, "y" * 3000)) for n in range(50)])
    await db.close()
    content = bytearray(path.read_bytes())
    content[4096 * 3 : 4096 * 20] = os.urandom(4096 * 17)
    path.write_bytes(content)
    with pytest.raises(StartError, match="is damaged"):
        await Database.open(path, migrations=migrations, name="agent")


async def test_a_second_process_is_refused(
    tmp_path: Path, migrations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("svckit.database.BUSY_SECONDS", 0.05)
    path = tmp_path / "a.db"
    db = await Database.open(path, migrations=migrations, name="agent")
    with pytest.raises(StartError, match="used by another process"):
        await Database.open(path, migrations=migrations, name="agent")
    await db.close()
    await (await Database.open(path, migrations=migrations, name="agent")).close()


async def test_a_directory_that_cannot_be_made(tmp_path: Path, migrations: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match=r"agent: cannot create .*: "):
        await Database.open(tmp_path / "file" / "a.db", migrations=migrations, name="agent")


async def test_a_path_that_is_a_directory(tmp_path: Path, migrations: Path) -> None:
    with pytest.raises(StartError, match="cannot be opened for writing"):
        await Database.open(tmp_path, migrations=migrations, name="agent")


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Root may write anywhere, so that a test as root has to become somebody else for a while."""
    mine = os.geteuid()
    if mine == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(mine)


@pytest.fixture
def public(migrations: Path) -> Iterator[Path]:
    """A directory that others may enter; pytest's own ones are closed, their parents included."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o755)
        shutil.copytree(migrations, place / "m")
        (place / "data").mkdir()
        yield place


@pytest.mark.parametrize("closed", ["directory", "file"])
async def test_what_may_not_be_written(public: Path, closed: str) -> None:
    path = public / "data" / "a.db"
    refused = path if closed == "file" else path.parent
    if closed == "file":
        await (await Database.open(path, migrations=public / "m", name="agent")).close()
        path.parent.chmod(0o777)
    refused.chmod(0o555)
    with nobody(), pytest.raises(StartError, match=f"agent: {refused} cannot be written"):
        await Database.open(path, migrations=public / "m", name="agent")


async def test_a_full_disk_is_store_unavailable_and_passes(
    tmp_path: Path, migrations: Path
) -> None:
    db = await Database.open(tmp_path / "a.db", migrations=migrations, name="agent")

    pages = await db.run(lambda c: c.exec_driver_sql("PRAGMA page_count").scalar())
    await db.run(lambda c: c.exec_driver_sql(f"PRAGMA max_page_count = {pages}").scalar())
    with pytest.raises(StoreUnavailable) as caught:
        await db.run(lambda c: [c.execute(add(n, "z" * 4000)) for n in range(10)])
    assert caught.value.retry_after is not None
    assert await db.run(count) == 0, "reading goes on, and nothing of the batch is there"
    await db.run(lambda c: c.exec_driver_sql("PRAGMA max_page_count = 1000000").scalar())
    await db.run(lambda c: c.execute(add(1)))
    assert await db.run(count) == 1
    await db.close()


async def test_another_kind_of_store_is_refused(migrations: Path) -> None:
    with pytest.raises(StartError, match=r"store\.url: mysql is not supported"):
        await Database.open("mysql://x/y", migrations=migrations, name="agent")


async def test_a_killed_process_loses_nothing_committed(tmp_path: Path, migrations: Path) -> None:
    code = (
        "import asyncio, os, signal, sys; from pathlib import Path\n"
        "import sqlalchemy as sa; from svckit.database import Database\n"
        "async def go():\n"
        "    db = await Database.open(sys.argv[1], migrations=Path(sys.argv[2]), name='a')\n"
        "    await db.run(lambda c: c.exec_driver_sql('INSERT INTO item (id) VALUES (1)'))\n"
        "    def half(c):\n"
        "        c.exec_driver_sql('INSERT INTO item (id) VALUES (2)')\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    await db.run(half)\n"
        "asyncio.run(go())"
    )
    path = tmp_path / "a.db"
    command = [sys.executable, "-c", code, str(path), str(migrations)]
    process = await asyncio.create_subprocess_exec(*command)
    assert await process.wait() == -9
    db = await Database.open(path, migrations=migrations, name="agent")
    assert await db.run(count) == 1
    await db.close()


async def test_a_directory_made_for_a_database_is_its_owners_only(
    tmp_path: Path, migrations: Path
) -> None:
    made = tmp_path / "data"
    database = await Database.open(
        f"sqlite:///{made / 'one.db'}", migrations=migrations, name="one"
    )
    await database.close()
    assert made.stat().st_mode & 0o777 == 0o700
