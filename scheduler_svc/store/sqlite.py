"""The store in one SQLite file: WAL, `synchronous=FULL`, one connection that writes.

A statement takes microseconds, waiting for the disk as long as the disk likes. So the statements
of a commit, and look-ups by key, run where they are called, on the loop; `COMMIT` has a thread.
(All in a thread would be slower: a statement lets go of the interpreter, and gets it back only when
the busy loop hands it over.) Lists and everything else that may read much have a connection and a
thread of their own, and see what was committed.

apsw brings its own SQLite: that of common systems has the WAL-reset bug fixed in SQLite 3.51.3.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import apsw
import msgspec

from scheduler_svc.domain.kernel import KnownRequest
from scheduler_svc.domain.questions import Question
from scheduler_svc.domain.records import PreviousRun, Run, RunState, SteerOffer
from scheduler_svc.domain.recovery import Snapshot
from scheduler_svc.store import question_rows, sql
from scheduler_svc.store.base import (
    Batch,
    EventQuery,
    EventRow,
    FlowFigures,
    Known,
    QuestionQuery,
    RunQuery,
    StoredQuestion,
    StoredRun,
)
from svckit.errors import StartError, StoreUnavailable
from svckit.failpoints import failpoint

T = TypeVar("T")

_record = msgspec.json.Decoder(Run)
_previous = msgspec.json.Decoder(list[PreviousRun])
_offer = msgspec.json.Decoder(SteerOffer)
_question = msgspec.json.Decoder(Question)
_encode = msgspec.json.Encoder().encode

# More runs than this are read beside the commits, like lists.
MOST_LOOKED_UP = 64
QUICK_CHECK_BYTES = 64 * 1024 * 1024
# Flows that retention removes in one transaction.
PRUNED_FLOWS = 50

_CORRUPT = (apsw.CorruptError, apsw.NotADBError)
# The file, not the statement, is the trouble. Anything else is a bug and comes up as it is.
_REFUSALS = (
    *_CORRUPT,
    apsw.BusyError,
    apsw.CantOpenError,
    apsw.FullError,
    apsw.IOError,
    apsw.LockedError,
    apsw.NoMemError,
    apsw.PermissionsError,
    apsw.ProtocolError,
    apsw.ReadOnlyError,
)


class SqliteStore:
    """A `LaneStore` in a file. The directory is made when it is missing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scheduler-store")
        self._reading_thread = ThreadPoolExecutor(1, thread_name_prefix="scheduler-reads")
        self._db: apsw.Connection | None = None
        self._reads: apsw.Connection | None = None
        # Held by whoever uses the connection that writes, on the loop or in its thread.
        self._using = asyncio.Lock()
        self._lock: int | None = None

    # -- Opening ----------------------------------------------------------------------------------

    async def acquire(self) -> None:
        """Opens the file. Raises `StartError` when it is locked, corrupt, newer or read-only."""
        await _settled(self._thread, self._open)

    async def close(self) -> None:
        """Closes the file and ends the threads."""
        await _settled(self._reading_thread, self._shut_reads)
        await _settled(self._thread, self._shut)
        self._reading_thread.shutdown()
        self._thread.shutdown()

    def _open(self) -> None:
        if self._db is not None:
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(
                self._path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600
            )
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._shut()
            raise StartError(
                f"{self._path}: another scheduler uses this store; stop it, or set store.url to "
                "another directory"
            ) from None
        except OSError as err:
            self._shut()
            raise StartError(
                f"{self._path.parent}: cannot write here ({os.strerror(err.errno or 0)}); make the "
                "directory writable, or set store.url to another one"
            ) from err
        try:
            self._db = apsw.Connection(str(self._path))
            self._prepare(self._db)
            self._reads = apsw.Connection(str(self._path), flags=apsw.SQLITE_OPEN_READONLY)
        except (apsw.Error, StartError) as err:
            self._shut_reads()
            self._shut()
            raise _start_error(self._path, err) from err

    def _prepare(self, db: apsw.Connection) -> None:
        db.set_busy_timeout(2000)
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            "foreign_keys = ON",
            "cache_size = -32000",
            "wal_autocheckpoint = 4000",
        ):
            db.execute(f"PRAGMA {pragma}")
        # Reads the whole file, so only while that is quick; damage elsewhere shows when it is read.
        if self._path.stat().st_size <= QUICK_CHECK_BYTES:
            problems = [row[0] for row in db.execute("PRAGMA quick_check(1)")]
            if problems != ["ok"]:
                raise apsw.CorruptError(str(problems[0]))
        version = db.execute("PRAGMA user_version").get
        if version > sql.SCHEMA_VERSION:
            raise StartError(
                f"{self._path}: the database has schema {version}, this release knows "
                f"{sql.SCHEMA_VERSION}; run the newer release, or set store.url to another "
                "directory"
            )
        if version < sql.SCHEMA_VERSION:
            with db:
                for step in sql.STEPS[version:]:
                    for _ in db.execute(step):
                        pass
                db.execute(f"PRAGMA user_version = {sql.SCHEMA_VERSION}")
        # A file that can be read but not written is found now, not with the first message.
        with db:
            db.execute("INSERT OR REPLACE INTO meta VALUES ('opened', 1)")

    def _shut_reads(self) -> None:
        if self._reads is not None:
            with contextlib.suppress(apsw.Error):
                self._reads.close()
            self._reads = None

    def _shut(self) -> None:
        if self._db is not None:
            with contextlib.suppress(apsw.Error):
                self._db.close()
            self._db = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # -- Threads ----------------------------------------------------------------------------------

    async def _run(self, work: Callable[[apsw.Connection], T]) -> T:
        """Work on the connection that writes, in its thread."""
        async with self._using:
            assert self._db is not None, "acquire() comes first"
            return await _settled(self._thread, _checked, work, self._db)

    async def _read(self, work: Callable[[apsw.Connection], T]) -> T:
        """A read that may take long, beside the commits."""
        assert self._reads is not None, "acquire() comes first"
        return await _settled(self._reading_thread, _checked, work, self._reads)

    # -- Writing ----------------------------------------------------------------------------------

    async def commit(self, batch: Batch) -> None:
        """See `LaneStore`."""
        async with self._using:
            db = self._db
            assert db is not None, "acquire() comes first"
            # Without waiting: the caller goes on to change the records.
            _checked(lambda db: _write(db, batch), db)
            await _settled(self._thread, _checked, _commit, db)

    async def prune(self, *, requests_before: int, ended_before: int) -> int:
        """See `LaneStore`. In small transactions, so that commits need not wait for long."""

        def requests(db: apsw.Connection) -> int:
            with db:
                before = db.total_changes()
                db.execute("DELETE FROM requests WHERE time < ?", (requests_before,))
                db.execute(
                    "DELETE FROM questions WHERE state > 1 AND close_time < ?", (requests_before,)
                )
            return db.total_changes() - before

        removed = await self._run(requests)
        while count := await self._run(lambda db: _prune_flows(db, ended_before)):
            removed += count
        return removed

    # -- Reading ----------------------------------------------------------------------------------

    async def load(self) -> Snapshot:
        """See `LaneStore`."""

        def read(db: apsw.Connection) -> Snapshot:
            return Snapshot(
                runs=[
                    _record.decode(row[0])
                    for row in db.execute("SELECT record FROM runs WHERE state < 5 ORDER BY ord")
                ],
                sessions={
                    key: (head, _previous.decode(previous))
                    for key, head, previous in db.execute(
                        "SELECT session_key, head, previous FROM sessions WHERE session_key IN "
                        "(SELECT session_key FROM runs WHERE state < 5)"
                    )
                },
                limits=dict(db.execute("SELECT lane, value FROM limits")),
                steers={
                    (run_id, request_id): _offer.decode(offer)
                    for run_id, request_id, offer in db.execute("SELECT * FROM steers")
                },
                facts={
                    (kind, key): value.encode()
                    for kind, key, value in db.execute("SELECT kind, key, value FROM facts")
                },
                questions=[
                    _question.decode(row[0])
                    for row in db.execute(
                        "SELECT record FROM questions WHERE state = 1 ORDER BY ord"
                    )
                ],
                last_order=db.execute("SELECT coalesce(max(ord), 0) FROM runs").get,
                last_token=db.execute("SELECT value FROM meta WHERE key = 'token'").get or 0,
                last_position=max(
                    db.execute("SELECT coalesce(max(position), 0) FROM events").get,
                    db.execute("SELECT value FROM meta WHERE key = 'position'").get or 0,
                ),
            )

        return await self._read(read)

    async def lookup(
        self,
        requests: Sequence[str],
        runs: Sequence[str],
        sessions: Sequence[str],
        event_ids: Sequence[tuple[str, str]],
        questions: Sequence[str] = (),
    ) -> Known:
        """See `LaneStore`."""

        def read(db: apsw.Connection) -> Known:
            known = Known()
            for request_id, body_hash, run_id in _in(
                db, "SELECT request_id, body_hash, run_id FROM requests WHERE request_id", requests
            ):
                known.requests[request_id] = KnownRequest(body_hash, run_id)
            for (record,) in _in(db, "SELECT record FROM runs WHERE run_id", runs):
                run = _record.decode(record)
                known.runs[run.run_id] = run
            for key, head, previous in _in(
                db, "SELECT session_key, head, previous FROM sessions WHERE session_key", sessions
            ):
                known.sessions[key] = (head, _previous.decode(previous))
            for key, event_id in event_ids:
                sequence = db.execute(
                    "SELECT sequence FROM events WHERE session_key = ? AND event_id = ?",
                    (key, event_id),
                ).get
                if sequence is not None:
                    known.event_ids[key, event_id] = sequence
            for question_id, record in _in(
                db, "SELECT question_id, record FROM questions WHERE question_id", questions
            ):
                known.questions[question_id] = _question.decode(record)
            return known

        async with self._using:
            assert self._db is not None, "acquire() comes first"
            return _checked(read, self._db)

    async def get_runs(self, run_ids: Sequence[str]) -> dict[str, StoredRun]:
        """See `LaneStore`."""

        def read(db: apsw.Connection) -> dict[str, StoredRun]:
            rows = _in(
                db,
                "SELECT record, payload, result FROM runs JOIN payloads USING (run_id) "
                "WHERE run_id",
                run_ids,
            )
            found = (StoredRun(_record.decode(r), payload, result) for r, payload, result in rows)
            return {stored.run.run_id: stored for stored in found}

        if len(run_ids) > MOST_LOOKED_UP:
            return await self._read(read)
        # Not behind somebody's long list: commits wait for it.
        async with self._using:
            assert self._db is not None, "acquire() comes first"
            return _checked(read, self._db)

    async def list_runs(
        self, query: RunQuery, *, before: int, after: int, limit: int
    ) -> list[StoredRun]:
        """See `LaneStore`."""
        where, values = _run_filter(query)
        if before < 0:
            where, order = [*where, "ord > ?"], "ord"
            values = [*values, after]
        else:
            order = "ord DESC"
            if before:
                where, values = [*where, "ord < ?"], [*values, before]
        text = "SELECT record, payload FROM runs JOIN payloads USING (run_id)"
        if where:
            text += " WHERE " + " AND ".join(where)
        text += f" ORDER BY {order} LIMIT ?"
        return await self._read(
            lambda db: [
                StoredRun(_record.decode(record), payload)
                for record, payload in db.execute(text, (*values, limit))
            ]
        )

    async def flow_figures(self, flow_ids: Sequence[str]) -> dict[str, FlowFigures]:
        """See `LaneStore`."""

        def read(db: apsw.Connection) -> dict[str, FlowFigures]:
            figures = {}
            for flow_id in flow_ids:
                rows = list(
                    db.execute(
                        "SELECT state, count(*), max(depth) FROM runs WHERE flow_id = ? "
                        "GROUP BY state",
                        (flow_id,),
                    )
                )
                figures[flow_id] = FlowFigures(
                    {RunState(state): count for state, count, _ in rows},
                    max((depth for _, _, depth in rows), default=0),
                )
            return figures

        return await self._read(read)

    async def events(self, query: EventQuery, limit: int) -> list[EventRow]:
        """See `LaneStore`."""
        where, values = _event_filter(query)
        # Within a session the order of sequences is the order of positions, and has an index.
        order = "sequence" if query.session_key else "position"
        text = f"{sql.SELECT_EVENTS} WHERE {' AND '.join(where)} ORDER BY {order} LIMIT ?"
        return await self._read(
            lambda db: [EventRow(*row) for row in db.execute(text, (*values, limit))]
        )

    async def list_questions(
        self, query: QuestionQuery, *, before: int, limit: int
    ) -> list[StoredQuestion]:
        """See `LaneStore`."""
        where, values = _question_filter(query)
        if before:
            where, values = [*where, "ord < ?"], [*values, before]
        text = "SELECT record, data FROM questions"
        if where:
            text += " WHERE " + " AND ".join(where)
        text += " ORDER BY ord DESC LIMIT ?"
        return await self._read(
            lambda db: [
                StoredQuestion(_question.decode(record), data)
                for record, data in db.execute(text, (*values, limit))
            ]
        )

    async def session_head(self, session_key: str) -> int | None:
        """See `LaneStore`."""

        def read(db: apsw.Connection) -> int | None:
            head: int | None = db.execute(
                "SELECT head FROM sessions WHERE session_key = ?", (session_key,)
            ).get
            return head

        return await self._read(read)

    async def oldest(self, session_key: str) -> int:
        """See `LaneStore`."""

        def read(db: apsw.Connection) -> int:
            if not session_key:
                return (
                    int(db.execute("SELECT value FROM meta WHERE key = 'compacted'").get or 0) + 1
                )
            removed = db.execute(
                "SELECT sequence FROM compacted WHERE session_key = ?", (session_key,)
            ).get
            return int(removed or 0) + 1

        return await self._read(read)


async def _settled(thread: ThreadPoolExecutor, call: Callable[..., T], *values: Any) -> T:
    """What the call returns. Nobody gets past this before it has ended, also when cancelled."""
    loop = asyncio.get_running_loop()
    ended = loop.create_future()
    work = thread.submit(call, *values)
    # Straight to who waits: a future that copies that of the thread costs two steps of the loop.
    work.add_done_callback(lambda _: loop.call_soon_threadsafe(_tell, ended))
    try:
        await ended
    except asyncio.CancelledError:
        await asyncio.wait([asyncio.wrap_future(work)])
        raise
    return work.result()


def _tell(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _checked(work: Callable[[apsw.Connection], T], db: apsw.Connection) -> T:
    try:
        return work(db)
    except apsw.Error as err:
        if not _refuses(err):
            raise
        raise StoreUnavailable(
            "the store takes no writes now (full, read-only or damaged); nothing was changed",
            retry_after=1.0,
        ) from err


@contextlib.contextmanager
def _undone(db: apsw.Connection) -> Iterator[None]:
    """Takes an open transaction back when the block fails."""
    try:
        yield
    except BaseException:
        if db.in_transaction:  # a full disk has ended it already
            db.execute("ROLLBACK")
        raise


def _write(db: apsw.Connection, batch: Batch) -> None:
    """Writes a batch into a transaction that stays open."""
    with _undone(db):
        db.execute("BEGIN IMMEDIATE")
        _many(db, sql.UPSERT_RUN, [_run_row(run) for run in batch.runs])
        _many(
            db,
            "INSERT INTO payloads (run_id, payload) VALUES (?, ?) "
            "ON CONFLICT (run_id) DO UPDATE SET payload = excluded.payload",
            batch.payloads.items(),
        )
        _many(
            db,
            "UPDATE payloads SET result = ? WHERE run_id = ?",
            [(result, run_id) for run_id, result in batch.results.items()],
        )
        _many(db, sql.INSERT_EVENT, [msgspec.structs.astuple(event) for event in batch.events])
        _many(
            db,
            sql.UPSERT_SESSION,
            [(key, head, _encode(prev).decode()) for key, head, prev in batch.sessions],
        )
        _many(
            db,
            "INSERT OR REPLACE INTO requests VALUES (?, ?, ?, ?)",
            [(r, k.body_hash, k.run_id, batch.time) for r, k in batch.requests.items()],
        )
        for lane, limit in batch.limits.items():
            db.execute("DELETE FROM limits WHERE lane = ?", (lane,))
            if limit is not None:
                db.execute("INSERT INTO limits VALUES (?, ?)", (lane, limit))
        for (run_id, request_id), offer in batch.steers.items():
            db.execute(
                "DELETE FROM steers WHERE run_id = ? AND request_id = ?", (run_id, request_id)
            )
            if offer is not None:
                db.execute(
                    "INSERT INTO steers VALUES (?, ?, ?)",
                    (run_id, request_id, _encode(offer).decode()),
                )
        for key_pair, fact in batch.facts.items():
            db.execute("DELETE FROM facts WHERE kind = ? AND key = ?", key_pair)
            if fact is not None:
                db.execute("INSERT INTO facts VALUES (?, ?, ?)", (*key_pair, fact.decode()))
        _many(db, sql.INSERT_QUESTION, question_rows.asked(batch))
        _many(db, sql.CLOSE_QUESTION, question_rows.closed(batch))
        if batch.token:
            db.execute("INSERT OR REPLACE INTO meta VALUES ('token', ?)", (batch.token,))


def _commit(db: apsw.Connection) -> None:
    with _undone(db):
        failpoint("scheduler.commit.open")
        db.execute("COMMIT")


def _refuses(err: BaseException | None) -> bool:
    # A full disk also ends the transaction, so that rolling it back is a second error on top.
    while err is not None and not isinstance(err, _REFUSALS):
        err = err.__context__
    return err is not None


def _prune_flows(db: apsw.Connection, ended_before: int) -> int:
    """Removes some flows, and the events that no kept run stands in front of. Returns the rows."""
    before = db.total_changes()
    with db:
        flows = [row[0] for row in db.execute(sql.PRUNABLE_FLOWS, (ended_before, PRUNED_FLOWS))]
        gone = [
            row for flow_id in flows for row in db.execute(sql.FLOW_RUNS, (flow_id,)).fetchall()
        ]
        if not gone:
            return 0
        _many(db, "DELETE FROM runs WHERE flow_id = ?", [(flow_id,) for flow_id in flows])
        _many(db, "DELETE FROM payloads WHERE run_id = ?", [(run_id,) for run_id, _ in gone])
        db.execute(
            sql.KEEP_GREATEST, ("position", db.execute("SELECT max(position) FROM events").get or 0)
        )
        for key in {session_key for _, session_key in gone}:
            for sequence, position in db.execute(sql.LAST_REMOVABLE_EVENT, (key,)).fetchall():
                db.execute(
                    "DELETE FROM events WHERE session_key = ? AND sequence <= ?", (key, sequence)
                )
                db.execute("INSERT OR REPLACE INTO compacted VALUES (?, ?)", (key, sequence))
                db.execute(sql.KEEP_GREATEST, ("compacted", position))
    return db.total_changes() - before


def _start_error(path: Path, err: Exception) -> StartError:
    if isinstance(err, StartError):
        return err
    if isinstance(err, _CORRUPT):
        return StartError(
            f"{path}: the database is damaged or is no database; restore a backup, or move the "
            "file away to start empty"
        )
    return StartError(
        f"{path}: the database cannot be written (read-only, full or locked); free the disk or fix "
        "the permissions, or set store.url to another directory"
    )


def _run_row(run: Run) -> tuple[Any, ...]:
    return (
        run.order,
        run.run_id,
        run.flow_id,
        run.parent_id,
        run.session_key,
        run.customer_key,
        run.lane,
        int(run.state),
        run.depth,
        run.create_time,
        _encode(run).decode(),
    )


def _many(db: apsw.Connection, text: str, rows: Iterable[Sequence[Any]]) -> None:
    rows = list(rows)
    if rows:
        db.executemany(text, rows)


def _in(db: apsw.Connection, text: str, values: Sequence[str]) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    for start in range(0, len(values), 500):
        part = values[start : start + 500]
        found += db.execute(f"{text} IN ({', '.join('?' * len(part))})", part)
    return found


def _run_filter(query: RunQuery) -> tuple[list[str], list[Any]]:
    where: list[str] = []
    values: list[Any] = []
    for column in ("session_key", "flow_id", "customer_key", "lane"):
        if value := getattr(query, column):
            where.append(f"{column} = ?")
            values.append(value)
    if query.states:
        where.append(f"state IN ({', '.join(str(int(s)) for s in sorted(query.states))})")
    for key, value in query.labels.items():
        where.append(
            "EXISTS (SELECT 1 FROM json_each(record, '$.labels') WHERE key = ? AND value = ?)"
        )
        values += [key, value]
    if query.roots:
        where.append("parent_id = ''")
    if query.with_children:
        where.append("json_extract(record, '$.descendants') > 0")
    if query.since:
        where.append("create_time >= ?")
        values.append(query.since)
    return where, values


def _question_filter(query: QuestionQuery) -> tuple[list[str], list[Any]]:
    where = question_rows.of_states(query)
    values: list[Any] = []
    for column in question_rows.FILTERS:
        if value := getattr(query, column):
            where.append(f"{column} = ?")
            values.append(value)
    return where, values


def _event_filter(query: EventQuery) -> tuple[list[str], list[Any]]:
    where = ["position > ?"]
    values: list[Any] = [query.after_position]
    if query.session_key:
        where += ["session_key = ?", "sequence > ?"]
        values += [query.session_key, query.after_sequence]
    for column in ("flow_id", "run_id"):
        if value := getattr(query, column):
            where.append(f"{column} = ?")
            values.append(value)
    if query.kinds:
        where.append(f"kind IN ({', '.join('?' * len(query.kinds))})")
        values += sorted(query.kinds)
    return where, values
