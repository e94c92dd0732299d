"""Tools of a server, and people who are asked about them, through the whole suite."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from acp.schema import PermissionOption, ToolCallUpdate

from conveyor.common.v1 import question_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as scheduler_pb
from conveyor_client import ConveyorClient
from svckit.testing import eventually
from tests.system.editor import Editor, editing
from tests.system.harness import (
    SUCCEEDED,
    SUSPENDED,
    Suite,
    chat,
    payloads,
    replies,
    run_where,
    running,
    text_of,
)

SERVER = Path(__file__).parents[1] / "service" / "agent" / "mcp_server.py"
PERSON = "agent:main:http:direct:person"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Ledger:
    """What servers did."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[tuple[int, str]]:
        text = self.path.read_text() if self.path.exists() else ""
        return [(int(pid), what) for pid, what in map(str.split, text.splitlines())]

    def count(self, what: str) -> int:
        return [name for _, name in self.lines()].count(what)


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Ledger:
    return Ledger(tmp_path_factory.mktemp("ledger") / "ledger")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory, ledger: Ledger) -> Iterator[Suite]:
    # One slot for everybody: whoever waits for a person must not keep it.
    toml = f"""
[lanes.main]
limit = 1
[agents.list.main]
approval_timeout_seconds = 120
[agents.list.hasty]
approval_timeout_seconds = 10
[mcp.test]
command = ["{sys.executable}", "-S", "{SERVER}", "stubborn"]
start_timeout_seconds = 40
timeout_seconds = 120
[mcp.test.env]
LEDGER = "{ledger.path}"
[mcp.test.tools.hang]
idempotent = false
"""
    with running(tmp_path_factory.mktemp("suite"), toml) as suite:
        yield suite
    # `conveyor up` stopped the services with SIGTERM: what they started is gone with them.
    assert not [pid for pid, _ in ledger.lines() if alive(pid)]


@pytest.fixture
async def client(suite: Suite) -> AsyncIterator[ConveyorClient]:
    async with suite.client() as open_client:
        yield open_client


async def asked(client: ConveyorClient, session_key: str) -> question_pb2.Question:
    """The open question of a conversation, as people see it at the gateway."""

    async def look() -> question_pb2.Question:
        only = scheduler_pb.QuestionFilter(session_key=session_key)
        found = (await client.questions(only)).questions
        assert len(found) == 1
        return found[0]

    return await eventually(look, timeout=60)


async def test_a_tool_runs_once_when_a_person_allows_it_and_never_otherwise(
    suite: Suite, client: ConveyorClient, ledger: Ledger
) -> None:
    order = '[[tool test__write: {"path": "a.txt"}]]'
    late = asyncio.create_task(
        chat(client, order, session_key="agent:hasty:http:direct:late", agent_id="hasty")
    )
    told = asyncio.create_task(chat(client, order, session_key=PERSON))
    question = await asked(client, PERSON)
    assert question.title == 'Use test__write with {"path": "a.txt"}'
    assert question.arguments["path"] == "a.txt"
    await run_where(client, question.run_id, SUSPENDED)
    assert ledger.count("write") == 0

    # The wait holds no slot: with one for all, somebody else is answered meanwhile.
    other = await chat(client, "[[reply: at once]]", session_key=f"{PERSON}-2")
    assert other.answer == "at once"

    # Answered over gRPC, twice: the tool runs once.
    for _ in range(2):
        await client.answer(question.question_id, "allow")
    assert (await told).answer == 'test__write: write {"path": "a.txt"}'
    assert ledger.count("write") == 1

    # The next one is asked again, and denied over HTTP.
    refused = asyncio.create_task(chat(client, order, session_key=PERSON))
    question = await asked(client, PERSON)
    async with httpx.AsyncClient(base_url=suite.http) as http:
        path = f"/v1/questions/{question.question_id}"
        answered = await http.post(path, json={"option_id": "deny"})
        assert answered.status_code == 200, answered.text
    assert "test__write failed: Not run: denied by" in (await refused).answer

    # For the rest of the conversation, said in the chat: asked once more, and then no more.
    always = asyncio.create_task(chat(client, order, session_key=PERSON))
    question = await asked(client, PERSON)
    said = await client.send("/approve always", session_key=PERSON)
    assert "test__write" in text_of(said.accepted.run.result.reply)
    assert "write {" in (await always).answer
    assert "write {" in (await chat(client, order, session_key=PERSON)).answer
    assert ledger.count("write") == 3

    # Nobody answered the first one: denied, once.
    expired = await late
    assert "nobody gave it in time" in expired.answer
    events = await suite.events("agent:hasty:http:direct:late")
    assert len(replies(events)) == 1
    (closed,) = payloads(events, "question_closed")
    assert closed.state == question_pb2.QUESTION_STATE_EXPIRED
    assert ledger.count("write") == 3


async def test_an_editor_asks_its_user_about_a_tool(suite: Suite, ledger: Ledger) -> None:
    order = '[[tool test__write: {"path": "editor.txt"}]]'
    before = ledger.count("write")

    def choose(_: ToolCallUpdate, options: list[PermissionOption]) -> str:
        kind = answers.pop(0)
        return next(option.option_id for option in options if option.kind == kind)

    answers = ["reject_once", "allow_once"]
    async with editing(suite, Editor(choose)) as editor:
        session = (await editor.agent.new_session(cwd="/", mcp_servers=[])).session_id
        await editor.ask(session, order)
        assert "Not run: denied by" in editor.text
        assert ledger.count("write") == before
        await editor.ask(session, order)
        assert ledger.count("write") == before + 1
        assert [call.title for call in editor.asked] == [
            'Use test__write with {"path": "editor.txt"}'
        ] * 2
        assert {call["title"] for call in editor.of("tool_call")} == {"test__write"}


async def test_a_call_that_a_kill_interrupted_is_told_and_not_repeated(
    suite: Suite, client: ConveyorClient, ledger: Ledger
) -> None:
    session = "agent:main:http:direct:unlucky"
    told = asyncio.create_task(chat(client, "[[tool test__hang:]]", session_key=session))
    await eventually(lambda: ledger.count("hang") == 1, timeout=60)
    (hanging,) = (pid for pid, what in ledger.lines() if what == "hang")
    suite.kill("agent")
    answer = (await told).answer
    assert "test__hang failed: Interrupted" in answer
    assert "may or may not have happened" in answer
    assert ledger.count("hang") == 1
    # The server hung, so it did not see its caller go; the next life of the service found it.
    assert not alive(hanging)
    await run_where(client, (await told).run_id, SUCCEEDED)
