"""What the gateway forgets, and what it keeps."""

from __future__ import annotations

import sqlalchemy as sa

from conveyor.gateway.v1 import session_pb2
from gateway_svc.app import MIGRATIONS
from gateway_svc.retention import BATCH, remove_old
from gateway_svc.store import commands, outbox, sessions
from svckit.database import Database
from svckit.settings_model import RetentionSettings

DAY = 86_400 * 1_000_000
NOW = 1_000 * DAY


def session(
    key: str, kind: session_pb2.SessionKind.ValueType, age_days: int, *, begun: bool = True
) -> sessions.SessionRow:
    at_us = NOW - age_days * DAY
    return sessions.SessionRow(
        session_key=key,
        kind=kind,
        agent_id="main",
        customer_key="c",
        channel="",
        parent_session_key="",
        label="",
        epoch=0,
        create_us=at_us,
        active_us=at_us if begun else None,
    )


async def test_sessions_of_old_children_do_not_pile_up(database_url: str) -> None:
    child, talk = session_pb2.SESSION_KIND_SUBAGENT, session_pb2.SESSION_KIND_CONVERSATION
    database = await Database.open(database_url, migrations=MIGRATIONS, name="gateway")

    def fill(db: sa.Connection) -> None:
        for number in range(BATCH + 10):
            sessions.create(db, session(f"old:subagent:{number}", child, 31))
        sessions.create(db, session("new:subagent:1", child, 29))
        sessions.create(db, session("alice", talk, 400))
        sessions.create(db, session("never-begun", talk, 31, begun=False))
        sessions.create(db, session("beginning", talk, 0, begun=False))

    def keys(db: sa.Connection) -> set[str]:
        return set(db.scalars(sa.select(sessions.sessions.c.session_key)))

    try:
        await database.run(fill)
        assert await remove_old(database, RetentionSettings(), NOW) == BATCH + 11
        assert await database.run(keys) == {"new:subagent:1", "alice", "beginning"}
        assert await remove_old(database, RetentionSettings(), NOW) == 0
    finally:
        await database.close()


async def test_commands_are_known_for_as_long_as_request_ids(database_url: str) -> None:
    database = await Database.open(database_url, migrations=MIGRATIONS, name="gateway")

    def fill(db: sa.Connection) -> None:
        for request_id, age in (("old", 3 * DAY), ("new", DAY)):
            commands.finish(db, request_id, b"h" * 32, b"answer", NOW - age)
            # What was decided first counts, also while nobody knows what came of it.
            assert commands.decide(db, f"{request_id}-2", b"h", ["a", "b"], NOW - age) == ("a", "b")
            assert commands.decide(db, f"{request_id}-2", b"h", ["c"], NOW) == ("a", "b")

    try:
        await database.run(fill)
        assert await remove_old(database, RetentionSettings(), NOW) == 2
        assert await database.run(lambda db: commands.find(db, "old")) is None
        kept = await database.run(lambda db: commands.find(db, "new"))
        assert kept == commands.DoneCommand(b"h" * 32, None, b"answer")
    finally:
        await database.close()


async def test_archived_sessions_leave_the_list_when_their_time_comes(database_url: str) -> None:
    child = session_pb2.SESSION_KIND_SUBAGENT
    database = await Database.open(database_url, migrations=MIGRATIONS, name="gateway")
    # As long as the key of a run sixteen levels down.
    deep = "agent:main:http:direct:" + "x" * 200 + ":subagent:" * 16 + "y" * 416

    def fill(db: sa.Connection) -> None:
        for key in ("soon", "later", deep):
            sessions.create(db, session(key, child, 1))
        sessions.archive(db, "soon", NOW)
        sessions.archive(db, "later", NOW + 1)

    def keys(db: sa.Connection, at_us: int | None) -> set[str]:
        query = sessions.SessionQuery(kinds=[child], not_archived_at=at_us)
        return {row.session_key for row in sessions.list_active(db, query)}

    try:
        await database.run(fill)
        assert await database.run(lambda db: keys(db, NOW - 1)) == {"soon", "later", deep}
        assert await database.run(lambda db: keys(db, NOW)) == {"later", deep}
        assert await database.run(lambda db: keys(db, None)) == {"soon", "later", deep}
    finally:
        await database.close()


async def test_deliveries_are_forgotten_once_they_were_made(database_url: str) -> None:
    database = await Database.open(database_url, migrations=MIGRATIONS, name="gateway")

    def fill(db: sa.Connection) -> None:
        for key in ("made", "waits"):
            outbox.add(db, outbox.NewEntry("ann", key, "phone", "reply", "hi", "r", 0))
        outbox.settle(db, 1, outbox.OutboxState.DELIVERED, NOW - 8 * DAY)

    try:
        await database.run(fill)
        assert await remove_old(database, RetentionSettings(), NOW) == 1
        assert await database.run(outbox.count_pending) == {"phone": 1}
    finally:
        await database.close()
