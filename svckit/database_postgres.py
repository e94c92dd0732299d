"""A service's schema in PostgreSQL, for `svckit.database`.

One connection, as with SQLite, so that a service behaves the same on both. But several processes of
a service may share the schema: every transaction is serializable, and one that others got in the
way of is run again.

When the connection gets lost the server may still be busy with our last transaction, and commit it
later. So before a new connection is used the server ends the old one's session.
"""

from __future__ import annotations

import contextlib
import random
import ssl
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pg8000.dbapi
import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.pool import NullPool

from svckit import migrations as schema
from svckit import postgres
from svckit.errors import StartError, StoreUnavailable
from svckit.logging import get_logger
from svckit.postgres import PostgresAddress

T = TypeVar("T")

CONNECT_SECONDS = 5.0
STATEMENT_SECONDS = 15.0
# After a failed connect the next calls are refused at once for so long.
PAUSE_SECONDS = 0.5
ATTEMPTS = 10
MIGRATION_LOCK = 0x636F6E76_64617461

_log = get_logger("svckit.database")

# The driver lets some errors of the network through as they are.
_LOST = (OSError, EOFError, struct.error)
_ERRORS = (exc.DBAPIError, pg8000.dbapi.Error, *_LOST)


@compiles(sa.String, "postgresql")
def _text(*_: Any, **__: Any) -> str:
    # SQLite does not look at lengths, and neither shall this.
    return "TEXT"


class PostgresSchema:
    """A `Backend`. Made ready to use; raises `StartError`.

    `patience`: seconds to wait for a server that does not answer yet.
    """

    def __init__(
        self,
        url: str | PostgresAddress,
        migrations: Path,
        name: str,
        *,
        patience: float = postgres.START_SECONDS,
    ) -> None:
        try:
            self._address = PostgresAddress.parse(url) if isinstance(url, str) else url
        except ValueError as err:
            raise StartError(f"{name}: store.url {err}") from None
        self._name = name
        self._engine = self._engine_of("serializable")
        self._connection: sa.Connection | None = None
        # Process id and start of the server's session that serves us.
        self._session: tuple[int, Any] | None = None
        # One that may still be at work although we lost its connection.
        self._doubtful: tuple[int, Any] | None = None
        self._refused_until = 0.0
        # The last call found no server: told once.
        self._away = False
        self._start(migrations, patience)

    # Starting

    def _start(self, migrations: Path, patience: float) -> None:
        end, told = time.monotonic() + patience, False
        while True:
            try:
                self._migrate(migrations)
                return
            except _ERRORS as err:
                if text := postgres.final(_sqlstate(err)):
                    raise StartError(f"{self._name}: {text}") from err
                if not _refuses(err):
                    raise StartError(
                        f"{self._name}: the schema in {self._address.where} cannot be brought up "
                        f"to date: {_problem(err)}"
                    ) from err
                if time.monotonic() >= end:
                    raise StartError(
                        f"{self._name}: store.url: PostgreSQL does not answer at "
                        f"{self._address.where}, waited {patience:.0f} seconds; start it, or "
                        "correct the address"
                    ) from err
                if not told:
                    _log.warning("waiting for PostgreSQL", address=self._address.where)
                    told = True
                time.sleep(0.5)

    def _migrate(self, migrations: Path) -> None:
        # Whoever waits for the lock has to see what the one before did: not in one snapshot.
        engine = self._engine_of("read committed")
        with engine.begin() as connection:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MIGRATION_LOCK)))
            if connection.scalar(sa.select(sa.func.to_regnamespace(self._name))) is None:
                connection.execute(sa.schema.CreateSchema(self._name))
            where = f"schema {self._name} in {self._address.where}"
            schema.upgrade(connection, migrations, self._name, where)

    # Its verbs

    def transaction(self, fn: Callable[[sa.Connection], T]) -> T:
        """See `Backend`."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self._connected() as connection, connection.begin():
                    result = fn(connection)
            except _ERRORS as err:
                state = _sqlstate(err)
                if state in ("40001", "40P01") and attempt < ATTEMPTS:
                    time.sleep(random.uniform(0, 0.005 * attempt))
                    continue
                if state.startswith("23") and isinstance(err, exc.DBAPIError) and err.orig:
                    # The driver has one class for all that the server says.
                    raise exc.IntegrityError(err.statement, err.params, err.orig) from err
                if not _refuses(err):
                    raise
                if not self._away:
                    _log.error("store unavailable", problem=_problem(err))
                self._away = True
                raise StoreUnavailable("PostgreSQL does not answer or takes no writes now") from err
            if self._away:
                _log.warning("the store answers again")
            self._away = False
            return result
        raise AssertionError("unreachable")

    def close(self) -> None:
        """See `Backend`."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(*_ERRORS):
                connection.close()

    # Its connection

    @contextlib.contextmanager
    def _connected(self) -> Any:
        connection = self._connection or self._connect()
        self._connection = connection
        try:
            yield connection
        except BaseException as err:
            state = _sqlstate(err)
            if isinstance(err, _ERRORS) and (state.startswith(("08", "57")) or not state):
                self._give_up(connection)
            raise

    def _connect(self) -> sa.Connection:
        if time.monotonic() < self._refused_until:
            raise StoreUnavailable("PostgreSQL does not answer now")
        try:
            connection = self._engine.connect()
        except _ERRORS:
            self._refused_until = time.monotonic() + PAUSE_SECONDS
            raise
        try:
            with connection.begin():
                self._end_doubtful(connection)
                row = connection.exec_driver_sql(
                    "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
                ).one()
                self._session = (row[0], row[1])
        except BaseException:
            _drop(connection)
            raise
        return connection

    def _give_up(self, connection: sa.Connection) -> None:
        self._doubtful = self._doubtful or self._session
        self._connection = None
        _drop(connection)

    def _end_doubtful(self, connection: sa.Connection) -> None:
        if self._doubtful is None:
            return
        end = time.monotonic() + CONNECT_SECONDS
        # The view is a snapshot of the transaction unless told otherwise.
        connection.exec_driver_sql("SELECT pg_stat_clear_snapshot()")
        pid, start = self._doubtful
        ending = sa.text(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid = :pid AND backend_start = :start"
        )
        while connection.execute(ending, {"pid": pid, "start": start}).first() is not None:
            if time.monotonic() > end:
                raise StoreUnavailable("PostgreSQL is still busy with a lost connection")
            time.sleep(0.01)
            connection.exec_driver_sql("SELECT pg_stat_clear_snapshot()")
        self._doubtful = None

    def _engine_of(self, isolation: str) -> sa.Engine:
        address = self._address
        arguments = _arguments(address, f"conveyor {self._name}") | {
            "timeout": STATEMENT_SECONDS + CONNECT_SECONDS,
            "startup_params": {
                "search_path": self._name,
                "default_transaction_isolation": isolation,
                "statement_timeout": f"{STATEMENT_SECONDS:.0f}s",
                "lock_timeout": f"{CONNECT_SECONDS:.0f}s",
                "idle_in_transaction_session_timeout": f"{STATEMENT_SECONDS:.0f}s",
            },
        }
        engine = sa.create_engine(
            "postgresql+pg8000://",
            creator=lambda: pg8000.dbapi.connect(**arguments),
            poolclass=NullPool,
        )
        event.listen(engine, "before_cursor_execute", _without_nul, retval=True)
        return engine


def probe(address: PostgresAddress) -> tuple[str, bool]:
    """Version of the server, and whether it writes to disk (`fsync`). Raises `StartError`."""
    try:
        connection = pg8000.dbapi.connect(
            **_arguments(address, "conveyor doctor"), timeout=CONNECT_SECONDS
        )
        try:
            cursor = connection.cursor()
            cursor.execute(
                "SELECT current_setting('server_version'), current_setting('fsync') = 'on'"
            )
            version, safe = cursor.fetchone()
            return str(version).split(" ")[0], bool(safe)
        finally:
            connection.close()
    except _ERRORS as err:
        text = postgres.final(_sqlstate(err)) or f"no answer from {address.where}"
        raise StartError(text) from err


def _arguments(address: PostgresAddress, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "user": address.user,
        "database": address.database,
        # Without one the driver would stumble over a server that asks for it.
        "password": address.secret() or "",
        "application_name": name,
    }
    if address.host.startswith("/"):
        socket = f"{address.host}/.s.PGSQL.{address.port}"
        return found | {"unix_sock": socket, "ssl_context": False}
    ssl_context = _ssl_context(address)
    return found | {"host": address.host, "port": address.port, "ssl_context": ssl_context}


def _ssl_context(address: PostgresAddress) -> Any:
    mode = address.options.get("sslmode", "prefer")
    if mode in ("disable", "allow"):
        return False
    if mode == "prefer":
        return None
    if mode == "require" and "sslrootcert" not in address.options:
        return True
    context = ssl.create_default_context(cafile=address.options.get("sslrootcert"))
    context.check_hostname = mode == "verify-full"
    return context


def _without_nul(
    _connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool
) -> tuple[str, Any]:
    # The one character that PostgreSQL has no place for in a text.
    if many:
        return statement, [_clean(row) for row in parameters]
    return statement, _clean(parameters)


def _clean(row: Any) -> Any:
    if not isinstance(row, list | tuple):
        return row
    return tuple(v.replace("\0", "\ufffd") if isinstance(v, str) else v for v in row)


def _drop(connection: sa.Connection) -> None:
    with contextlib.suppress(*_ERRORS, exc.InvalidRequestError):
        connection.invalidate()
    with contextlib.suppress(*_ERRORS, exc.InvalidRequestError):
        connection.close()


def _sqlstate(err: BaseException) -> str:
    cause = getattr(err, "orig", err)
    told = cause.args[0] if isinstance(cause, pg8000.dbapi.Error) and cause.args else None
    return str(told.get("C", "")) if isinstance(told, dict) else ""


def _refuses(err: BaseException) -> bool:
    state = _sqlstate(err)
    if state:
        return postgres.refuses(state)
    cause = getattr(err, "orig", err)
    return isinstance(cause, (pg8000.dbapi.InterfaceError, *_LOST))


def _problem(err: BaseException) -> str:
    cause = getattr(err, "orig", err)
    return f"{type(cause).__name__} {_sqlstate(err)}".strip()
