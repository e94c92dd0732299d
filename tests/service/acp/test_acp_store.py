"""The store of sessions, on both databases."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from acp_svc.app import MIGRATIONS
from acp_svc.domain import session as rules
from acp_svc.domain.session import State
from acp_svc.store import schema
from acp_svc.store.sessions import Chosen
from svckit.database import Database
from svckit.errors import AcpSessionNotFound, InvalidField
from tests.service.acp.bench_sessions import bench


async def test_migrations_and_tables_say_the_same(database_url: str) -> None:
    database = await Database.open(database_url, migrations=MIGRATIONS, name="acp")
    try:
        found = await database.run(
            lambda db: compare_metadata(MigrationContext.configure(db), schema.metadata)
        )
    finally:
        await database.close()
    assert found == []


async def test_sessions_and_prompts_outlive_the_service(database_url: str, tmp_path: Path) -> None:
    async with bench(tmp_path, database_url=database_url) as b:
        ids = [await b.spawned(str(i), customer_key=f"c{i % 2}", label="é") for i in range(4)]
        await b.sessions.mark_sent(ids[0], "run", "1")
        await b.sessions.close(ids[3])
    async with bench(tmp_path, database_url=database_url) as b:
        await b.reaper.recover()
        found = await b.sessions.page(Chosen(), before="", limit=9)
        assert [s.session_id for s in found] == [ids[2], ids[1], ids[0]]
        assert {s.state for s in found} == {State.PARKED}
        assert found[-1].spec.label == "é"
        own = await b.sessions.page(Chosen(customer_key="c0"), before=ids[2], limit=9)
        assert [s.session_id for s in own] == [ids[0]]
        by_state = Chosen((State.CLOSED,), harness_id="held")
        [closed] = await b.sessions.page(by_state, before="", limit=9)
        assert closed.session_id == ids[3]
        sent = await b.sessions.was_sent("run")
        assert sent is not None
        assert not sent.ended
        assert await b.spawned("1", customer_key="c1", label="é") == ids[1]


async def test_a_database_of_before_learns_whose_conversations_are(
    database_url: str, tmp_path: Path
) -> None:
    async with bench(tmp_path, database_url=database_url) as b:
        session_id = await b.spawned("1", customer_key="ann")
        upstream = (await b.sessions.find(session_id)).upstream_id
        await b.sessions.close(session_id)

    def back(db: sa.Connection) -> None:
        db.execute(sa.text("DROP TABLE conversations"))
        db.execute(sa.text("UPDATE alembic_version SET version_num = '0001'"))

    database = await Database.open(database_url, migrations=MIGRATIONS, name="acp")
    await database.run(back)
    await database.close()
    async with bench(tmp_path, database_url=database_url) as b:
        await b.store.forget_ended(b.clock.now_us() + 1, 9)
        with pytest.raises(InvalidField, match="names no session"):
            await b.spawned("2", customer_key="bob", resume_id=upstream)


async def test_what_retention_no_longer_keeps_is_forgotten(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        old, kept = await b.spawned("1"), await b.spawned("2")
        await b.worked(old, "run")
        await b.sessions.close(old)
        day = 86_400
        b.clock.advance(3 * day)
        # Request ids go after two days; what they made stays.
        assert await b.reaper.remove_old(b.clock.now_us()) == 2
        assert await b.spawned("2") != kept
        await b.sessions.close(kept)
        b.clock.advance(28 * day)
        assert await b.reaper.remove_old(b.clock.now_us()) == 3
        everything = await b.sessions.page(Chosen(tuple(State)), before="", limit=9)
        assert old not in {s.session_id for s in everything}
        assert await b.sessions.was_sent("run") is None


async def test_rules_are_applied_to_what_is_stored_at_that_moment(tmp_path: Path) -> None:
    async with bench(tmp_path) as b:
        session_id = await b.spawned()
        before = await b.store.get(session_id)
        assert before is not None
        await b.store.change(session_id, lambda s: rules.at_work(s, "r", 1))
        after = await b.store.change(session_id, lambda s: rules.asking(s, 1, 2))
        assert (after.run_id, after.open_questions) == ("r", 1)
        await b.store.change(session_id, lambda _: before)


async def test_a_zero_byte_is_nothing_that_a_database_fails_on(
    database_url: str, tmp_path: Path
) -> None:
    async with bench(tmp_path, database_url=database_url) as b:
        for name in ("resume_id", "session_key", "customer_key", "label"):
            with pytest.raises(InvalidField) as caught:
                await b.spawned(**{name: "a\0b"})
            assert caught.value.metadata == {"field": f"spec.{name}"}
        with pytest.raises(InvalidField):
            await b.spawned("a\0b")
        with pytest.raises(AcpSessionNotFound):
            await b.sessions.find("a\0b")
        assert await b.sessions.page(Chosen(session_key="a\0b"), before="", limit=9) == []
