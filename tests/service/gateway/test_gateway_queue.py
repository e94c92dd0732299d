"""What a message does when its conversation is busy: where that is said, and what comes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from grpc import aio

from conveyor.gateway.v1 import gateway_service_pb2 as gw
from conveyor.scheduler.v1 import lane_pb2, run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from svckit.grpc.status import from_rpc_error
from svckit.testing import eventually
from tests.service.gateway.suite import Suite, kind, payload, suite, text_of

COLLECT, INTERRUPT = lane_pb2.QUEUE_MODE_COLLECT, lane_pb2.QUEUE_MODE_INTERRUPT
FOLLOWUP = lane_pb2.QUEUE_MODE_FOLLOWUP
COLLECTED = lane_pb2.ENQUEUE_OUTCOME_COLLECTED


async def mode_of(gateway: Suite, session: str) -> int:
    answer = await gateway.stub.GetSession(gw.GetSessionRequest(session_key=session))
    return int(answer.session.queue_mode)


async def command(gateway: Suite, session: str, text: str) -> str:
    sent = await gateway.send(session, text)
    assert not sent.accepted.run.run_id
    assert sent.accepted.run.state == run_pb2.RUN_STATE_SUCCEEDED
    return text_of(sent.accepted.run.result.reply)


async def busy(gateway: Suite, session: str) -> None:
    """A session whose lane is held until `gateway.agent.let_go("busy")`."""
    gateway.agent.hold("busy")
    await gateway.send(session, "busy")
    await eventually(lambda: "busy" in gateway.agent.started)


async def outcome(gateway: Suite, session: str, text: str, **more: Any) -> int:
    return int((await gateway.send(session, text, **more)).accepted.outcome)


async def test_queue_shows_sets_and_resets_the_mode_of_a_conversation(gateway: Suite) -> None:
    await gateway.send("alice", "hello")
    assert (await command(gateway, "alice", "/queue")).startswith("Queue mode followup")
    said = await command(gateway, "alice", "/queue collect")
    assert said.startswith("Queue mode collect")
    assert said.endswith("`/queue reset` goes back to followup.")
    assert await mode_of(gateway, "alice") == COLLECT
    assert "no queue mode" in await command(gateway, "alice", "/queue loud")
    assert await mode_of(gateway, "alice") == COLLECT

    await busy(gateway, "alice")
    await gateway.send("alice", "one")
    assert await outcome(gateway, "alice", "two") == COLLECTED
    # A message's own mode counts more.
    assert await outcome(gateway, "alice", "three", queue_mode=FOLLOWUP) == (
        lane_pb2.ENQUEUE_OUTCOME_QUEUED
    )
    gateway.agent.let_go("busy")

    assert (await command(gateway, "alice", "/queue reset")).startswith("Queue mode followup")
    assert await mode_of(gateway, "alice") == FOLLOWUP
    listed = await gateway.stub.ListRuns(ss.ListRunsRequest())
    assert len(listed.runs) == 4, "commands are no runs"


async def test_the_mode_of_a_conversation_survives_a_restart(tmp_path: Path) -> None:
    async with suite(tmp_path) as around:
        async with around.serve():
            await around.send("alice", "hello")
            await command(around, "alice", "/queue interrupt")
        async with around.serve():
            assert await mode_of(around, "alice") == INTERRUPT
            assert (await command(around, "alice", "/queue")).startswith("Queue mode interrupt")


async def test_the_mode_may_be_set_before_the_first_message(gateway: Suite) -> None:
    await command(gateway, "alice", "/queue collect")
    with pytest.raises(aio.AioRpcError):
        await gateway.stub.GetSession(gw.GetSessionRequest(session_key="alice"))
    await gateway.send("alice", "hello")
    assert await mode_of(gateway, "alice") == COLLECT
    assert await outcome(gateway, "alice", "there") == COLLECTED


async def test_where_nothing_else_is_said_the_channel_and_then_the_agent_decide(
    tmp_path: Path,
) -> None:
    env = {
        "CONVEYOR_AGENTS__DEFAULTS__QUEUE_MODE": "collect",
        "CONVEYOR_CHANNELS__GRPC__KIND": "grpc",
        "CONVEYOR_CHANNELS__GRPC__QUEUE_MODE": "interrupt",
    }
    async with suite(tmp_path, **env) as around, around.serve():
        by_channel, by_agent = "agent:main:grpc:direct:x", "agent:main:http:direct:x"
        for key, mode in ((by_channel, INTERRUPT), (by_agent, COLLECT)):
            await around.send(key, "hello")
            assert await mode_of(around, key) == mode
            await command(around, key, "/queue steer")
            assert await mode_of(around, key) == lane_pb2.QUEUE_MODE_STEER


async def test_a_chat_with_a_command_is_answered_and_ends(gateway: Suite) -> None:
    responses = [response async for response in gateway.chat("alice", "/queue interrupt")]
    assert [kind(response) for response in responses] == ["accepted", "ended"]
    assert text_of(responses[1].ended.result.reply).startswith("Queue mode interrupt")


async def test_commands_over_their_own_call(gateway: Suite) -> None:
    async def execute(text: str, session: str = "alice") -> gw.ExecuteCommandResponse:
        return await gateway.stub.ExecuteCommand(
            gw.ExecuteCommandRequest(session_key=session, text=text, request_id="r")
        )

    answer = await execute("/queue steer")
    assert (answer.command, answer.text[:16]) == ("queue", "Queue mode steer")
    for text, session, field in (
        ("/queue loud", "alice", "text"),
        ("/nothing", "alice", "text"),
        ("", "alice", "text"),
    ):
        with pytest.raises(aio.AioRpcError) as refused:
            await execute(text, session)
        error = from_rpc_error(refused.value)
        assert (error.reason, error.metadata["field"]) == ("INVALID_FIELD", field)
    body = {"session_key": "alice", "text": "/queue"}
    over_http = await gateway.http.post("/v1/commands", json=body)
    assert over_http.status_code == 200
    assert over_http.json() == {"command": "queue", "text": answer.text}


async def test_one_answer_for_all_collected_messages_reaches_every_chat(gateway: Suite) -> None:
    await busy(gateway, "alice")
    first = gateway.chat("alice", "one", queue_mode=COLLECT)
    accepted = await first.read()
    second = gateway.chat("alice", "two", queue_mode=COLLECT)
    joined = await second.read()
    assert joined.accepted.outcome == COLLECTED
    assert joined.accepted.run.run_id == accepted.accepted.run.run_id
    gateway.agent.let_go("busy")
    for call in (first, second):
        last = [response async for response in call][-1]
        assert text_of(last.ended.result.reply) == "echo: one"
        assert [i.message.parts[0].text for i in last.ended.inputs] == ["one", "two"]


async def test_an_interrupted_chat_ends_and_says_why(gateway: Suite) -> None:
    gateway.agent.hold("long")
    call = gateway.chat("alice", "long")
    await call.read()
    await eventually(lambda: "long" in gateway.agent.started)
    sent = await gateway.send("alice", "now", queue_mode=INTERRUPT)
    assert sent.accepted.outcome == lane_pb2.ENQUEUE_OUTCOME_INTERRUPTED
    last = [response async for response in call][-1]
    assert last.ended.state == run_pb2.RUN_STATE_CANCELLED
    assert last.ended.cancel_reason == "a newer message interrupted it"
    await eventually(lambda: "now" in gateway.agent.started)


async def test_the_sender_of_a_dropped_message_is_told(tmp_path: Path) -> None:
    env = {
        "CONVEYOR_LANES__SESSION__CAP": "1",
        "CONVEYOR_LANES__SESSION__OVERFLOW": "drop_oldest",
    }
    async with suite(tmp_path, **env) as around, around.serve():
        await busy(around, "alice")
        call = around.chat("alice", "pushed out")
        await call.read()
        await around.send("alice", "newer")
        responses = [response async for response in call]
        [note] = [r.event.note_added for r in responses if payload(r.event) == "note_added"]
        assert note.visible
        assert note.code == "DROPPED_FROM_LANE"
        assert responses[-1].ended.state == run_pb2.RUN_STATE_CANCELLED
        around.agent.let_go("busy")
