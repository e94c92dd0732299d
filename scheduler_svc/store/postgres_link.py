"""Connections to PostgreSQL: made when needed, given up when in doubt, errors in our terms.

A statement whose answer does not come (connection lost, deadline passed, caller cancelled) may have
happened or not. Its connection is never used again, and what must not meet such a statement runs
only behind `fence` of the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from svckit import postgres
from svckit.errors import StartError, StoreUnavailable
from svckit.postgres import PostgresAddress

log = logging.getLogger(__name__)

CONNECT_SECONDS = 5.0
STATEMENT_SECONDS = 10.0
READERS = 4

# The library says `InternalClientError` of a connection that the server ended in between.
_LOST = (asyncpg.InternalClientError, OSError, TimeoutError, EOFError)
ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, *_LOST)


def refuses(err: BaseException) -> bool:
    """Whether an error means that the server cannot be used now."""
    if isinstance(err, asyncpg.PostgresError):
        return postgres.refuses(err.sqlstate or "")
    if isinstance(err, asyncpg.InterfaceError):
        return "clos" in str(err)  # the connection, or the pool
    return isinstance(err, _LOST)


@contextlib.contextmanager
def unavailable() -> Any:
    """Turns what `refuses` into `StoreUnavailable`."""
    try:
        yield
    except ERRORS as err:
        if not refuses(err):
            raise
        raise StoreUnavailable(
            "PostgreSQL does not answer or takes no writes now; repeat the call with the same "
            "request id",
            retry_after=1.0,
        ) from err


class Link:
    """One connection for writing, used by one call at a time.

    `fence` is awaited with every new connection, before it is used.
    """

    def __init__(
        self,
        address: PostgresAddress,
        name: str,
        fence: Callable[[asyncpg.Connection], Awaitable[None]] | None = None,
        **settings: str,
    ) -> None:
        self._address = address
        self._settings = {"application_name": f"conveyor scheduler {name}", **settings}
        self._fence = fence
        self._lock = asyncio.Lock()
        self._connection: asyncpg.Connection | None = None

    @asynccontextmanager
    async def use(self) -> AsyncIterator[asyncpg.Connection]:
        """The connection, for one call. After any doubt about the call it is given up."""
        async with self._lock:
            with unavailable():
                connection = await self._connected()
                try:
                    yield connection
                except BaseException as err:
                    if _in_doubt(err):
                        self._give_up()
                    raise

    async def close(self) -> None:
        """Ends the connection after the call under way."""
        async with self._lock:
            connection, self._connection = self._connection, None
            if connection is not None:
                await _close(connection)

    async def _connected(self) -> asyncpg.Connection:
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        self._give_up()
        connection = await connect(self._address, **self._settings)
        try:
            if self._fence is not None:
                await self._fence(connection)
        except BaseException:
            connection.terminate()
            raise
        self._connection = connection
        return connection

    def _give_up(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None


def _in_doubt(err: BaseException) -> bool:
    # An error that the server itself tells ends the statement, and its transaction, for certain;
    # unless it ends the connection too.
    state = getattr(err, "sqlstate", None)
    if isinstance(err, asyncpg.PostgresError) and state:
        return str(state).startswith(("08", "57"))
    return not isinstance(err, Exception) or refuses(err)


async def connect(address: PostgresAddress, **settings: str) -> asyncpg.Connection:
    """A new connection. Raises what `refuses` knows."""
    connection = await asyncpg.connect(
        address.url,
        password=address.secret(),
        timeout=CONNECT_SECONDS,
        command_timeout=STATEMENT_SECONDS,
        statement_cache_size=500,
        max_cacheable_statement_size=64 * 1024,
        server_settings=_SETTINGS | settings,
    )
    try:
        await prepare(connection)
    except BaseException:
        connection.terminate()
        raise
    return connection


async def open_pool(address: PostgresAddress) -> asyncpg.Pool:
    """Connections for reading, made when they are needed."""
    return await asyncpg.create_pool(
        address.url,
        password=address.secret(),
        min_size=0,
        max_size=READERS,
        init=prepare,
        reset=_nothing_to_reset,
        timeout=CONNECT_SECONDS,
        command_timeout=STATEMENT_SECONDS,
        server_settings=_SETTINGS | {"application_name": "conveyor scheduler reads"},
    )


async def _nothing_to_reset(connection: asyncpg.Connection) -> None:
    """Reads leave nothing behind, and the round trip of the default one is as long as a read."""


_SETTINGS = {
    "search_path": "scheduler",
    "jit": "off",
    "statement_timeout": f"{STATEMENT_SECONDS:.0f}s",
    # A process that stops in the middle of a transaction must not hold the leader row for long.
    "idle_in_transaction_session_timeout": "2s",
    "lock_timeout": "5s",
    "timezone": "UTC",
}


async def prepare(connection: asyncpg.Connection) -> None:
    """What was committed survives a crash, whatever the database's default says."""
    await connection.execute(
        "SELECT set_config('synchronous_commit', 'on', false) "
        "WHERE current_setting('synchronous_commit') = 'off'"
    )


async def patiently(
    address: PostgresAddress, seconds: float, work: Callable[[asyncpg.Connection], Awaitable[None]]
) -> None:
    """Does some work on a connection of its own; waits for a server that is not there yet.

    Raises `StartError` when it does not come within `seconds`, or when waiting will not help.
    """
    loop = asyncio.get_running_loop()
    end, told = loop.time() + seconds, False
    while True:
        try:
            connection = await connect(address)
            try:
                await work(connection)
            finally:
                await _close(connection)
        except ERRORS as err:
            if told_now := postgres.final(getattr(err, "sqlstate", None) or ""):
                raise StartError(told_now) from err
            if not refuses(err):
                raise
            if loop.time() >= end:
                raise StartError(
                    f"store.url: PostgreSQL does not answer at {address.where} "
                    f"({type(err).__name__}), waited {seconds:.0f} seconds; start it, or correct "
                    "the address"
                ) from err
            if not told:
                log.warning("waiting for PostgreSQL", extra={"address": address.where})
                told = True
            await asyncio.sleep(min(0.5, max(0.0, end - loop.time())))
        else:
            return


async def _close(connection: asyncpg.Connection) -> None:
    try:
        await connection.close(timeout=2.0)
    except ERRORS:
        connection.terminate()


async def close_pool(pool: asyncpg.Pool) -> None:
    """Ends the pool's connections; those that hang are cut."""
    try:
        await asyncio.wait_for(pool.close(), 2.0)
    except TimeoutError:
        pool.terminate()


def clean(values: Sequence[str]) -> list[str]:
    """Texts to look for: PostgreSQL has none with NUL, and complains instead of finding none."""
    return [value.replace("\0", "\ufffd") for value in values]
