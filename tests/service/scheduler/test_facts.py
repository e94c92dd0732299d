"""Small records that outlive a restart, and the schema that they came with."""

from __future__ import annotations

from pathlib import Path

import apsw

from scheduler_svc.app import make_store
from scheduler_svc.store import sql
from scheduler_svc.store.base import Batch, LaneStore
from scheduler_svc.store.memory import MemoryStore
from scheduler_svc.store.sqlite import SqliteStore

from .conftest import settings


async def test_facts_are_kept_replaced_and_removed(store: str, tmp_path: Path) -> None:
    in_memory = MemoryStore()

    def opened() -> LaneStore:
        return in_memory if store == "memory" else make_store(settings(tmp_path, store))

    kept = opened()
    await kept.acquire()
    await kept.commit(Batch(time=1, facts={("limiter", "a"): b"1", ("limiter", "b"): b"2"}))
    await kept.commit(Batch(time=2, facts={("limiter", "a"): b"3", ("limiter", "b"): None}))
    await kept.commit(Batch(time=3, facts={("other", "a"): b"4"}))
    await kept.close()
    kept = opened()
    await kept.acquire()
    assert (await kept.load()).facts == {("limiter", "a"): b"3", ("other", "a"): b"4"}
    await kept.close()


async def test_a_file_of_the_first_schema_is_brought_up_to_date(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    old = apsw.Connection(str(path))
    for _ in old.execute(sql.STEPS[0]):
        pass
    old.execute("INSERT INTO limits VALUES ('main', 7)")
    old.execute("PRAGMA user_version = 1")
    old.close()
    store = SqliteStore(path)
    await store.acquire()
    await store.commit(Batch(time=1, facts={("kind", "key"): b"{}"}))
    loaded = await store.load()
    assert (loaded.limits, loaded.facts) == ({"main": 7}, {("kind", "key"): b"{}"})
    await store.close()
    again = apsw.Connection(str(path))
    assert again.execute("PRAGMA user_version").get == sql.SCHEMA_VERSION
    again.close()
