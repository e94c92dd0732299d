"""A service's own SQLite file, used from one thread over one connection.

The event loop never waits for a disk: `Database.run` hands a function to the thread and awaits it.
There is one connection and an exclusive lock on the file, because common builds of SQLite have a
bug that can corrupt a WAL with several connections, and because two processes on one file would be
a mistake anyway. `synchronous=FULL`: what was committed survives a power cut.
"""

from __future__ import annotations

import asyncio
import functools
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.pool import StaticPool

from svckit import migrations as schema
from svckit.errors import StartError, StoreUnavailable
from svckit.logging import get_logger

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


class Database:
    """One open database. Get it from `open`, and `close` it."""

    def __init__(self, engine: sa.Engine, thread: ThreadPoolExecutor) -> None:
        self._engine = engine
        self._thread = thread

    @classmethod
    async def open(cls, url_or_path: str | Path, *, migrations: Path, name: str) -> Self:
        """Open the file, create it if needed, and bring its schema to head.

        `url_or_path`: a path, or `sqlite:///path`; `:memory:` for tests. `migrations`: directory
        with `versions/`. `name` is for messages. Raises `StartError` when the file is corrupt, was
        written by a newer version, cannot be written, or is used by another process.
        """
        path = _path_of(url_or_path, name)
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"{name}-db")
        loop = asyncio.get_running_loop()
        try:
            engine = await loop.run_in_executor(
                thread, functools.partial(_open, path, migrations, name)
            )
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(engine, thread)

    async def run(self, fn: Callable[[sa.Connection], T]) -> T:
        """Run `fn` in a transaction of its own: commit when it returns, else roll back.

        Calls run one after the other in the order they were made. Once started, a call is finished
        even if the awaiting task is cancelled. Raises `StoreUnavailable` when the file takes no
        writes now; `sqlalchemy.exc.IntegrityError` and what `fn` raises come through.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._thread, functools.partial(_transaction, self._engine, fn)
        )

    async def close(self) -> None:
        """Finish what was started, then close the file. Safe to call twice."""
        loop = asyncio.get_running_loop()
        if not self._thread._shutdown:
            await loop.run_in_executor(self._thread, self._engine.dispose)
            self._thread.shutdown(wait=False)


def _transaction(engine: sa.Engine, fn: Callable[[sa.Connection], T]) -> T:
    try:
        with engine.begin() as connection:
            return fn(connection)
    except exc.DBAPIError as err:
        if _primary_code(err) not in _UNAVAILABLE:
            raise
        _log.error("store unavailable", problem=_error_name(err))
        raise StoreUnavailable("the store takes no writes now; nothing was changed") from err


def _path_of(url_or_path: str | Path, name: str) -> Path:
    text = str(url_or_path)
    if "://" in text and not text.startswith("sqlite:///"):
        kind = text.partition(":")[0]
        raise StartError(f"{name}: store.url: {kind} is not supported in this version; use sqlite")
    return Path(text.removeprefix("sqlite:///"))


def _open(path: Path, migrations: Path, name: str) -> sa.Engine:
    in_memory = str(path) == ":memory:"
    existed = not in_memory and path.exists()
    if not in_memory:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
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
            schema.upgrade(connection, migrations, name)
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
