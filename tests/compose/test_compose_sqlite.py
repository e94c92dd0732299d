"""`docker compose up`: four services of one image on SQLite files; the shipped files unchanged."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest

from conveyor.scheduler.v1 import run_pb2
from conveyor_client import ConveyorClient
from svckit.testing import eventually
from svckit.version import __version__
from tests.compose.stack import BACK_SECONDS, IMAGE, Container, Stack, docker
from tests.system.harness import CLASSIC, SUCCEEDED, TASKS, text_of

SERVICES = {"scheduler", "agent", "acp", "gateway"}
GRACE_SECONDS = 20
"""`stop_grace_period` of compose.yaml: what has not stopped by then is killed."""


@pytest.fixture(scope="module")
def stack(engine: None) -> Iterator[Stack]:
    stack = Stack("conveyor-test-sqlite", ["compose.yaml"])
    stack.down()
    stack.build()
    try:
        stack.up()
        yield stack
    finally:
        stack.down()


def each(stack: Stack) -> dict[str, Container]:
    return {name: found[0] for name, found in stack.containers().items()}


def test_everything_is_healthy_and_only_the_gateway_is_reached_from_outside(stack: Stack) -> None:
    containers = each(stack)
    assert containers.keys() == SERVICES
    assert all(container.healthy for container in containers.values())
    published = {name: container.published for name, container in containers.items()}
    assert published == {
        "scheduler": {},
        "agent": {},
        "acp": {},
        "gateway": {
            "8080/tcp": ("127.0.0.1", str(stack.http_port)),
            "50050/tcp": ("127.0.0.1", str(stack.grpc_port)),
        },
    }
    ready = stack.get("/readyz").json()
    assert ready == {"ready": True, "parts": dict.fromkeys(ready["parts"], "ok")}
    assert "<title>" in stack.get("/").text
    # The scheduler has no network but the inner one, and that one leads nowhere.
    networks = containers["scheduler"].about["NetworkSettings"]["Networks"]
    assert list(networks) == [f"{stack.name}_inner"]
    (inner,) = json.loads(docker("network", "inspect", f"{stack.name}_inner"))
    assert inner["Internal"] is True


def test_a_container_may_do_no_more_than_it_needs(stack: Stack) -> None:
    for container in each(stack).values():
        assert container.host_config["ReadonlyRootfs"] is True
        assert container.host_config["RestartPolicy"]["Name"] == "unless-stopped"
        assert container.host_config["Memory"] > 0
        assert container.host_config["NanoCpus"] > 0
        assert container.host_config["PidsLimit"] > 0
        assert container.host_config["LogConfig"]["Config"]["max-size"]
        code, said = stack.run_in(container, "sh", "-c", "id -u; touch /conveyor/x /opt/x")
        assert code == 1
        assert said.splitlines()[0] == "10001"
        assert said.count("Read-only file system") == 2
        # Of all processes: the service, and the first one, which buries what others leave.
        code, said = stack.run_in(container, "sh", "-c", "cat /proc/[0-9]*/status")
        facts = {line for line in said.splitlines() if line.startswith(("Uid", "Cap", "NoNew"))}
        nothing = {f"Cap{kind}:\t{0:016x}" for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")}
        assert facts == {"Uid:\t10001\t10001\t10001\t10001", "NoNewPrivs:\t1", *nothing}


def test_the_image_holds_what_runs_and_not_what_made_it(stack: Stack) -> None:
    assert stack
    found = docker(
        "run",
        "--rm",
        "--network=none",
        IMAGE,
        "sh",
        "-c",
        "ls -A /build /root/.cache /run/secrets 2> /dev/null; command -v gcc make;"
        " find /opt/conveyor -name pip -o -name hatchling; find /conveyor /workspaces -type f;"
        # A source tree would be importable from where the services start.
        " python -c 'import svckit; print(svckit.__file__)'; conveyor --version",
    ).split()
    assert found[0] == "/opt/conveyor/lib/python3.11/site-packages/svckit/__init__.py"
    assert found[1:] == ["conveyor", __version__]
    (about,) = json.loads(docker("image", "inspect", IMAGE))
    assert about["Config"]["User"] == "10001:10001"
    assert about["Config"]["Healthcheck"]["Test"] == ["CMD", "conveyor-health"]
    assert about["Config"]["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"


async def test_a_delegated_request_through_the_published_port(stack: Stack) -> None:
    async with ConveyorClient(stack.grpc) as client:
        items = [item async for item in client.chat(CLASSIC, session_key="agent:main:test:classic")]
        ended = items[-1].ended
        flow = await client.flow(ended.run_id)
    assert ended.state == SUCCEEDED
    assert sorted(run.spec.label for run in flow.nodes if run.spawn.depth) == sorted(TASKS)
    assert all(f"Done: {task}" in text_of(ended.result.reply) for task in TASKS)
    # And what a browser does, through the other port.
    run = stack.get(f"/v1/runs/{ended.run_id}").json()["run"]
    assert run["state"] == "RUN_STATE_SUCCEEDED"


@pytest.mark.parametrize("service", ["scheduler", "agent", "acp", "gateway"])
async def test_a_killed_service_comes_back_and_nothing_is_lost(stack: Stack, service: str) -> None:
    async with ConveyorClient(stack.grpc) as client:
        session = f"agent:main:test:{service}"
        work = await client.send("[[sleep: 2s]] [[reply: worked]]", session_key=session)
        await running(client, work.accepted.run.run_id)
        killed = await asyncio.to_thread(stack.one, service)
        await asyncio.to_thread(stack.kill, killed)
        after = await client.send("[[reply: went on]]", session_key=session)
        runs = [await over(client, each.accepted.run.run_id) for each in (work, after)]
        assert [run.state for run in runs] == [SUCCEEDED, SUCCEEDED]
        assert [text_of(run.result.reply) for run in runs] == ["worked", "went on"]
        assert (await stack.back(killed)).about["RestartCount"] == 1
        # Each message was answered once.
        said = [text_of(message) for message in (await client.messages(session)).messages]
        assert [said.count(text) for text in ("worked", "went on")] == [1, 1]
    await eventually(lambda: stack.get("/readyz").status_code == 200, timeout=BACK_SECONDS)


async def test_a_service_is_found_again_at_another_address(stack: Stack) -> None:
    network = f"{stack.name}_inner"
    before = await asyncio.to_thread(stack.one, "scheduler")
    await asyncio.to_thread(stack.compose, "stop", "scheduler")
    # Somebody else gets the address that has become free.
    sitter = docker("run", "--detach", "--rm", "--network", network, IMAGE, "sleep", "300").strip()
    try:
        await asyncio.to_thread(stack.compose, "start", "scheduler")
        now = await asyncio.to_thread(stack.one, "scheduler")
        assert now.address_in(network) != before.address_in(network)
        async with ConveyorClient(stack.grpc) as client:
            sent = await client.send("[[reply: found]]", session_key="agent:main:test:moved")
            assert (await over(client, sent.accepted.run.run_id)).state == SUCCEEDED
    finally:
        docker("rm", "--force", sitter)


async def test_it_stops_within_its_grace_and_goes_on_where_it_stopped(stack: Stack) -> None:
    async with ConveyorClient(stack.grpc) as client:
        sent = await client.send("[[sleep: 9s]] [[reply: later]]", session_key="agent:main:test:on")
        await running(client, sent.accepted.run.run_id)
    seconds = await asyncio.to_thread(stack.stop)
    stopped = each(stack)
    assert {name: c.state["ExitCode"] for name, c in stopped.items()} == dict.fromkeys(SERVICES, 0)
    assert not any(c.state["OOMKilled"] for c in stopped.values())
    # One after the other, those first that the others serve: no two graces are needed.
    assert seconds < GRACE_SECONDS
    await asyncio.to_thread(stack.up)
    async with ConveyorClient(stack.grpc) as client:
        run = await over(client, sent.accepted.run.run_id)
        assert (run.state, text_of(run.result.reply)) == (SUCCEEDED, "later")
        # Handed back, not lost: stopping costs no attempt.
        assert run.attempt == 1
        said = (await client.messages("agent:main:test:classic")).messages
    assert any(CLASSIC in text_of(message) for message in said)


async def running(client: ConveyorClient, run_id: str) -> run_pb2.Run:
    async def found() -> run_pb2.Run | None:
        run = (await client.run(run_id)).run
        return run if run.state == run_pb2.RUN_STATE_RUNNING else None

    return await eventually(found, timeout=BACK_SECONDS, interval=0.1)


async def over(client: ConveyorClient, run_id: str) -> run_pb2.Run:
    async def found() -> run_pb2.Run | None:
        run = (await client.run(run_id)).run
        return run if run.state >= SUCCEEDED else None

    return await eventually(found, timeout=BACK_SECONDS, interval=0.1)
