"""compose.postgres.yaml: PostgreSQL, two schedulers, two agents; and a coding agent in an image of
its own. PostgreSQL itself is Debian's, see tests/compose/postgres: no registry is needed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from conveyor_client import ConveyorClient
from svckit.testing import eventually
from tests.compose.stack import BACK_SECONDS, ROOT, Container, Stack, docker
from tests.compose.test_compose_sqlite import over, running
from tests.system.harness import CLASSIC, SUCCEEDED, TASKS, text_of

FILES = [
    "compose.yaml",
    "compose.postgres.yaml",
    "tests/compose/postgres.yaml",
    "tests/compose/coding_agent.yaml",
]
HARNESS = """
[acp.harness.scripted]
command = ["python", "/opt/scripted/scripted.py"]
asks = ["ask"]
"""


@pytest.fixture(scope="module")
def stack(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    directory = tmp_path_factory.mktemp("compose")
    password, config = directory / "password", directory / "conveyor.toml"
    password.write_text("correct horse battery\n")
    config.write_text((ROOT / "deploy" / "conveyor.toml").read_text("utf-8") + HARNESS)
    stack = Stack(
        "conveyor-test-postgres",
        FILES,
        POSTGRES_PASSWORD_FILE=str(password),
        SUITE_CONFIG=str(config),
    )
    stack.down()
    stack.build("gateway", "postgres")
    stack.build("acp")
    try:
        stack.up()
        yield stack
    finally:
        stack.down()


def counts(found: dict[str, list[Container]]) -> dict[str, int]:
    return {service: len(containers) for service, containers in found.items()}


def test_one_of_two_schedulers_leads_and_two_agents_work(stack: Stack) -> None:
    found = stack.containers()
    assert counts(found) == {
        "postgres": 1,
        "scheduler": 1,
        "scheduler-2": 1,
        "agent": 2,
        "acp": 1,
        "gateway": 1,
    }
    every = [container for containers in found.values() for container in containers]
    assert all(container.healthy for container in every)
    assert [c.service for c in every if c.published] == ["gateway"]
    assert len(stack.leaders()) == 1
    code, said = stack.run_in(found["gateway"][0], "conveyor", "doctor")
    assert code == 0, said
    assert "PostgreSQL" in said


async def test_a_delegated_request_with_the_active_scheduler_killed(stack: Stack) -> None:
    (leader,) = await asyncio.to_thread(stack.leaders)
    # Started again at once it may well be the one that takes over: it stays away for a while.
    docker("update", "--restart=no", leader.id)
    async with ConveyorClient(stack.grpc) as client:
        slow = "".join(f"[[spawn: [[sleep: 3s]] [[reply: {word}]]]]" for word in ("red", "blue"))
        sent = await client.send(slow, session_key="agent:main:test:killed")
        flow_id = sent.accepted.run.run_id
        await eventually(lambda: _live(client, flow_id), timeout=BACK_SECONDS, interval=0.1)
        await asyncio.to_thread(stack.kill, leader)
        meanwhile = await client.send(CLASSIC, session_key="agent:main:test:meanwhile")
        ended = await over(client, flow_id)
        flow = await client.flow(flow_id)
        classic = await over(client, meanwhile.accepted.run.run_id)
    assert ended.state == SUCCEEDED
    assert [run.state for run in flow.nodes] == [SUCCEEDED] * 3
    # One answer with what both found, whoever led when.
    said = text_of(ended.result.reply)
    assert ("red" in said, "blue" in said) == (True, True), said
    assert classic.state == SUCCEEDED
    assert all(f"Done: {task}" in text_of(classic.result.reply) for task in TASKS)
    (now,) = await asyncio.to_thread(stack.leaders)
    assert now.service != leader.service
    # The killed one comes back and stands by.
    docker("update", "--restart=unless-stopped", leader.id)
    docker("start", leader.id)
    await eventually(lambda: stack.one(leader.service).healthy, timeout=BACK_SECONDS)
    assert [each.service for each in await asyncio.to_thread(stack.leaders)] == [now.service]


async def test_a_killed_agent_loses_nothing(stack: Stack) -> None:
    async with ConveyorClient(stack.grpc) as client:
        sent = await client.send("[[sleep: 3s]] [[reply: done]]", session_key="agent:main:test:k")
        run = await running(client, sent.accepted.run.run_id)
        agents = (await asyncio.to_thread(stack.containers))["agent"]
        # Workers are named after their containers, so two of them are two.
        (killed,) = [agent for agent in agents if agent.host_name == run.worker]
        await asyncio.to_thread(stack.kill, killed)
        ended = await over(client, run.run_id)
    assert (ended.state, text_of(ended.result.reply)) == (SUCCEEDED, "done")
    await stack.back(killed)


async def test_a_coding_agent_of_an_image_made_from_ours(stack: Stack) -> None:
    async with ConveyorClient(stack.grpc) as client:
        spawned = "[[acp scripted: cwd]]"
        sent = await client.send(spawned, session_key="agent:main:test:coding")
        ended = await over(client, sent.accepted.run.run_id)
        flow = await client.flow(ended.run_id)
    assert [run.state for run in flow.nodes] == [SUCCEEDED] * 2
    assert "/workspaces" in text_of(ended.result.reply)


def test_it_stops_within_its_grace(stack: Stack) -> None:
    stack.stop()
    every = [each for containers in stack.containers().values() for each in containers]
    codes = {container.about["Name"]: container.state["ExitCode"] for container in every}
    assert codes == dict.fromkeys(codes, 0)
    assert len(codes) == 7


async def _live(client: ConveyorClient, flow_id: str) -> bool:
    """Whether both children are at work."""
    nodes = (await client.flow(flow_id)).nodes
    return sum(run.worker != "" for run in nodes if run.spawn.depth) == 2
