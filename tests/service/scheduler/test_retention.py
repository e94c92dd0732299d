"""Retention: what goes, what stays, and that nobody waits for it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from scheduler_svc.app import make_store
from scheduler_svc.domain.records import Run, RunState
from scheduler_svc.retention import remove_old
from scheduler_svc.store import postgres_prune, sqlite
from scheduler_svc.store.base import Batch, EventQuery, EventRow, LaneStore, RunQuery
from scheduler_svc.store.memory import MemoryStore
from scheduler_svc.store.sqlite import SqliteStore
from svckit.settings_model import RetentionSettings

from .conftest import settings


@pytest.fixture
def kept(store: str, tmp_path: Path) -> LaneStore:
    return make_store(settings(tmp_path, store))


def ended(n: int, session: str, *, end_time: int = 1) -> Run:
    state = RunState.SUCCEEDED if end_time else RunState.QUEUED
    return Run(
        run_id=f"r{n}",
        flow_id=f"r{n}",
        order=n,
        session_key=session,
        customer_key="c",
        queue="agent",
        lane="main",
        create_time=1,
        state=state,
        end_time=end_time,
    )


async def fill(store: LaneStore, runs: list[Run], per_run: int = 2) -> None:
    await store.acquire()
    events, heads = [], dict[str, int]()
    for run in runs:
        for _ in range(per_run):
            key = run.session_key
            heads[key] = heads.get(key, 0) + 1
            events.append(
                EventRow(len(events) + 1, key, heads[key], run.run_id, run.flow_id, "k", None, b"")
            )
    payloads = {run.run_id: b"p" for run in runs}
    sessions = [(key, head, []) for key, head in heads.items()]
    await store.commit(
        Batch(time=1, runs=runs, payloads=payloads, events=events, sessions=sessions)
    )


async def test_events_go_as_a_prefix_however_many_transactions_it_takes(
    kept: LaneStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (sqlite, postgres_prune):
        monkeypatch.setattr(module, "PRUNED_FLOWS", 2)
    old = [ended(n, "a") for n in range(1, 6)]
    live = ended(6, "a", end_time=0)
    behind = [ended(n, "a") for n in range(7, 9)]
    await fill(kept, [*old, live, *behind, ended(9, "b")])
    await kept.prune(requests_before=0, ended_before=10)
    left = await kept.list_runs(RunQuery(), before=0, after=0, limit=100)
    assert [found.run.run_id for found in left] == ["r6"]
    rows = await kept.events(EventQuery(session_key="a"), 100)
    assert [row.sequence for row in rows] == list(range(11, 17))
    assert await kept.oldest("a") == 11
    assert await kept.oldest("b") == 3
    assert await kept.oldest("") == 19
    # The run in front ends: now those behind it go too, and positions go on.
    live.state, live.end_time = RunState.SUCCEEDED, 5
    await kept.commit(Batch(time=6, runs=[live]))
    await kept.prune(requests_before=0, ended_before=10)
    assert await kept.events(EventQuery(), 100) == []
    assert (await kept.load()).last_position == 18
    await kept.close()


async def test_pruning_a_long_session_does_not_hold_commits_up(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "scheduler.db")
    await fill(store, [ended(n, "long") for n in range(1, 1001)], per_run=8)
    pruning = asyncio.create_task(store.prune(requests_before=0, ended_before=10))
    commits = 0
    while not pruning.done():
        await store.commit(Batch(time=1))
        commits += 1
    assert await pruning >= 8000
    assert commits > 5  # between the small transactions of pruning
    await store.close()


async def test_a_run_stays_while_a_repeated_request_must_find_it() -> None:
    asked: list[dict[str, int]] = []

    class Asked(MemoryStore):
        async def prune(self, **before: int) -> int:
            asked.append(before)
            return 0

    keep = RetentionSettings(events_days=0.1, runs_days=0.1, request_ids_hours=48)
    await remove_old(Asked(), keep, 10**15)
    assert asked[0]["ended_before"] <= asked[0]["requests_before"]
