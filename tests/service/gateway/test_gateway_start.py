"""What keeps the gateway from starting: one clear line each. And what it keeps over a restart."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from conveyor.agent.v1 import agent_service_pb2 as ag
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from gateway_svc.app import MIGRATIONS, build
from gateway_svc.store import sessions
from gateway_svc.store.schema import metadata
from svckit.database import Database
from svckit.errors import StartError
from svckit.grpc.server import PortInUse
from svckit.settings import load
from svckit.testing import in_process
from tests.service.gateway.suite import suite


def environ(tmp_path: Path, **more: str) -> dict[str, str]:
    return {
        "CONVEYOR_STORE__URL": f"sqlite:///{tmp_path}",
        "CONVEYOR_GATEWAY__HTTP": "127.0.0.1:0",
        "CONVEYOR_GATEWAY__GRPC": "127.0.0.1:0",
    } | more


async def start(env: dict[str, str]) -> None:
    async with in_process(build, load(None, env), name="gateway"):
        raise AssertionError("started")


async def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(PortInUse, match=address):
            await start(environ(tmp_path, CONVEYOR_GATEWAY__HTTP=address))


async def test_a_damaged_database(tmp_path: Path) -> None:
    (tmp_path / "gateway.db").write_bytes(b"SQLite format 3\0" + b"nonsense" * 2000)
    with pytest.raises(StartError, match="damaged"):
        await start(environ(tmp_path))


async def test_an_address_of_another_machine(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef\n")
    with pytest.raises(StartError, match=r"cannot listen on 192\.0\.2\.1"):
        await start(
            environ(
                tmp_path,
                CONVEYOR_GATEWAY__HTTP="192.0.2.1:8080",
                CONVEYOR_GATEWAY__TOKENS__OPS__TOKEN_FILE=str(token),
            )
        )


@pytest.mark.parametrize(
    ("toml", "key"),
    [
        ('[channels.team]\nkind = "slack"\n', r"channels\.team\.kind"),
    ],
)
async def test_promises_that_this_release_cannot_keep(tmp_path: Path, toml: str, key: str) -> None:
    path = tmp_path / "conveyor.toml"
    path.write_text(toml)
    with pytest.raises(StartError, match=key):
        async with in_process(build, load(path, environ(tmp_path)), name="gateway"):
            raise AssertionError("started")


async def test_it_starts_and_stops_without_its_neighbours(tmp_path: Path) -> None:
    nowhere = {
        f"CONVEYOR_SERVICES__{name}": "127.0.0.1:1" for name in ("SCHEDULER", "AGENT", "ACP")
    }
    settings = load(None, environ(tmp_path, **nowhere))
    async with in_process(build, settings, name="gateway") as running:
        assert running.address


async def test_sessions_and_epochs_outlive_the_process(tmp_path: Path) -> None:
    async with suite(tmp_path) as around:
        async with around.serve():
            await around.send("alice", "one", customer_key="acme")
            around.agents.queue("ResetSession", ag.ResetSessionResponse(epoch=3))
            await around.stub.ResetSession(
                ag.ResetSessionRequest(session_key="alice", request_id="r")
            )
        async with around.serve():
            answer = await around.send("alice", "two")
            assert answer.accepted.run.spec.session_epoch == 3
            assert answer.accepted.run.spec.customer_key == "acme"
            found = await around.stub.GetSession(gw.GetSessionRequest(session_key="alice"))
            assert found.session.epoch == 3


async def test_a_database_of_the_first_schema_is_taken_over(
    tmp_path: Path, database_url: str
) -> None:
    first = tmp_path / "first" / "versions"
    first.mkdir(parents=True)
    shutil.copy(MIGRATIONS / "versions" / "0001_first.py", first)
    database = await Database.open(database_url, migrations=first.parent, name="gateway")
    row = "('alice', 1, 'main', 'c', 'http', '', '', 3, 'R', 1, 2)"
    await database.run(lambda db: db.execute(sa.text(f"INSERT INTO sessions VALUES {row}")))
    await database.close()
    database = await Database.open(database_url, migrations=MIGRATIONS, name="gateway")
    try:
        found = await database.run(lambda db: sessions.find_active(db, "alice"))
        differences = await database.run(
            lambda db: compare_metadata(MigrationContext.configure(db), metadata)
        )
    finally:
        await database.close()
    assert found is not None
    assert (found.customer_key, found.epoch, found.active_us) == ("c", 3, 2)
    assert differences == []
