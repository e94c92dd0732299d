"""A service's own database: an SQLite file, or a schema of its own in PostgreSQL.

The event loop never waits for a disk: `Database.run` hands a function to one thread, which has one
connection, and awaits it.

Of SQLite there is an exclusive lock on the file too, because common builds of it have a bug that
can corrupt a WAL with several connections, and because two processes on one file would be a mistake
anyway. `synchronous=FULL`: what was committed survives a power cut. For PostgreSQL see
`svckit.database_postgres`.
"""

from __future__ import annotations

import asyncio
import functools
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.pool import StaticPool

from svckit import migrations as schema
from svckit.errors import StartError, StoreUnavailable
from svckit.logging import get_logger
from svckit.postgres import PostgresAddress

T = TypeVar("T")

BUSY_SECONDS = 5.0
CHECK_BELOW_BYTES = 32 * 1024 * 1024

_log = get_logger("svckit.database")

_UNAVAILABLE = (
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_PERM,
)


class Backend(Protocol):
    """One kind of database. Every verb is called in the one thread."""

    def transaction(self, fn: Callable[[sa.Connection], T]) -> T:
        """Run `fn` in a transaction; `StoreUnavailable` when that cannot be done now."""
        ...

    def close(self) -> None:
        """Give up the connection."""
        ...


class Database:
    """One open database. Get it from `open`, and `close` it."""

    def __init__(self, backend: Backend, thread: ThreadPoolExecutor) -> None:
        self._backend = backend
        self._thread = thread

    @classmethod
    async def open(
        cls, url_or_path: str | Path | PostgresAddress, *, migrations: Path, name: str
    ) -> Self:
        """Open the database, create file or schema if needed, and bring it to head.

        `url_or_path`: a path, or `sqlite:///path`; `:memory:` for tests; or `postgresql://…` or
        such an address, and then the schema is called `name`. `migrations`: directory with
        `versions/`. `name` is for messages too. Raises `StartError` when the database is corrupt,
        was written by a newer version, cannot be written, is used by another process (SQLite), or
        is not reached.
        """
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"{name}-db")
        loop = asyncio.get_running_loop()
        try:
            opening = functools.partial(_open, url_or_path, migrations, name)
            return cls(await loop.run_in_executor(thread, opening), thread)
        except BaseException:
            thread.shutdown(wait=False)
            raise

    async def run(self, fn: Callable[[sa.Connection], T]) -> T:
        """Run `fn` in a transaction of its own: commit when it returns, else roll back.

        Calls run one after the other in the order they were made. Once started, a call is finished
        even if the awaiting task is cancelled. Where several processes share the database `fn` may
        be run again from its beginning, after what it did was undone. Raises `StoreUnavailable`
        when the database takes no writes now; then nothing was changed, unless the connection got
        lost at the commit itself. `sqlalchemy.exc.IntegrityError` and what `fn` raises come
        through.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._thread, functools.partial(self._backend.transaction, fn)
        )

    async def close(self) -> None:
        """Finish what was started, then close the database. Safe to call twice."""
        loop = asyncio.get_running_loop()
        if not self._thread._shutdown:
            await loop.run_in_executor(self._thread, self._backend.close)
            self._thread.shutdown(wait=False)


def _open(url_or_path: str | Path | PostgresAddress, migrations: Path, name: str) -> Backend:
    url = url_or_path if isinstance(url_or_path, PostgresAddress) else str(url_or_path)
    if isinstance(url, PostgresAddress) or url.startswith("postgresql://"):
        # Not imported where nobody asks for it: it takes time.
        from svckit.database_postgres import PostgresSchema

        return PostgresSchema(url, migrations, name)
    return _SqliteFile(_path_of(url, name), migrations, name)


class _SqliteFile:
    def __init__(self, path: Path, migrations: Path, name: str) -> None:
        self._engine = _open_file(path, migrations, name)

    def transaction(self, fn: Callable[[sa.Connection], T]) -> T:
        try:
            with self._engine.begin() as connection:
                return fn(connection)
        except exc.DBAPIError as err:
            if _primary_code(err) not in _UNAVAILABLE:
                raise
            _log.error("store unavailable", problem=_error_name(err))
            raise StoreUnavailable("the store takes no writes now; nothing was changed") from err

    def close(self) -> None:
        self._engine.dispose()


def _path_of(text: str, name: str) -> Path:
    if "://" in text and not text.startswith("sqlite:///"):
        kind = text.partition(":")[0]
        raise StartError(f"{name}: store.url: {kind} is not supported; use sqlite or postgresql")
    return Path(text.removeprefix("sqlite:///"))


def _open_file(path: Path, migrations: Path, name: str) -> sa.Engine:
    in_memory = str(path) == ":memory:"
    existed = not in_memory and path.exists()
    if not in_memory:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as err:
            raise StartError(f"{name}: cannot create {path.parent}: {err.strerror}") from err
        # SQLite tells of this in several ways, depending on which of its files it touches first.
        for needed in (path.parent, *([path] if existed else [])):
            if not os.access(needed, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
                raise StartError(f"{name}: {needed} cannot be written; check owner and permissions")
    engine = sa.create_engine(
        sa.URL.create("sqlite", database=str(path)),
        poolclass=StaticPool,
        connect_args={"check_same_thread": False, "timeout": BUSY_SECONDS},
    )
    _configure(engine)
    try:
        with engine.begin() as connection:
            if existed and path.stat().st_size <= CHECK_BELOW_BYTES:
                found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
                if found != "ok":
                    raise StartError(_corrupt(name, path, str(found)))
            schema.upgrade(connection, migrations, name, str(path))
    except exc.DBAPIError as err:
        engine.dispose()
        raise StartError(_why(err, name, path)) from err
    except BaseException:
        engine.dispose()
        raise
    return engine


def _configure(engine: sa.Engine) -> None:
    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _: Any) -> None:
        # Let SQLAlchemy begin transactions; the driver would begin too late, at the first write.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute("PRAGMA locking_mode=EXCLUSIVE")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def on_begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def _primary_code(err: exc.DBAPIError) -> int | None:
    code = getattr(err.orig, "sqlite_errorcode", None)
    return None if code is None else int(code) & 0xFF


def _error_name(err: exc.DBAPIError) -> str:
    return str(getattr(err.orig, "sqlite_errorname", type(err.orig).__name__))


def _corrupt(name: str, path: Path, detail: str) -> str:
    return f"{name}: {path} is damaged ({detail}); restore a backup, or move the file away"


def _why(err: exc.DBAPIError, name: str, path: Path) -> str:
    code = _primary_code(err)
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return _corrupt(name, path, str(err.orig))
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"{name}: {path} is used by another process; stop that one first"
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return f"{name}: {path} cannot be opened for writing; check owner and permissions"
    if code == sqlite3.SQLITE_FULL:
        return f"{name}: no space left for {path}"
    return f"{name}: {path} cannot be opened: {err.orig}"
