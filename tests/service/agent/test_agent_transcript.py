"""What a session remembers, as `AgentService` shows it and as the next turn sees it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import grpc
import pytest

from conveyor.agent.v1 import agent_service_pb2 as pb
from conveyor.agent.v1 import agent_service_pb2_grpc as agent_grpc
from conveyor.agent.v1 import task_pb2 as task_pb
from conveyor.common.v1 import content_pb2
from conveyor.scheduler.v1 import run_pb2
from svckit.grpc.status import from_rpc_error
from svckit.testing.fake_openai import FakeOpenAI, Reply
from svckit.testing.inprocess import InProcess
from tests.service.agent.conftest import StartAgent
from tests.service.agent.fake_scheduler import SESSION, FakeScheduler, reply_text

SUCCEEDED = run_pb2.RUN_STATE_SUCCEEDED
FAILED = run_pb2.RUN_STATE_FAILED
PROVIDER = """
[agents.defaults]
model = "fake:m"
[providers.fake]
base_url = "{url}"
"""


async def listed(stub: agent_grpc.AgentServiceStub, **fields: object) -> list[str]:
    response = await stub.ListMessages(pb.ListMessagesRequest(session_key=SESSION, **fields))
    names = {content_pb2.ROLE_USER: "user", content_pb2.ROLE_AGENT: "agent"}
    return [f"{names[m.role]}: {m.parts[0].text}" for m in response.messages]


async def test_a_reply_is_listed_once_it_was_accepted(
    scheduler: FakeScheduler, agent: InProcess, stub: agent_grpc.AgentServiceStub
) -> None:
    await scheduler.answer(scheduler.leased("[[reply: one]]"))
    assert await listed(stub) == []  # for all the scheduler says, the run still works
    scheduler.runs["R1"].state = SUCCEEDED
    assert await listed(stub) == ["user: [[reply: one]]", "agent: one"]
    assert await listed(stub) == ["user: [[reply: one]]", "agent: one"]


async def test_a_reply_is_dated_when_it_was_said_not_when_it_was_first_listed(
    scheduler: FakeScheduler, agent: InProcess, stub: agent_grpc.AgentServiceStub
) -> None:
    await scheduler.answer(scheduler.leased("[[reply: one]]"))
    said_by = agent.context.clock.now_us()
    scheduler.runs["R1"].state = SUCCEEDED
    response = await stub.ListMessages(pb.ListMessagesRequest(session_key=SESSION))
    assert response.messages[1].create_time.ToMicroseconds() <= said_by


async def test_messages_come_in_pages(
    scheduler: FakeScheduler, agent: InProcess, stub: agent_grpc.AgentServiceStub
) -> None:
    previous = []
    for number in range(1, 4):
        run_id = f"R{number}"
        await scheduler.answer(
            scheduler.leased(f"[[reply: a{number}]]", run_id=run_id, previous=previous)
        )
        previous = [(run_id, SUCCEEDED, 1)]
    scheduler.runs["R3"].state = SUCCEEDED
    found, token = [], ""
    while True:
        response = await stub.ListMessages(
            pb.ListMessagesRequest(session_key=SESSION, page_size=4, page_token=token)
        )
        found += [message.parts[0].text for message in response.messages]
        token = response.next_page_token
        if not token:
            break
    assert found == [text for n in (1, 2, 3) for text in (f"[[reply: a{n}]]", f"a{n}")]


async def test_silent_closing_turns_do_not_cut_a_list_short(
    scheduler: FakeScheduler, start_agent: StartAgent, tmp_path: Path
) -> None:
    async with start_agent() as agent:
        stub = agent_grpc.AgentServiceStub(agent.channel)
        await scheduler.answer(scheduler.leased("[[reply: one]]"))
        await scheduler.answer(
            scheduler.leased("[[reply: two]]", run_id="R2", previous=[("R1", SUCCEEDED, 1)])
        )
        scheduler.runs["R2"].state = SUCCEEDED
        assert await listed(stub) == [
            "user: [[reply: one]]", "agent: one", "user: [[reply: two]]", "agent: two"
        ]  # fmt: skip
    with sqlite3.connect(tmp_path / "data" / "agent.db") as db:
        # As runs leave them whose background work needs no further word.
        db.execute("UPDATE exchanges SET ordinal = 10 WHERE run_id = 'R2'")
        for turn in range(2, 6):
            db.execute(
                "INSERT INTO exchanges SELECT ordinal + ?, session_key, epoch, run_id, ?,"
                " 'closing', x'5b5d', NULL, quoted, copied, create_us"
                " FROM exchanges WHERE run_id = 'R1' AND turn = 1",
                (turn - 1, turn),
            )
    db.close()
    async with start_agent() as agent:
        stub = agent_grpc.AgentServiceStub(agent.channel)
        found, token = [], ""
        while True:
            request = pb.ListMessagesRequest(session_key=SESSION, page_size=1, page_token=token)
            page = await stub.ListMessages(request)
            found += [message.parts[0].text for message in page.messages]
            token = page.next_page_token
            if not token:
                break
    assert found == ["[[reply: one]]", "one", "[[reply: two]]", "two"]


async def test_a_failed_run_adds_no_reply(
    scheduler: FakeScheduler, agent: InProcess, stub: agent_grpc.AgentServiceStub
) -> None:
    await scheduler.answer(scheduler.leased("[[fail: broken]]"))
    scheduler.runs["R1"].state = FAILED
    assert await listed(stub) == ["user: [[fail: broken]]"]
    await scheduler.answer(
        scheduler.leased("[[reply: two]]", run_id="R2", previous=[("R1", FAILED, 1)])
    )
    scheduler.runs["R2"].state = SUCCEEDED
    assert await listed(stub) == [
        "user: [[fail: broken]]",
        "user: [[reply: two]]",
        "agent: two",
    ]


async def test_a_reply_that_was_never_accepted_is_forgotten(
    scheduler: FakeScheduler, agent: InProcess, stub: agent_grpc.AgentServiceStub
) -> None:
    await scheduler.answer(scheduler.leased("[[reply: crossed]]"))
    cancelled = run_pb2.RUN_STATE_CANCELLED
    await scheduler.answer(
        scheduler.leased("[[reply: two]]", run_id="R2", previous=[("R1", cancelled, 0)])
    )
    scheduler.runs["R2"].state = SUCCEEDED
    assert await listed(stub) == ["user: [[reply: two]]", "agent: two"]


async def test_reset_begins_an_epoch_once_per_request(
    scheduler: FakeScheduler, agent: InProcess, stub: agent_grpc.AgentServiceStub
) -> None:
    await scheduler.answer(scheduler.leased("[[reply: one]]"))
    scheduler.runs["R1"].state = SUCCEEDED
    for _ in range(2):
        answer = await stub.ResetSession(
            pb.ResetSessionRequest(session_key=SESSION, request_id="x1")
        )
        assert (answer.epoch, answer.forgotten_messages) == (1, 2)
    again = await stub.ResetSession(pb.ResetSessionRequest(session_key=SESSION, request_id="x2"))
    assert (again.epoch, again.forgotten_messages) == (2, 0)
    assert await listed(stub, since_reset=True) == []
    assert len(await listed(stub)) == 2


async def test_reset_of_a_session_whose_first_message_still_waits(
    scheduler: FakeScheduler, agent: InProcess, stub: agent_grpc.AgentServiceStub
) -> None:
    scheduler.leased("hi")  # known to the scheduler only
    answer = await stub.ResetSession(pb.ResetSessionRequest(session_key=SESSION, request_id="x"))
    assert (answer.epoch, answer.forgotten_messages) == (1, 0)


async def test_errors_are_typed(
    scheduler: FakeScheduler, agent: InProcess, stub: agent_grpc.AgentServiceStub
) -> None:
    async def reason(call: object) -> str:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call  # type: ignore[misc]
        return from_rpc_error(caught.value).reason

    unknown = pb.ListMessagesRequest(session_key="agent:main:http:direct:nobody")
    assert await reason(stub.ListMessages(unknown)) == "SESSION_NOT_FOUND"
    bad = pb.ListMessagesRequest(session_key=SESSION, page_token="??")
    assert await reason(stub.ListMessages(bad)) == "INVALID_FIELD"
    assert await reason(stub.ListMessages(pb.ListMessagesRequest())) == "INVALID_FIELD"
    reset = pb.ResetSessionRequest(session_key="nobody", request_id="x")
    assert await reason(stub.ResetSession(reset)) == "SESSION_NOT_FOUND"
    reset = pb.ResetSessionRequest(session_key=SESSION)
    assert await reason(stub.ResetSession(reset)) == "INVALID_FIELD"


async def test_agents_and_models_are_listed(start_agent: StartAgent) -> None:
    toml = """
[providers.local]
base_url = "http://user:secret@127.0.0.1:1/v1?key=secret"
[agents.list.main]
allow_agents = ["*"]
[agents.list.coder]
model = "local:qwen3"
fallback_models = ["demo"]
tools = ["agents_list"]
"""
    async with start_agent(toml) as service:
        stub = agent_grpc.AgentServiceStub(service.channel)
        first = await stub.ListAgents(pb.ListAgentsRequest(page_size=1))
        assert first.agents[0].spawnable_agent_ids == ["main", "coder"]
        rest = await stub.ListAgents(pb.ListAgentsRequest(page_token=first.next_page_token))
        (coder,) = rest.agents
        assert (coder.agent_id, coder.model) == ("coder", "local:qwen3")
        assert coder.tools == ["agents_list"]
        assert coder.fallback_models == ["demo"]
        models = (await stub.ListModels(pb.ListModelsRequest())).models
        assert [(m.model, m.base_url, list(m.agent_ids)) for m in models] == [
            ("demo", "", ["main", "coder"]),
            ("demo-weak", "", []),
            ("local:qwen3", "http://127.0.0.1:1/v1", ["coder"]),
        ]


async def test_new_while_children_work(
    scheduler: FakeScheduler, start_agent: StartAgent, provider: FakeOpenAI
) -> None:
    """The closing turn renders its own epoch; the newer one learns of it as a note."""
    provider.script(Reply("old answer"))
    async with start_agent(PROVIDER.format(url=provider.base_url)) as service:
        stub = agent_grpc.AgentServiceStub(service.channel)
        await scheduler.answer(scheduler.leased("old question", run_id="R0"))
        provider.when(lambda request: request.texts("user")[-1] == "dig", _background)
        await scheduler.answer(scheduler.leased("dig", previous=[("R0", SUCCEEDED, 1)]))
        scheduler.runs["R1"].state = run_pb2.RUN_STATE_SUSPENDED
        reset = pb.ResetSessionRequest(session_key=SESSION, request_id="x")
        assert (await stub.ResetSession(reset)).epoch == 1

        provider.when("fresh", Reply("new answer"))
        await scheduler.answer(scheduler.leased("fresh", run_id="R2", epoch=1))
        fresh = provider.requests[-1]
        assert "old question" not in str(fresh.messages)
        assert "dig" not in str(fresh.messages)

        provider.when("has ended", Reply("joined answer"))
        end = await scheduler.answer(
            scheduler.leased(
                "dig",
                turn=2,
                resumption=scheduler.resumption(
                    scheduler.child_result("C1", "gold"), lane_released=True
                ),
                previous=[("R2", SUCCEEDED, 1)],
            )
        )
        assert reply_text(end) == "joined answer"
        closing = provider.requests[-1]
        assert "old question" in str(closing.messages)
        assert "fresh" not in str(closing.messages)
        assert "began a new conversation" in closing.texts("user")[-1]
        assert "> dig" in closing.texts("user")[-1]

        provider.when("later", Reply("ok"))
        await scheduler.answer(
            scheduler.leased("later", run_id="R3", epoch=1, previous=[("R1", SUCCEEDED, 2)])
        )
        texts = provider.requests[-1].texts("user")
        assert any("«dig», was answered: «joined answer»" in text for text in texts)
        assert texts[-1] == "later"
        assert "old question" not in str(provider.requests[-1].messages)


async def test_work_of_other_runs_is_one_line(
    scheduler: FakeScheduler, start_agent: StartAgent, provider: FakeOpenAI
) -> None:
    async with start_agent(PROVIDER.format(url=provider.base_url)):
        provider.when(lambda request: request.texts("user")[-1] == "dig", _background)
        await scheduler.answer(scheduler.leased("dig"))
        await scheduler.answer(scheduler.leased("how far are you?", run_id="R2"))
        texts = provider.requests[-1].texts("user")
        assert texts[0] == "dig"
        assert "Still being worked on" in texts[1]
        assert "«dig» (digging), running since" in texts[1]
        assert texts[2] == "how far are you?"
        assert provider.requests[-1].texts("assistant") == ["started"]


async def test_a_forked_child_begins_with_its_parents_conversation(
    scheduler: FakeScheduler, start_agent: StartAgent, provider: FakeOpenAI
) -> None:
    provider.script(Reply("blue"))
    async with start_agent(PROVIDER.format(url=provider.base_url)) as service:
        stub = agent_grpc.AgentServiceStub(service.channel)
        await scheduler.answer(scheduler.leased("my colour is blue"))
        await scheduler.answer(
            scheduler.leased("paint", run_id="R2", previous=[("R1", SUCCEEDED, 1)])
        )
        child = f"{SESSION}:subagent:C9"
        task = task_pb.AgentTask(
            agent_id="main", context_mode=task_pb.CONTEXT_MODE_FORK, fork_session_key=SESSION
        )
        await scheduler.answer(
            scheduler.leased(
                "paint the fence", run_id="C9", session=child, depth=1, parent="R2", task=task
            )
        )
        texts = provider.requests[-1].texts("user")
        assert texts[0] == "my colour is blue"
        assert "answering «paint»" in texts[1]
        assert texts[2] == "paint the fence"
        scheduler.runs["C9"].state = SUCCEEDED
        answer = await stub.ListMessages(pb.ListMessagesRequest(session_key=child))
        assert [m.parts[0].text for m in answer.messages] == ["paint the fence", "ok"]


def _background(request: object) -> Reply:
    from svckit.testing.fake_openai import ChatRequest, ToolCall

    assert isinstance(request, ChatRequest)
    if request.last["role"] == "tool":
        return Reply("started")
    spawn = ToolCall("sessions_spawn", {"task": "dig", "label": "digging", "wait": False})
    return Reply(tool_calls=[spawn])
