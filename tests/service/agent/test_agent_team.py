"""Three agents of one suite: gateway, scheduler and agent service in process, and a provider."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from agent_svc.agents import Agents
from agent_svc.app import build as build_agent
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from conveyor.scheduler.v1 import flow_service_pb2 as fs
from conveyor.scheduler.v1 import flow_service_pb2_grpc as fs_grpc
from conveyor.scheduler.v1 import run_pb2
from gateway_svc.app import builder
from gateway_svc.auth import LOCAL
from gateway_svc.domain.reply_route import ReplyAddress
from scheduler_svc.app import build as build_scheduler
from svckit.errors import StartError
from svckit.settings import ConfigError, load
from svckit.testing import eventually, in_process
from svckit.testing.fake_openai import (
    Answer,
    ChatRequest,
    Failure,
    FakeOpenAI,
    Reply,
    ToolCall,
)
from tests.service.gateway.suite import user
from tests.service.gateway.test_gateway_delivery import Caught, Phone

FRONT, RESEARCHER, WRITER = "You are the front desk.", "You find facts.", "You write well."
TOML = """
[store]
url = "memory:"
[agents.defaults.subagents]
max_spawn_depth = 2
[agents.list.front]
model = "fake:front-model"
prompt = "You are the front desk."
tools = ["sessions_spawn", "agents_list"]
allow_agents = ["researcher", "writer"]
[agents.list.front.subagents]
tools = ["*"]
[agents.list.researcher]
model = "fake:reading-model"
description = "Finds facts and names its sources"
prompt_file = "{directory}/researcher.md"
workspace = "{directory}/desk/researcher"
[agents.list.researcher.subagents]
max_spawn_depth = 1
budget = {{ max_tokens = 5000 }}
[agents.list.writer]
model = "fake:writing-model"
description = "Writes short texts"
prompt = "You write well."
tools = ["sessions_spawn"]
[channels.phone]
kind = "telegram"
announce_style = "off"
[[routes]]
agent = "writer"
channel = "phone"
peer = "editor"
[[routes]]
agent = "researcher"
channel = "phone"
account = "facts"
[[routes]]
agent = "front"
[providers.fake]
base_url = "{base_url}"
"""


@dataclass
class Team:
    """The running suite, and what was said in it."""

    phone: Phone
    caught: Caught
    provider: FakeOpenAI
    flows: Any

    async def hear(self, peer: str, text: str, account: str = "") -> str:
        """A message of a peer, without a session key: the routes decide. Returns the run id."""
        taken = await self.caught.inboxes[-1].accept(
            gw.InboundMessage(message=user(text)),
            f"{account}{peer}-{text}".replace(" ", "_"),
            LOCAL,
            ReplyAddress("phone", peer, account=account),
        )
        return taken.accepted.run.run_id

    def asked(self, model: str) -> list[ChatRequest]:
        return [r for r in self.provider.requests if r.body["model"] == model]


@pytest.fixture
async def team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Team]:
    (tmp_path / "researcher.md").write_text(f"\n{RESEARCHER}\n")
    path, phone, caught = tmp_path / "conveyor.toml", Phone(), Caught(monkeypatch)
    async with FakeOpenAI() as provider, AsyncExitStack() as stack:
        path.write_text(TOML.format(directory=tmp_path, base_url=provider.base_url))

        async def start(build: Any, **addresses: str) -> Any:
            environ = {f"CONVEYOR_{name.upper()}": value for name, value in addresses.items()}
            settings = load(path, environ)
            return await stack.enter_async_context(in_process(build, settings))

        scheduler = await start(build_scheduler)
        agent = await start(build_agent, services__scheduler=scheduler.address)
        await start(
            builder([phone]),
            services__scheduler=scheduler.address,
            services__agent=agent.address,
            services__acp=agent.address,
            gateway__http="127.0.0.1:0",
        )
        yield Team(phone, caught, provider, fs_grpc.FlowServiceStub(scheduler.channel))
        provider.assert_clean()


def system(request: ChatRequest) -> str:
    return request.texts("system")[0]


async def test_each_agent_has_its_own_prompt_model_tools_workspace_and_limits(
    team: Team, tmp_path: Path
) -> None:
    def front(request: ChatRequest) -> Reply:
        if request.last["role"] == "tool":
            return Reply("Facts and text: " + " | ".join(request.texts("tool")))
        return Reply(
            tool_calls=[
                ToolCall("sessions_spawn", {"task": "find it", "agent_id": "researcher"}),
                ToolCall("sessions_spawn", {"task": "write it", "agent_id": "writer"}),
                ToolCall("sessions_spawn", {"task": "be me", "agent_id": "front"}),
                ToolCall("agents_list"),
            ]
        )

    def writer(request: ChatRequest) -> Reply:
        if request.last["role"] == "tool":
            return Reply(f"Written. {request.texts('tool')[-1]}")
        return Reply(tool_calls=[ToolCall("sessions_spawn", {"task": "x", "agent_id": "front"})])

    team.provider.when(lambda r: r.body["model"] == "front-model", front)
    team.provider.when(lambda r: r.body["model"] == "writing-model", writer)
    team.provider.when(lambda r: r.body["model"] == "reading-model", Reply("Found."))

    run_id = await team.hear("ann", "Facts and a text, please")
    await eventually(lambda: team.phone.texts("ann"), timeout=30)
    (answer,) = team.phone.texts("ann")

    asked = team.asked("front-model")[0]
    assert system(asked).startswith(FRONT)
    assert asked.tools == ["sessions_spawn", "agents_list"]
    described = str(asked.body["tools"][0]["function"]["parameters"]["properties"]["agent_id"])
    assert "researcher: Finds facts and names its sources; writer: Writes short" in described
    assert "writer: Writes short texts (model fake:writing-model)" in answer
    assert "agent_id 'front' may not be spawned here; use: researcher, writer" in answer

    (asked,) = team.asked("reading-model")
    assert system(asked).startswith(f"{RESEARCHER}\n\nYour working directory is {tmp_path}/desk/r")
    assert (tmp_path / "desk" / "researcher").is_dir()
    assert asked.tools == []
    assert asked.texts("user") == ["find it"]

    asked, again = team.asked("writing-model")
    assert system(asked).startswith(WRITER)
    assert asked.tools == ["sessions_spawn"], "its own tools, within what the front desk hands on"
    assert "agent_id 'front' may not be spawned here; use: writer" in again.texts("tool")[0]

    response = await team.flows.GetFlow(fs.GetFlowRequest(flow_id=run_id))
    caps = {node.spec.estimate_key: node.spec.budget for node in response.nodes}
    reading, writing = caps["researcher/fake:reading-model"], caps["writer/fake:writing-model"]
    assert (reading.max_depth, reading.max_tokens, reading.max_children) == (1, 5000, 5)
    assert (writing.max_depth, writing.HasField("max_tokens")) == (2, False)
    assert {node.state for node in response.nodes} == {run_pb2.RUN_STATE_SUCCEEDED}


async def test_who_answers_depends_on_channel_account_and_peer(team: Team) -> None:
    await team.hear("ann", "hello")
    await team.hear("editor", "hello")
    await team.hear("ann", "hello", account="facts")
    await eventually(lambda: len(team.phone.sent) == 3, timeout=30)
    models = sorted(str(request.body["model"]) for request in team.provider.requests)
    assert models == ["front-model", "reading-model", "writing-model"]
    # Ann's two conversations know nothing of each other, and each is answered by its account.
    assert all(len(request.texts("user")) == 1 for request in team.provider.requests)
    answered = {(item.address.peer, item.address.account) for item in team.phone.sent}
    assert answered == {("ann", ""), ("editor", ""), ("ann", "facts")}


async def test_a_customer_who_has_moved_on_is_still_answered(team: Team) -> None:
    """`/new` while the children of two messages work: one is answered, the other fails."""
    done = asyncio.Event()

    async def front(request: ChatRequest) -> Answer:
        text = request.texts("user")[-1]
        if "has ended" in text:
            return Failure(400) if "> dig for silver" in text else Reply("Gold it is.")
        if request.last["role"] == "tool":
            return Reply("Under way.")
        if text.startswith("dig"):
            task = {"task": text, "agent_id": "researcher", "wait": False}
            return Reply(tool_calls=[ToolCall("sessions_spawn", task)])
        return Reply(f"answer to {text}")

    async def dig(_: ChatRequest) -> Answer:
        await done.wait()
        return Reply("Found.")

    team.provider.when(lambda r: r.body["model"] == "front-model", front)
    team.provider.when(lambda r: r.body["model"] == "reading-model", dig)
    said = team.phone.texts
    for count, text in enumerate(("small talk", "dig for gold", "dig for silver"), 1):
        await team.hear("ann", text)
        await eventually(lambda: len(said("ann")) == count, timeout=30)  # noqa: B023
    await team.hear("ann", "/new")
    await eventually(lambda: len(said("ann")) == 4)
    await team.hear("ann", "hello again")
    await eventually(lambda: len(said("ann")) == 5)
    assert said("ann")[-1] == "answer to hello again"
    assert "dig" not in str(team.asked("front-model")[-1].messages)

    done.set()
    await eventually(lambda: len(said("ann")) == 7, timeout=30)
    gold, silver = sorted(said("ann")[-2:])
    assert gold == "Gold it is."
    assert silver.startswith("That did not work («dig for silver»): fake refused the request")
    assert "\n" not in silver
    (closing,) = [r for r in team.asked("front-model") if "> dig for gold" in str(r.messages)]
    assert "small talk" in closing.texts("user"), "the conversation that it belongs to"
    assert "hello again" not in str(closing.messages)
    assert "began a new conversation" in closing.texts("user")[-1]

    await team.hear("ann", "and now?")
    await eventually(lambda: len(said("ann")) == 8)
    told = team.asked("front-model")[-1].texts("user")
    assert any("«dig for gold», was answered: «Gold it is.»" in text for text in told)
    assert any("«dig for silver», got no answer: its run failed" in text for text in told)
    assert "small talk" not in str(told)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ('prompt_file = "{0}/none.md"', "prompt_file: {0}/none.md cannot be read: No such file"),
        ('prompt_file = "{0}/empty.md"', "prompt_file: {0}/empty.md is empty"),
        ('prompt_file = "{0}/odd.md"', "prompt_file: {0}/odd.md is not text in UTF-8"),
        ('workspace = "{0}/odd.md"', "workspace: {0}/odd.md is no directory"),
        ('workspace = "{0}/odd.md/in"', "workspace: {0}/odd.md/in cannot be made: Not a dir"),
    ],
)
def test_files_of_an_agent_that_are_not_there_are_named_at_start(
    tmp_path: Path, lines: str, problem: str
) -> None:
    (tmp_path / "empty.md").write_text(" \n")
    (tmp_path / "odd.md").write_bytes(b"\xff\xfe\xff")
    path = tmp_path / "conveyor.toml"
    path.write_text("[agents.list.main]\n" + lines.format(tmp_path))
    with pytest.raises(StartError) as refused:
        Agents(load(path, {}))
    assert str(refused.value).startswith("agents.list.main." + problem.format(tmp_path))


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ('prompt = "a"\nprompt_file = "b"', "prompt or prompt_file, not both"),
        ('allow_agents = ["writter"]', "agents.list.main.allow_agents: no agent 'writter'"),
    ],
)
def test_settings_of_an_agent_that_cannot_be_meant_are_refused(
    tmp_path: Path, lines: str, problem: str
) -> None:
    path = tmp_path / "conveyor.toml"
    path.write_text("[agents.list.main]\n" + lines)
    with pytest.raises(ConfigError, match=problem):
        load(path, {})
