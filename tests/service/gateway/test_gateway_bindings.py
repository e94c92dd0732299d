"""Bindings as they are stored, on both databases."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import sqlalchemy as sa

from conveyor.gateway.v1 import session_pb2
from gateway_svc.app import MIGRATIONS
from gateway_svc.domain.binding import Binding, Notice
from gateway_svc.store import sessions as store
from svckit.database import Database

BINDING = Binding("r", "claude")
NOTICE = Notice("acp-over-S", "it has ended: “now”")


@pytest.fixture(params=["sqlite", "postgres"])
async def database(request: pytest.FixtureRequest) -> AsyncIterator[Database]:
    url = ":memory:"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
    opened = await Database.open(url, migrations=MIGRATIONS, name="gateway")
    yield opened
    await opened.close()


def row(key: str, **more: object) -> store.SessionRow:
    values: dict[str, object] = {
        "session_key": key,
        "kind": session_pb2.SESSION_KIND_CONVERSATION,
        "agent_id": "main",
        "customer_key": "ann",
        "channel": "http",
        "parent_session_key": "",
        "label": "",
        "epoch": 0,
        "create_us": 1,
        "active_us": None,
    }
    return store.SessionRow(**{**values, **more})  # type: ignore[arg-type]


async def test_one_session_answers_until_it_is_let_go_and_then_a_notice_waits(
    database: Database,
) -> None:
    def steps(connection: sa.Connection) -> None:
        store.create(connection, row("k"))
        assert store.bind(connection, "k", "S", BINDING, "here")
        assert not store.bind(connection, "k", "T", BINDING, "there")
        assert store.bind(connection, "k", "S", BINDING, "here"), "again is the same"
        assert [found.session_key for found in store.bound_to(connection, "S")] == ["k"]
        # Its first message comes: what was decided for it before stays.
        born = store.replace_unborn(connection, row("k", epoch=1))
        assert (born.bound_acp_session_id, born.epoch) == ("S", 1)

        assert not store.unbind(connection, "k", "T", NOTICE)
        assert store.unbind(connection, "k", "S", NOTICE)
        found = store.find(connection, "k")
        assert found is not None
        assert (found.known.notice, found.bound_acp_session_id) == (NOTICE, "")
        store.noticed(connection, "k", Notice("other", "x"))
        store.touch(connection, "k", 5, "elsewhere")
        store.touch(connection, "k", 6)
        found = store.find(connection, "k")
        assert found is not None
        assert (found.known.notice, found.reply_address) == (NOTICE, "elsewhere")
        store.noticed(connection, "k", NOTICE)
        found = store.find(connection, "k")
        assert found is not None
        assert found.known.notice is None

    await database.run(steps)


async def test_lanes_below_a_conversation_are_those_of_people_and_in_use(
    database: Database,
) -> None:
    acp = session_pb2.SESSION_KIND_ACP

    def steps(connection: sa.Connection) -> list[str]:
        for key, more in (
            ("old", {"active_us": 10}),
            ("first", {"active_us": 30, "create_us": 1}),
            ("second", {"active_us": 20, "create_us": 2}),
            ("of-an-agent", {"active_us": 30, "reply_address": ""}),
            ("of-another", {"active_us": 30, "parent_session_key": "x"}),
        ):
            one = {"kind": acp, "parent_session_key": "k", "reply_address": "a", **more}
            store.create(connection, row(key, **one))
        return store.lanes_below(connection, "k", 15, 5)

    assert await database.run(steps) == ["second", "first"]
