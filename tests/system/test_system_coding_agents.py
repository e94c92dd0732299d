"""An agent that has a coding agent work for it, through the whole suite: waiting for it and not,
asking people, cancelled, and with services killed while it waits for an answer.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from conveyor.acp.v1 import session_pb2
from conveyor.common.v1 import question_pb2
from conveyor.gateway.v1 import gateway_service_pb2 as gateway_pb
from conveyor.scheduler.v1 import run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as scheduler_pb
from conveyor_client import ConveyorClient
from svckit.testing import eventually
from tests.history import assert_holds, of_sqlite
from tests.system.harness import (
    SUCCEEDED,
    SUSPENDED,
    Suite,
    chat,
    flow_where,
    nothing_unfinished,
    payloads,
    replies,
    run_where,
    running,
)

SCRIPTED = Path(__file__).parents[1] / "harnesses" / "scripted.py"
CANCELLED = run_pb2.RUN_STATE_CANCELLED
FAILED = run_pb2.RUN_STATE_FAILED


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the coding agents may work."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory, place: Path) -> Iterator[Suite]:
    # One slot for all coding agents: who waits for a person must not keep it.
    directory = tmp_path_factory.mktemp("suite")
    toml = f"""
[lanes.acp]
limit = 1
[acp]
permission_mode = "ask"
workspace_roots = ["{place}"]
allowed_harnesses = ["scripted"]
sandbox = "off"
[acp.harness.scripted]
command = ["{sys.executable}", "{SCRIPTED}", "--pids", "{place}/pids"]
"""
    with running(directory, toml) as started:
        yield started
    assert not working(place), "nothing of a coding agent is left"
    assert_holds(asyncio.run(of_sqlite(started.store / "scheduler.db")))


@pytest.fixture
async def client(suite: Suite) -> AsyncIterator[ConveyorClient]:
    async with suite.client() as open_client:
        yield open_client
        await nothing_unfinished(open_client)


def pids(place: Path) -> list[int]:
    """Every process that the coding agents told us of."""
    file = place / "pids"
    lines = file.read_text().splitlines() if file.exists() else []
    return [int(line.split()[1]) for line in lines]


def working(place: Path) -> list[int]:
    """Those of them that are there; what has ended and nobody waited for is not."""

    def there(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    return [pid for pid in pids(place) if there(pid)]


async def asked(client: ConveyorClient, session_key: str) -> question_pb2.Question:
    """The open question of a conversation."""

    async def look() -> question_pb2.Question:
        only = scheduler_pb.QuestionFilter(session_key=session_key)
        (found,) = (await client.questions(only)).questions
        return found

    async def some() -> question_pb2.Question | None:
        try:
            return await look()
        except ValueError:
            return None

    return await eventually(some, timeout=60)


async def sessions_left(client: ConveyorClient) -> None:
    """Wait until every ACP session is closed."""

    async def look() -> bool:
        page = await client.acp_sessions(gateway_pb.ListAcpSessionsRequest().filter)
        return not page.sessions

    await eventually(look, timeout=60)


async def test_an_agent_waits_for_a_coding_agent_that_asks_its_customer(
    suite: Suite, client: ConveyorClient, place: Path
) -> None:
    key = "agent:main:http:direct:waits"
    order = f"[[acp scripted: write {place}/waited.txt hello ;; plan ;; count]]"
    told = asyncio.create_task(chat(client, order, session_key=key))
    question = await asked(client, key)
    child = await run_where(client, question.run_id, SUSPENDED)
    assert child.suspension.lease_worker, "the process is kept, the slot is not"
    assert not (place / "waited.txt").exists()

    # The only slot of the lane is free meanwhile: another conversation's coding agent works.
    other = await chat(
        client, "[[acp scripted: say:from beside]]", session_key="agent:main:http:direct:beside"
    )
    assert "from beside" in other.answer

    await client.answer(question.question_id, "allow")
    answer = (await told).answer
    assert "The sub-agent is done." in answer
    assert "wrote" in answer
    assert "prompts: 1" in answer
    assert (place / "waited.txt").read_text() == "hello"

    # One tree, one trace; what it did is in its own session's log.
    flow = await client.flow((await told).run_id)
    root, child = flow.nodes
    traces = {node.trace.traceparent.split("-")[1] for node in flow.nodes}
    assert len(traces) == 1
    assert (root.state, child.state) == (SUCCEEDED, SUCCEEDED)
    assert (child.spec.queue, child.spec.customer_key) == ("acp", root.spec.customer_key)
    log = await suite.events(child.spec.session_key)
    assert payloads(log, "harness_updated")
    (decided,) = payloads(log, "permission_decided")
    assert (decided.allowed, decided.rule) == (True, "asked")
    await sessions_left(client)
    await eventually(lambda: not working(place))  # closed with its one task


async def test_a_coding_agent_in_the_background_is_steered_and_announced(
    suite: Suite, client: ConveyorClient, place: Path
) -> None:
    key = "agent:main:http:direct:later"
    order = f"[[acp-background scripted: write {place}/later.txt x]] [[reply: started]]"
    told = asyncio.create_task(chat(client, order, session_key=key))
    question = await asked(client, key)
    assert "started" in replies(await suite.events(key)), "the reply did not wait"

    steer = '{"action": "steer", "target": "1", "message": "say:and then ;; count"}'
    steered = await chat(client, f"[[tool subagents: {steer}]]", session_key=key)
    assert "It gets it as its next prompt" in steered.answer
    await client.answer(question.question_id, "deny")
    answer = (await told).answer
    assert "and thenprompts: 2" in answer, "the same session took the next prompt"
    assert not (place / "later.txt").exists()
    announced = payloads(await suite.events(key), "child_announced")
    assert [item.announcement.result.status for item in announced] == [SUCCEEDED]


async def test_a_cancelled_flow_stops_the_coding_agents_turn(
    suite: Suite, client: ConveyorClient, place: Path
) -> None:
    key = "agent:main:http:direct:stops"
    told = asyncio.create_task(chat(client, "[[acp scripted: say:begun ;; hang]]", session_key=key))

    async def root() -> str:
        runs = (
            await client.runs(scheduler_pb.ListRunsRequest(filter={"session_key": key}).filter)
        ).runs
        return runs[-1].run_id if runs else ""

    run_id = await eventually(root, timeout=60)
    flow = await flow_where(client, run_id, suspended=1, running=1)
    child = flow.nodes[1]

    async def begun() -> bool:
        page = await client.acp_sessions(gateway_pb.ListAcpSessionsRequest().filter)
        return any(s.state == session_pb2.ACP_SESSION_STATE_BUSY for s in page.sessions)

    await eventually(begun, timeout=60)
    await client.cancel_flow(run_id, reason="never mind")
    await flow_where(client, run_id, cancelled=2)
    assert (await told).ended.state == CANCELLED
    assert (await client.run(child.run_id)).run.cancel_reason == "never mind"
    await sessions_left(client)
    await eventually(lambda: not working(place))


async def test_a_question_outlives_the_scheduler_and_its_process_is_still_there(
    suite: Suite, client: ConveyorClient, place: Path
) -> None:
    key = "agent:main:http:direct:restarts"
    order = f"[[acp scripted: write {place}/restarted.txt y ;; count]]"
    told = asyncio.create_task(chat(client, order, session_key=key))
    question = await asked(client, key)
    await run_where(client, question.run_id, SUSPENDED)  # asked comes before it
    before, harness = len(suite.lines), pids(place)[-1]
    suite.kill("scheduler")
    await eventually(
        lambda: any("scheduler is back after" in line for line in suite.lines[before:]), timeout=40
    )
    child = (await client.run(question.run_id)).run
    assert (child.state, child.turn, child.attempt) == (SUSPENDED, 1, 1)
    await client.answer(question.question_id, "allow")
    assert "prompts: 1" in (await told).answer
    assert (place / "restarted.txt").read_text() == "y"
    assert pids(place)[-1] == harness, "it was not started again"


async def test_a_question_of_a_process_that_is_gone_is_withdrawn_and_the_run_says_why(
    suite: Suite, client: ConveyorClient, place: Path
) -> None:
    key = "agent:main:http:direct:dies"
    order = f"[[acp scripted: write {place}/died.txt z]]"
    told = asyncio.create_task(chat(client, order, session_key=key))
    question = await asked(client, key)
    suite.kill("acp")
    answer = (await told).answer
    assert "0 of 1 sub-agents succeeded" in answer
    assert "was interrupted while it worked on this" in answer
    child = (await client.run(question.run_id)).run
    assert child.state == FAILED
    assert (child.turn, child.attempt) == (1, 2), "the kept lease was lost like any"
    (closed,) = payloads(await suite.events(child.spec.session_key), "question_closed")
    assert closed.state == question_pb2.QUESTION_STATE_CANCELLED
    assert not (place / "died.txt").exists()
    await eventually(lambda: not working(place), timeout=60)
