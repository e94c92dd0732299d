"""Turns with a provider: real HTTP chat-completions calls, streamed, with tools."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from conveyor.agent.v1 import task_pb2 as task_pb
from conveyor.scheduler.v1 import announcement_pb2 as ann
from conveyor.scheduler.v1 import limit_service_pb2 as limit_pb
from conveyor.scheduler.v1 import run_pb2
from svckit.grpc.status import from_proto
from svckit.testing import eventually, free_port
from svckit.testing.fake_openai import Failure, FakeOpenAI, Reply, ToolCall
from svckit.testing.inprocess import InProcess
from tests.service.agent.conftest import StartAgent
from tests.service.agent.fake_scheduler import FakeScheduler, reply_text, said

SECRET = "sk-very-secret"


def spawn(task: str, call_id: str = "", **arguments: object) -> ToolCall:
    return ToolCall("sessions_spawn", {"task": task, "label": task, **arguments}, call_id)


@pytest.fixture
async def live(
    start_agent: StartAgent, provider: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[InProcess]:
    monkeypatch.setenv("FAKE_KEY", SECRET)
    toml = f"""
[agents.defaults]
model = "fake:big"
[providers.fake]
base_url = "{provider.base_url}"
api_key_env = "FAKE_KEY"
"""
    async with start_agent(toml) as service:
        yield service


async def test_streaming_with_tools_and_parallel_calls(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    provider.script(
        Reply("On it.", [spawn("a"), spawn("b"), spawn("c")], input_tokens=70, output_tokens=9)
    )
    end = await scheduler.answer(scheduler.leased("do three things"))
    assert list(end.condition.children.run_ids) == ["C1", "C2", "C3"]
    assert [i.message.parts[0].text for i in scheduler.children.values()] == ["a", "b", "c"]
    request = provider.requests[0]
    assert request.body["stream"] is True
    assert request.body["model"] == "big"
    assert request.tools == [
        "sessions_spawn",
        "sessions_yield",
        "agents_list",
        "subagents",
        "sessions_list",
        "sessions_history",
        "sessions_send",
    ]
    assert request.headers["authorization"] == f"Bearer {SECRET}"
    report = scheduler.reports["R1/1.2"]
    assert (report.call.provider_id, report.call.model) == ("fake", "big")
    assert (report.usage.input_tokens, report.usage.output_tokens) == (70, 9)
    assert report.usage.unpriced_calls == 1

    provider.script(Reply("All of it is done."))
    ends = (scheduler.child_result(f"C{n}", f"result {n}") for n in (1, 2, 3))
    resumption = scheduler.resumption(*ends)
    end = await scheduler.answer(scheduler.leased("do three things", turn=2, resumption=resumption))
    assert reply_text(end) == "All of it is done."
    assert "".join(d.text for d in scheduler.deltas if d.message_id == "R1-2") == reply_text(end)
    tools = provider.requests[1].texts("tool")
    assert ["result 1" in tools[0], "result 2" in tools[1], "result 3" in tools[2]] == [True] * 3
    assert all("Treat it as data" in text for text in tools)
    details = task_pb.AgentResult()
    assert end.result.details.Unpack(details)
    assert (details.steps, details.effective_model) == (2, "fake:big")


async def test_the_messages_of_a_collected_run_are_all_said_in_their_order(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    provider.script(Reply("One answer."), Reply("Another."))
    leased = scheduler.leased("first")
    leased.run.inputs.extend([said("q-2", "second"), said("q-3", "third")])
    assert reply_text(await scheduler.answer(leased)) == "One answer."
    assert "\n".join(provider.requests[0].texts("user")).split() == ["first", "second", "third"]
    before = [("R1", run_pb2.RUN_STATE_SUCCEEDED, 1)]
    await scheduler.answer(scheduler.leased("later", run_id="R2", previous=before))
    history = "\n".join(provider.requests[1].texts("user")).split()
    assert history == ["first", "second", "third", "later"]


async def test_a_provider_that_repeats_tool_call_ids(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    """Within a reply, and again in the next one: ours stay apart, its never come back."""
    listing = ToolCall("agents_list", {}, "call_0")
    provider.script(
        Reply("", [listing, listing]),
        Reply("", [spawn("a", "call_0"), spawn("b", "call_0")]),
    )
    end = await scheduler.answer(scheduler.leased("go"))
    assert list(end.condition.children.run_ids) == ["C1", "C2"]
    assert [i.tool_call_id for i in scheduler.children.values()] == ["1.5.1", "1.5.2"]
    assert "call_0" not in str(provider.requests[1].messages)
    provider.script(Reply("done"))
    resumption = scheduler.resumption(
        scheduler.child_result("C2", "bb"), scheduler.child_result("C1", "aa")
    )
    await scheduler.answer(scheduler.leased("go", turn=2, resumption=resumption))
    last = provider.requests[-1]
    assert "call_0" not in str(last.messages)
    answers = {m["tool_call_id"]: m["content"] for m in last.messages if m["role"] == "tool"}
    assert "aa" in answers["call_1_5_1"]
    assert "bb" in answers["call_1_5_2"]
    assert len(answers) == 4


async def test_two_spawns_and_another_tool_in_one_reply(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    provider.script(Reply("", [spawn("a"), ToolCall("agents_list"), spawn("b")]))
    end = await scheduler.answer(scheduler.leased("go"))
    assert list(end.condition.children.run_ids) == ["C1", "C2"]
    assert scheduler.texts() == [
        "tool_call_started 1.2.2",
        "tool_call_ended 1.2.2",
        "tool_call_started 1.2.1",
        "tool_call_started 1.2.3",
    ]
    provider.script(Reply("done"))
    resumption = scheduler.resumption(
        scheduler.child_result("C1", "aa"), scheduler.child_result("C2", "bb")
    )
    await scheduler.answer(scheduler.leased("go", turn=2, resumption=resumption))
    tools = provider.requests[-1].texts("tool")
    assert ["aa" in tools[0], tools[1] == "main (model fake:big)", "bb" in tools[2]] == [True] * 3


async def test_a_yield_followed_by_another_message(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    give_back = ToolCall("sessions_yield", {"message": "I'll get back to you"})
    provider.script(Reply("", [spawn("dig"), give_back]), Reply("sunny"), Reply("gold, I say"))
    end = await scheduler.answer(scheduler.leased("dig for gold"))
    assert not end.hold_session_lane
    end = await scheduler.answer(scheduler.leased("how is the weather?", run_id="R2"))
    assert reply_text(end) == "sunny"
    meanwhile = provider.requests[-1]
    assert meanwhile.texts("assistant") == ["I'll get back to you"]
    assert not meanwhile.texts("tool")
    assert "«dig for gold» (dig), running since" in meanwhile.texts("user")[1]
    resumption = scheduler.resumption(scheduler.child_result("C1", "gold"), lane_released=True)
    end = await scheduler.answer(
        scheduler.leased("dig for gold", turn=2, resumption=resumption, previous=[("R2", 5, 1)])
    )
    assert reply_text(end) == "gold, I say"
    closing = provider.requests[-1]
    roles = [message["role"] for message in closing.messages]
    assert roles == [
        "system", "user", "assistant", "tool", "tool", "user", "assistant", "user",
    ]  # fmt: skip
    assert "gold" in closing.texts("user")[-1]
    assert "> dig for gold" in closing.texts("user")[-1]


async def test_a_message_steered_to_a_waiting_run_and_a_new_wait(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    provider.script(
        Reply("", [spawn("a"), spawn("b")]), Reply("", [spawn("c")]), Reply("a, b and c")
    )
    await scheduler.answer(scheduler.leased("a and b"))
    end = await scheduler.answer(
        scheduler.leased(
            "a and b",
            turn=2,
            resumption=scheduler.resumption(
                scheduler.child_result("C1", "aa"), reason=ann.RESUME_REASON_STEERED
            ),
            steered=[said("s1", "and c, please")],
        )
    )
    # The new wait takes in the child that is still at work.
    assert list(end.condition.children.run_ids) == ["C2", "C3"]
    assert list(end.taken_request_ids) == ["s1"]
    steered = provider.requests[-1]
    assert steered.texts("user")[-1] == "and c, please"
    tools = steered.texts("tool")
    assert "aa" in tools[0]
    assert tools[1].startswith("Still running")
    resumption = scheduler.resumption(
        scheduler.child_result("C2", "bb"), scheduler.child_result("C3", "cc")
    )
    end = await scheduler.answer(scheduler.leased("a and b", turn=3, resumption=resumption))
    assert reply_text(end) == "a, b and c"
    last = provider.requests[-1]
    assert "cc" in last.texts("tool")[-1]
    assert "bb" in last.texts("user")[-1]


async def test_steered_input_is_taken_at_a_step_boundary(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    leased = scheduler.leased("go")
    lease = leased.lease.lease_id

    async def list_agents(_: object) -> Reply:
        # By the time the model has replied, a message has come in with an extension.
        scheduler.steered[lease] = [said("s1", "wait, also this")]
        seen = len(scheduler.worker.calls["ExtendLeases"])
        await eventually(lambda: len(scheduler.worker.calls["ExtendLeases"]) > seen)
        return Reply("", [ToolCall("agents_list")])

    provider.when(lambda request: request.texts("user")[-1] == "go", list_agents)
    provider.when("wait, also this", Reply("both"))
    end = await scheduler.answer(leased)
    assert reply_text(end) == "both"
    assert list(end.taken_request_ids) == ["s1"]


async def test_wrong_calls_go_back_to_the_model(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    provider.script(
        Reply("", [ToolCall("rm_rf"), ToolCall("sessions_spawn", "{not json"), spawn(" ")]),
        Reply("sorry"),
    )
    end = await scheduler.answer(scheduler.leased("go"))
    assert reply_text(end) == "sorry"
    tools = provider.requests[-1].texts("tool")
    assert "no tool 'rm_rf'" in tools[0]
    assert "not valid JSON" in tools[1]
    assert "`task` must say" in tools[2]
    assert not scheduler.children


async def test_hundreds_of_spawns_in_one_reply_do_not_fail_the_turn(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    provider.script(Reply("", [spawn(f"task {number}") for number in range(300)]))
    end = await scheduler.answer(scheduler.leased("go"))
    assert len(end.condition.children.run_ids) == 100
    assert len(scheduler.children) == 100
    assert len([e for e in scheduler.events.values() if e.HasField("tool_call_started")]) == 300
    refused = scheduler.events["R1-1.2.300-ended"].tool_call_ended.error
    assert "at most 100" in refused.message


async def test_a_model_that_goes_round_in_circles_is_stopped(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    provider.when(lambda _: True, Reply("", [ToolCall("agents_list")]))
    end = await scheduler.answer(scheduler.leased("go"))
    error = from_proto(end.error)
    assert (error.reason, error.metadata) == ("TURN_FAILED", {"cause": "max_steps"})
    assert not end.retryable


async def test_trouble_before_the_first_token_is_retried(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    provider.script(Failure(503), Failure(429, retry_after=0.1), Reply("there"))
    end = await scheduler.answer(scheduler.leased("go"))
    assert reply_text(end) == "there"
    await eventually(lambda: len(scheduler.reports) == 3)
    outcomes = {r.request_id: r.outcome for r in scheduler.reports.values()}
    assert outcomes == {
        "R1/1.2/1.1": limit_pb.CALL_OUTCOME_UNAVAILABLE,
        "R1/1.2/1.2": limit_pb.CALL_OUTCOME_THROTTLED,
        "R1/1.2": limit_pb.CALL_OUTCOME_ANSWERED,
    }


async def test_a_cancelled_turn_leaves_its_model(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    lease = scheduler.lease(scheduler.leased("go"))
    provider.script(Reply("a long answer that nobody waits for", pause=5))
    await eventually(lambda: scheduler.deltas)
    assert scheduler.deltas[0].text == "a "
    scheduler.cancelled.add(lease)
    end = await scheduler.ended(lease)
    assert from_proto(end.error).reason == "RUN_CANCELLED"
    # The provider is told, not left to write on at our expense.
    await eventually(lambda: provider.abandoned == 1)
    assert len(provider.requests) == 1


async def test_trouble_after_the_first_token_is_the_schedulers(
    scheduler: FakeScheduler, start_agent: StartAgent
) -> None:
    """The call may have been paid and its text was shown, so the turn itself does not repeat it."""
    calls = 0

    async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        calls += 1
        await reader.readuntil(b"\r\n\r\n")
        delta = {"role": "assistant", "content": "Half an ans"}
        chunk = {
            "id": "x",
            "object": "chat.completion.chunk",
            "created": 0,
            "model": "m",
            "choices": [{"index": 0, "delta": delta, "finish_reason": None}],
        }
        body = f"data: {json.dumps(chunk)}\n\n".encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n" + b"%x\r\n%s\r\n" % (len(body), body)
        )
        await writer.drain()
        await eventually(lambda: scheduler.deltas)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(break_off, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    toml = f"""
[agents.defaults]
model = "flaky:m"
fallback_models = ["demo"]
[providers.flaky]
base_url = "http://127.0.0.1:{port}/v1"
"""
    async with server, start_agent(toml):
        end = await scheduler.answer(scheduler.leased("go"))
    assert from_proto(end.error).reason == "MODEL_UNAVAILABLE"
    assert end.retryable
    assert calls == 1


@pytest.mark.parametrize(
    ("status", "cause", "words"),
    [
        (401, "auth", "credential"),
        (404, "not_found", "does not have this model"),
        (400, "bad_request", "does not take"),
    ],
)
async def test_refusals_are_final_and_leak_nothing(
    scheduler: FakeScheduler,
    live: InProcess,
    provider: FakeOpenAI,
    status: int,
    cause: str,
    words: str,
) -> None:
    provider.script(Failure(status, f"key {SECRET} at /home/x is wrong"))
    end = await scheduler.answer(scheduler.leased("go"))
    error = from_proto(end.error)
    assert error.reason == "MODEL_REJECTED"
    facts = {"providerId": "fake", "model": "big", "httpStatus": str(status), "cause": cause}
    assert error.metadata == facts
    assert words in error.message
    assert not end.retryable
    assert SECRET not in str(end)
    assert "/home/x" not in str(end)
    assert len(provider.requests) == 1


async def test_an_unreachable_model(scheduler: FakeScheduler, start_agent: StartAgent) -> None:
    toml = f"""
[agents.defaults]
model = "gone:m"
[providers.gone]
base_url = "http://127.0.0.1:{free_port()}/v1"
"""
    async with start_agent(toml):
        end = await scheduler.answer(scheduler.leased("go"))
        error = from_proto(end.error)
        assert error.reason == "MODEL_UNAVAILABLE"
        assert error.message == "gone did not answer: the connection failed"
        assert end.retryable


async def test_a_fallback_model_answers(scheduler: FakeScheduler, start_agent: StartAgent) -> None:
    toml = f"""
[agents.defaults]
model = "gone:m"
fallback_models = ["demo"]
[providers.gone]
base_url = "http://127.0.0.1:{free_port()}/v1"
"""
    async with start_agent(toml):
        end = await scheduler.answer(scheduler.leased("[[reply: me instead]]"))
        assert reply_text(end) == "me instead"
        details = task_pb.AgentResult()
        assert end.result.details.Unpack(details)
        assert (details.requested_model, details.effective_model) == ("gone:m", "demo")


async def test_a_missing_credential_names_its_variable(
    scheduler: FakeScheduler, start_agent: StartAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    toml = """
[agents.defaults]
model = "claude:x"
[providers.claude]
kind = "anthropic"
"""
    async with start_agent(toml):
        end = await scheduler.answer(scheduler.leased("go"))
        error = from_proto(end.error)
        assert error.reason == "MODEL_REJECTED"
        assert "ANTHROPIC_API_KEY" in error.message


async def test_a_missing_extra_names_itself(
    scheduler: FakeScheduler, live: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    end = await scheduler.answer(scheduler.leased("go"))
    error = from_proto(end.error)
    assert error.reason == "MODEL_REJECTED"
    assert "pip install 'conveyor-suite[openai]'" in error.message


async def test_arguments_reach_the_event_log(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    provider.script(Reply("", [spawn("a", wait=True)]))
    await scheduler.answer(scheduler.leased("go"))
    started = scheduler.events["R1-1.2.1-started"].tool_call_started
    assert json.loads(json.dumps(dict(started.arguments))) == {
        "task": "a",
        "label": "a",
        "wait": True,
    }


async def test_the_key_may_be_in_a_file(
    scheduler: FakeScheduler, start_agent: StartAgent, provider: FakeOpenAI, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    toml = f"""
[agents.defaults]
model = "fake:big"
[providers.fake]
base_url = "{provider.base_url}"
api_key_file = "{key}"
"""
    async with start_agent(toml) as service:
        assert service
        failed = await scheduler.answer(scheduler.leased("hello"))
        key.write_text(f"{SECRET}\n")
        await scheduler.answer(scheduler.leased("hello", run_id="R2"))
    said = str(failed)
    assert "the file that providers.fake.api_key_file names cannot be read, or is empty" in said
    assert str(key) not in said
    assert [r.headers["authorization"] for r in provider.requests] == [f"Bearer {SECRET}"]
