"""Where histories come from: a store in hand, or the file of a scheduler that may be running."""

from __future__ import annotations

import asyncio
from pathlib import Path

import apsw
import msgspec

from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import run_pb2
from scheduler_svc.domain.records import Run, Usage
from scheduler_svc.store.base import EventQuery, LaneStore, RunQuery
from tests.history.model import History, RunRow, Totals

ALL = 10_000_000


async def of_store(store: LaneStore) -> History:
    """Everything in a store that is open."""
    runs = await store.list_runs(RunQuery(), before=-1, after=0, limit=ALL)
    events = await store.events(EventQuery(), ALL)
    return History(
        runs={stored.run.run_id: row_of(stored.run, stored.payload) for stored in runs},
        events=[event_pb2.Event.FromString(row.data) for row in events],
        whole=await store.oldest("") == 1,
    )


async def of_sqlite(path: Path) -> History:
    """Everything in the scheduler's SQLite file, as of one moment, also while it is in use."""
    return await asyncio.to_thread(_read, path)


def _read(path: Path) -> History:
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        db.set_busy_timeout(5000)
        with db:  # one transaction: one moment
            rows = list(db.execute("SELECT record, payload FROM runs JOIN payloads USING (run_id)"))
            events = list(db.execute("SELECT data FROM events ORDER BY position"))
            cut = db.execute("SELECT count(*) FROM compacted").get
    finally:
        db.close()
    decode = msgspec.json.Decoder(Run).decode
    runs = [row_of(decode(record), payload) for record, payload in rows]
    return History(
        runs={row.run_id: row for row in runs},
        events=[event_pb2.Event.FromString(data) for (data,) in events],
        whole=not cut,
    )


def row_of(run: Run, payload: bytes) -> RunRow:
    """What the checker needs of a stored run."""
    asked = run_pb2.Run.FromString(payload)
    return RunRow(
        run_id=run.run_id,
        flow_id=run.flow_id,
        session_key=run.session_key,
        lane=run.lane,
        order=run.order,
        state=int(run.state),
        parent_id=run.parent_id,
        depth=run.depth,
        requests=[entry.request_id for entry in asked.inputs if entry.request_id],
        usage=_totals(run.usage),
        tree_usage=_totals(run.tree_usage),
        queued=run.session_wait + run.global_wait,
        suspended=run.suspended,
        executed=run.executed,
        run_timeout=run.run_timeout,
        descendants=run.descendants,
        jumps=run.jumps,
    )


def _totals(usage: Usage) -> Totals:
    return Totals(usage.model_calls, usage.input_tokens, usage.output_tokens, usage.cost_micros_usd)
