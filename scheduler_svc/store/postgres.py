"""The store in PostgreSQL, which several schedulers may share; one of them leads.

One connection writes, a few read, one renews the lease of the leader. A commit is one statement
that also checks the leader's epoch (see `postgres_sql`).

When the answer to a commit gets lost nobody knows whether it happened. So a new connection first
takes the next epoch for the same leader: that waits for whatever is still under way on the old one,
and what comes to be executed there later is refused. What is read after that is the truth.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Any

import asyncpg
import msgspec

from scheduler_svc.domain.kernel import KnownRequest
from scheduler_svc.domain.questions import Question
from scheduler_svc.domain.records import PreviousRun, Run, RunState, SteerOffer
from scheduler_svc.domain.recovery import Snapshot
from scheduler_svc.store import postgres_prune, question_rows
from scheduler_svc.store import postgres_sql as sql
from scheduler_svc.store.base import (
    Batch,
    EventQuery,
    EventRow,
    FlowFigures,
    Known,
    Leader,
    QuestionQuery,
    RunQuery,
    StoredQuestion,
    StoredRun,
)
from scheduler_svc.store.postgres_link import (
    Link,
    clean,
    close_pool,
    open_pool,
    patiently,
    unavailable,
)
from svckit.errors import NotLeader, StartError, StoreUnavailable
from svckit.ids import new_ulid
from svckit.postgres import START_SECONDS, PostgresAddress

log = logging.getLogger(__name__)

_record = msgspec.json.Decoder(Run)
_previous = msgspec.json.Decoder(list[PreviousRun])
_question = msgspec.json.Decoder(Question)
_offer = msgspec.json.Decoder(SteerOffer)

# The epoch of a process that does not lead.
_NONE = -1
# Runs that are read and decoded at a time when all are loaded.
LOADED_RUNS = 5000

_LEADER = """
SELECT epoch, holder, address,
  extract(epoch FROM expire_time - clock_timestamp())::float8 AS seconds_left
FROM leader WHERE id = 0
"""


class PostgresStore:
    """A `SharedStore` in the schema `scheduler` of a database.

    `acquire` makes or migrates the schema. Nothing can be written before `campaign` made this
    process the leader; with `leads`, `acquire` does that too, for a lease of `leads` seconds.
    `patience`: seconds that `acquire` waits for a server that does not answer yet.
    """

    def __init__(
        self, address: PostgresAddress, *, leads: float = 0.0, patience: float = START_SECONDS
    ) -> None:
        self._address = address
        self._leads = leads
        self._patience = patience
        self._writes = Link(address, "writes", self._fence, plan_cache_mode="force_generic_plan")
        # Asked seldom and answered at once, whatever the others are at.
        self._leader = Link(address, "leader", lock_timeout="1s", statement_timeout="2s")
        self._reads: asyncpg.Pool | None = None
        self._holder = ""
        self._epoch = _NONE
        # The connection that is known to go on from our last commit, and that one's number.
        self._seen: asyncpg.Connection | None = None
        self._written: int | None = None

    # -- Opening ----------------------------------------------------------------------------------

    async def acquire(self) -> None:
        """Connects and brings the schema up to date. Raises `StartError`."""
        if self._reads is None:
            await patiently(self._address, self._patience, _migrate)
            self._reads = await open_pool(self._address)
        if self._leads:
            holder = self._holder or new_ulid()
            leader = await self.campaign(holder, "", self._leads)
            if leader.holder != holder:
                await asyncio.sleep(min(self._leads, max(0.0, leader.seconds_left)))
                leader = await self.campaign(holder, "", self._leads)
            if leader.holder != holder:
                raise StartError(f"{self._address.where}: another scheduler uses this database")

    async def close(self) -> None:
        """Closes all connections, after the commit under way."""
        if self._leads:
            with contextlib.suppress(StoreUnavailable):
                await self.resign()
        await self._writes.close()
        await self._leader.close()
        reads, self._reads = self._reads, None
        if reads is not None:
            await close_pool(reads)

    # -- Leading ----------------------------------------------------------------------------------

    async def campaign(self, holder: str, address: str, ttl: float) -> Leader:
        """See `SharedStore`."""
        async with self._leader.use() as db:
            try:
                row = await db.fetchrow(
                    """
UPDATE leader SET epoch = epoch + 1, holder = $1, address = $2,
  expire_time = clock_timestamp() + make_interval(secs => $3)
WHERE id = 0 AND (expire_time <= clock_timestamp() OR holder = $1)
RETURNING epoch
""",
                    holder,
                    address,
                    ttl,
                )
            except asyncpg.LockNotAvailableError:
                row = None  # somebody is in the middle of a write: the lead is not free
            if row is not None:
                self._holder, self._epoch = holder, row["epoch"]
                return Leader(row["epoch"], holder, address, ttl)
            return Leader(*await db.fetchrow(_LEADER))

    async def renew(self, ttl: float) -> None:
        """See `SharedStore`."""
        async with self._leader.use() as db:
            # Not by epoch: a new connection for writing may take the next one at this moment.
            done = await db.fetchval(
                "UPDATE leader SET expire_time = clock_timestamp() + make_interval(secs => $2) "
                "WHERE id = 0 AND holder = $1 AND $1 <> '' RETURNING 1",
                self._holder,
                ttl,
            )
            if not done:
                raise await self._deposed(db)

    async def resign(self) -> None:
        """See `SharedStore`."""
        holder, self._holder, self._epoch = self._holder, "", _NONE
        if not holder:
            return
        async with self._leader.use() as db:
            await db.execute(
                "UPDATE leader SET expire_time = 'epoch' WHERE id = 0 AND holder = $1", holder
            )

    async def _fence(self, db: asyncpg.Connection) -> None:
        """With every new connection for writing: see the module."""
        if not self._holder:
            return
        epoch = await db.fetchval(
            "UPDATE leader SET epoch = epoch + 1 WHERE id = 0 AND holder = $1 RETURNING epoch",
            self._holder,
        )
        if epoch is None:
            raise await self._deposed(db)
        self._epoch = epoch

    async def _deposed(self, db: asyncpg.Connection) -> NotLeader:
        """The error of one who does not lead, and says who does."""
        self._holder, self._epoch = "", _NONE
        leader = Leader(*await db.fetchrow(_LEADER))
        return NotLeader(
            "this scheduler does not lead",
            metadata={"leader": leader.address, "epoch": str(leader.epoch)},
        )

    # -- Writing ----------------------------------------------------------------------------------

    async def commit(self, batch: Batch) -> None:
        """See `LaneStore`. Raises `NotLeader`."""
        # Encoded here, before control goes back to the loop that changes the records.
        parts, values = sql.commit_of(batch)
        async with self._writes.use() as db:
            if db is not self._seen:
                await self._see(db)
            written = await db.fetchval(sql.commit_statement(parts), self._epoch, *values)
            if written is None:
                raise await self._deposed(db)
            self._written = written

    async def _see(self, db: asyncpg.Connection) -> None:
        """A commit over a new connection goes on from our last one, or not at all.

        It would not when the fate of that one is not known, or when this is another server, to
        which the last commits never came: then everything has to be loaded again.
        """
        written = await db.fetchval(sql.WRITTEN)
        if self._written not in (None, written):
            raise StoreUnavailable("the store changed under us; memory has to be built again")
        self._seen = db

    async def prune(self, *, requests_before: int, ended_before: int) -> int:
        """See `LaneStore`. In small transactions, so that commits need not wait for long."""
        removed = 0
        with unavailable():
            async with self._pool.acquire() as db:
                for part in postgres_prune.parts(requests_before, ended_before):
                    while True:
                        async with db.transaction():
                            if not await db.fetchval(sql.LEADING, self._epoch):
                                raise await self._deposed(db)
                            count = await part(db)
                        removed += count
                        if not count:
                            break
        return removed

    # -- Reading ----------------------------------------------------------------------------------

    @property
    def _pool(self) -> asyncpg.Pool:
        assert self._reads is not None, "acquire() comes first"
        return self._reads

    async def _fetch(self, text: str, *values: Any) -> list[Any]:
        with unavailable():
            return list(await self._pool.fetch(text, *values))

    async def load(self) -> Snapshot:
        """See `LaneStore`. Over the connection that writes: behind its fence nothing is in doubt,
        and while it reads nothing else is written."""
        async with self._writes.use() as db:
            runs: list[Run] = []
            order = 0
            while rows := await db.fetch(sql.UNFINISHED, order, LOADED_RUNS):
                runs += [_record.decode(record) for _, record in rows]
                order = rows[-1][0]
            meta = dict(await db.fetch("SELECT key, value FROM meta"))
            self._seen, self._written = db, meta.get("commits", 0)
            return Snapshot(
                runs=runs,
                sessions={
                    key: (head, _previous.decode(previous))
                    for key, head, previous in await db.fetch(sql.UNFINISHED_SESSIONS)
                },
                limits=dict(await db.fetch("SELECT lane, value FROM limits")),
                steers={
                    (run_id, request_id): _offer.decode(offer)
                    for run_id, request_id, offer in await db.fetch(
                        "SELECT run_id, request_id, offer FROM steers"
                    )
                },
                facts={
                    (kind, key): value.encode()
                    for kind, key, value in await db.fetch("SELECT kind, key, value FROM facts")
                },
                questions=[
                    _question.decode(row[0])
                    for row in await db.fetch(
                        "SELECT record FROM questions WHERE state = 1 ORDER BY ord"
                    )
                ],
                last_order=await db.fetchval("SELECT coalesce(max(ord), 0) FROM records"),
                last_token=meta.get("token", 0),
                last_position=max(
                    await db.fetchval("SELECT coalesce(max(position), 0) FROM events"),
                    meta.get("position", 0),
                ),
            )

    async def lookup(
        self,
        requests: Sequence[str],
        runs: Sequence[str],
        sessions: Sequence[str],
        event_ids: Sequence[tuple[str, str]],
        questions: Sequence[str] = (),
    ) -> Known:
        """See `LaneStore`. One round trip, over the connection that writes: it is free between
        commits, keeps its plans, and a pool takes as long to give and get back one as to ask."""
        known = Known()
        async with self._writes.use() as db:
            rows = await db.fetch(
                sql.LOOKUP,
                clean(requests),
                clean(runs),
                clean(sessions),
                clean([key for key, _ in event_ids]),
                clean([event_id for _, event_id in event_ids]),
                clean(questions),
            )
        for kind, key, number, text, data in rows:
            if kind == 0:
                known.requests[key] = KnownRequest(data, text)
            elif kind == 1:
                known.runs[key] = _record.decode(text)
            elif kind == 2:
                known.sessions[key] = (number, _previous.decode(text))
            elif kind == 4:
                known.questions[key] = _question.decode(text)
            else:
                known.event_ids[key, text] = number
        return known

    async def get_runs(self, run_ids: Sequence[str]) -> dict[str, StoredRun]:
        """See `LaneStore`."""
        rows = await self._fetch(
            "SELECT run_id, record, payload, result FROM runs JOIN records USING (ord) "
            "WHERE run_id = ANY($1::text[])",
            clean(run_ids),
        )
        return {
            run_id: StoredRun(_record.decode(record), payload, result)
            for run_id, record, payload, result in rows
        }

    async def list_runs(
        self, query: RunQuery, *, before: int, after: int, limit: int
    ) -> list[StoredRun]:
        """See `LaneStore`."""
        where, values = _run_filter(query)
        if before < 0:
            values.append(after)
            where, order = [*where, f"ord > ${len(values)}"], "ord"
        else:
            order = "ord DESC"
            if before:
                values.append(before)
                where = [*where, f"ord < ${len(values)}"]
        text = "SELECT record, payload FROM runs JOIN records USING (ord)"
        if where:
            text += " WHERE " + " AND ".join(where)
        text += f" ORDER BY {order} LIMIT ${len(values) + 1}"
        rows = await self._fetch(text, *values, limit)
        return [StoredRun(_record.decode(record), payload) for record, payload in rows]

    async def flow_figures(self, flow_ids: Sequence[str]) -> dict[str, FlowFigures]:
        """See `LaneStore`."""
        figures = {flow_id: FlowFigures({}, 0) for flow_id in flow_ids}
        for flow_id, state, count, depth in await self._fetch(
            "SELECT flow_id, state, count(*), max(depth) FROM runs JOIN records USING (ord) "
            "WHERE flow_id = ANY($1::text[]) GROUP BY flow_id, state",
            clean(flow_ids),
        ):
            found = figures[flow_id]
            states = {**found.states, RunState(state): count}
            figures[flow_id] = FlowFigures(states, max(found.depth, depth))
        return figures

    async def events(self, query: EventQuery, limit: int) -> list[EventRow]:
        """See `LaneStore`."""
        where, values = _event_filter(query)
        # Within a session the order of sequences is the order of positions, and has an index.
        order = "sequence" if query.session_key else "position"
        rows = await self._fetch(
            f"{sql.SELECT_EVENTS} WHERE {' AND '.join(where)} ORDER BY {order} "
            f"LIMIT ${len(values) + 1}",
            *values,
            limit,
        )
        return [EventRow(*row) for row in rows]

    async def list_questions(
        self, query: QuestionQuery, *, before: int, limit: int
    ) -> list[StoredQuestion]:
        """See `LaneStore`."""
        where, values = _question_filter(query)
        if before:
            values.append(before)
            where = [*where, f"ord < ${len(values)}"]
        text = "SELECT record, data FROM questions"
        if where:
            text += " WHERE " + " AND ".join(where)
        text += f" ORDER BY ord DESC LIMIT ${len(values) + 1}"
        rows = await self._fetch(text, *values, limit)
        return [StoredQuestion(_question.decode(record), data) for record, data in rows]

    async def session_head(self, session_key: str) -> int | None:
        """See `LaneStore`."""
        rows = await self._fetch(
            "SELECT head FROM sessions WHERE session_key = ANY($1::text[])", clean([session_key])
        )
        return rows[0][0] if rows else None

    async def oldest(self, session_key: str) -> int:
        """See `LaneStore`."""
        rows = await self._fetch(
            "SELECT sequence FROM compacted WHERE session_key = ANY($1::text[])"
            if session_key
            else "SELECT value FROM meta WHERE key = 'compacted' AND $1::text[] <> '{}'",
            clean([session_key]),
        )
        return (rows[0][0] if rows else 0) + 1


async def _migrate(db: asyncpg.Connection) -> None:
    async with db.transaction():
        await db.execute("SELECT pg_advisory_xact_lock($1)", sql.MIGRATION_LOCK)
        if not await db.fetchval("SELECT to_regnamespace('scheduler') IS NOT NULL"):
            await db.execute("CREATE SCHEMA scheduler")
        if await db.fetchval("SELECT to_regclass('scheduler.schema_version') IS NULL"):
            await db.execute("CREATE TABLE schema_version (version INTEGER NOT NULL)")
            await db.execute("INSERT INTO schema_version VALUES (0)")
        version = await db.fetchval("SELECT version FROM schema_version")
        if version > sql.SCHEMA_VERSION:
            raise StartError(
                f"store.url: the database has schema {version} of the scheduler, this release "
                f"knows {sql.SCHEMA_VERSION}; run the newer release, or name another database"
            )
        for step in sql.STEPS[version:]:
            await db.execute(step)
        if version < sql.SCHEMA_VERSION:
            await db.execute("UPDATE schema_version SET version = $1", sql.SCHEMA_VERSION)
    if await db.fetchval("SELECT current_setting('fsync')") == "off":
        log.warning("PostgreSQL runs with fsync=off: a crash of its machine loses accepted work")


def _run_filter(query: RunQuery) -> tuple[list[str], list[Any]]:
    where: list[str] = []
    values: list[Any] = []

    def add(condition: str, value: Any) -> None:
        values.append(value)
        where.append(condition.replace("?", f"${len(values)}"))

    for column in ("session_key", "flow_id", "customer_key", "lane"):
        if value := getattr(query, column):
            add(f"runs.{column} = ?", *clean([value]))
    if query.states:  # as constants, so that the index of unfinished runs is seen to fit
        where.append(f"state IN ({', '.join(str(int(s)) for s in sorted(query.states))})")
    if query.labels:
        add("labels @> ?::text[]", sql.labels(query.labels))
    if query.roots:
        where.append("parent_id = ''")
    if query.with_children:
        where.append("descendants > 0")
    if query.since:
        add("create_time >= ?", query.since)
    return where, values


def _question_filter(query: QuestionQuery) -> tuple[list[str], list[Any]]:
    where = question_rows.of_states(query)
    values: list[Any] = []
    for column in question_rows.FILTERS:
        if value := getattr(query, column):
            values += clean([value])
            where.append(f"{column} = ${len(values)}")
    return where, values


def _event_filter(query: EventQuery) -> tuple[list[str], list[Any]]:
    where = ["position > $1"]
    values: list[Any] = [query.after_position]

    def add(condition: str, value: Any) -> None:
        values.append(value)
        where.append(condition.replace("?", f"${len(values)}"))

    if query.session_key:
        add("session_key = ?", *clean([query.session_key]))
        add("sequence > ?", query.after_sequence)
    for column in ("flow_id", "run_id"):
        if value := getattr(query, column):
            add(f"{column} = ?", *clean([value]))
    if query.kinds:
        add("kind = ANY(?::text[])", clean(sorted(query.kinds)))
    return where, values
