"""Which model a run asks, which one answers, and what a sub-agent is started with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from conveyor.agent.v1 import task_pb2 as task_pb
from conveyor.scheduler.v1 import run_pb2
from svckit.errors import ServiceError
from svckit.grpc.status import from_proto
from svckit.testing.fake_openai import Failure, FakeOpenAI, Reply, ToolCall
from svckit.testing.inprocess import InProcess
from svckit.usage import MOST_TOKENS
from tests.service.agent.conftest import StartAgent
from tests.service.agent.fake_scheduler import SESSION, FakeScheduler, reply_text

TOML = """
[agents.defaults]
model = "p:big"
fallback_models = ["demo"]
[agents.defaults.subagents]
run_timeout_seconds = 120
[agents.list.main]
allow_agents = ["*"]
[agents.list.strict]
strict_model = true
[providers.p]
base_url = "{url}"
context_tokens = 1000000
"""


@pytest.fixture
async def live(start_agent: StartAgent, provider: FakeOpenAI) -> AsyncIterator[InProcess]:
    async with start_agent(TOML.format(url=provider.base_url)) as service:
        yield service


def task(agent_id: str, model: str = "") -> task_pb.AgentTask:
    return task_pb.AgentTask(agent_id=agent_id, model=model)


def models_of(end: Any) -> tuple[str, str]:
    details = task_pb.AgentResult()
    assert end.result.details.Unpack(details)
    return details.requested_model, details.effective_model


async def test_requested_and_effective_model_are_recorded_and_reported(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    provider.script(Reply("hi", model="big-2025-06-01"), Reply("hi", model="p/tiny"))
    end = await scheduler.answer(scheduler.leased("one", run_id="R1"))
    assert models_of(end) == ("p:big", "p:big")
    end = await scheduler.answer(scheduler.leased("two", run_id="R2"))
    # The provider says that it served another model.
    assert models_of(end) == ("p:big", "p:p/tiny")
    report = scheduler.reports["R2/1.2"]
    assert (report.requested_model, report.call.model) == ("p:big", "p/tiny")
    # Numbers that nobody can have used, and a name that is none: the answer counts all the same.
    provider.script(Reply("hi", model="m" * 5000, input_tokens=10**30))
    end = await scheduler.answer(scheduler.leased("four", run_id="R4"))
    assert models_of(end) == ("p:big", f"p:{'m' * 128}")
    assert scheduler.reports["R4/1.2"].usage.input_tokens == MOST_TOKENS
    provider.script(Failure(404), Failure(404))
    end = await scheduler.answer(
        scheduler.leased("[[reply: me]]", run_id="R3", task=task("main", "p:other"))
    )
    assert models_of(end) == ("p:other", "demo")


async def test_in_strict_mode_a_chosen_model_answers_itself_or_the_run_fails(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    async def error(run_id: str, model: str) -> ServiceError:
        leased = scheduler.leased("[[reply: me]]", run_id=run_id, task=task("strict", model))
        end = await scheduler.answer(leased)
        assert not end.retryable
        return from_proto(end.error)

    provider.script(Failure(404))
    refused = await error("R1", "p:other")
    assert refused.reason == "MODEL_REJECTED"
    provider.script(Reply("hi", model="tiny", input_tokens=70))
    other = await error("R2", "p:other")
    assert other.reason == "MODEL_REJECTED"
    assert other.message == (
        "p:other was asked for and p:tiny answered; strict_model takes no other"
    )
    assert scheduler.reports["R2/1.2"].usage.input_tokens == 70  # spent is spent
    # The agent's own model is no choice of the run: its fallbacks stand in for it.
    provider.script(Failure(404))
    end = await scheduler.answer(
        scheduler.leased("[[reply: me]]", run_id="R3", task=task("strict"))
    )
    assert models_of(end) == ("p:big", "demo")


async def test_a_spawn_with_an_unknown_model_is_told_which_there_are(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    provider.script(
        Reply(tool_calls=[ToolCall("sessions_spawn", {"task": "dig", "model": "gpt-9"})]),
        Reply("oh"),
    )
    await scheduler.answer(scheduler.leased("go"))
    assert not scheduler.children
    told = provider.requests[-1].last["content"]
    assert "there is no model 'gpt-9'" in told
    assert "Known models: p:big, demo, demo-weak; or any model of a provider, as p:<model>" in told


async def test_a_spawn_carries_its_model_time_limits_and_budget(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    arguments = {
        "task": "dig",
        "model": "p:small",
        "timeout_seconds": 30,
        "agent_id": "strict",
        "budget": {"max_tokens": 500},
    }
    provider.script(Reply(tool_calls=[ToolCall("sessions_spawn", arguments)]))
    await scheduler.answer(scheduler.leased("go"))
    (item,) = scheduler.children.values()
    assert item.spec.wall_timeout.seconds == 30  # from acceptance
    assert item.spec.run_timeout.seconds == 120  # executing
    assert item.spec.budget.max_tokens == 500
    child = task_pb.AgentTask()
    assert item.spec.task.Unpack(child)
    assert (child.agent_id, child.model) == ("strict", "p:small")


async def test_a_conversation_is_handed_over_to_the_same_agent_and_when_it_is_short_enough(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    fork = {"task": "dig", "context": "fork"}
    provider.script(
        Reply("noted"),
        Reply(
            tool_calls=[
                ToolCall("sessions_spawn", fork),
                ToolCall("sessions_spawn", fork | {"agent_id": "strict"}),
                ToolCall("sessions_spawn", fork | {"runtime": "acp"}),
            ]
        ),
        Reply("noted"),
        Reply(tool_calls=[ToolCall("sessions_spawn", fork | {"wait": False, "model": "demo"})]),
        Reply("started"),
    )
    short, long = SESSION, f"{SESSION}2"
    await scheduler.answer(scheduler.leased("my colour is blue", run_id="R1"))
    done = run_pb2.RUN_STATE_SUCCEEDED
    await scheduler.answer(scheduler.leased("go", run_id="R2", previous=[("R1", done, 1)]))
    (forked,) = scheduler.children.values()
    child = task_pb.AgentTask()
    assert forked.spec.task.Unpack(child)
    assert (child.context_mode, child.fork_session_key) == (task_pb.CONTEXT_MODE_FORK, short)
    shown = " ".join(
        part.text for event in scheduler.events.values() for part in event.tool_call_ended.output
    )
    assert "only to the same agent" in shown
    assert "is for runtime subagent" in shown

    await scheduler.answer(scheduler.leased("x" * 200_000, run_id="R3", session=long))
    end = await scheduler.answer(
        scheduler.leased("go", run_id="R4", session=long, previous=[("R3", done, 1)])
    )
    assert reply_text(end) == "started"
    isolated = scheduler.children["C2"]
    assert isolated.spec.task.Unpack(child)
    assert child.context_mode == task_pb.CONTEXT_MODE_ISOLATED
    # Both are told: the one who asked for it, and the one who would look for it.
    assert "too long to hand over" in isolated.message.parts[0].text
    assert "too long to hand over" in provider.requests[-1].last["content"]


async def test_the_guards_stronger_model_is_seen_as_such_and_never_replaces_a_strict_choice(
    scheduler: FakeScheduler, start_agent: StartAgent
) -> None:
    toml = """
[agents.defaults.guard]
fallback_model = "demo"
[agents.list.main]
model = "demo-weak"
[agents.list.strict]
strict_model = true
"""
    ask = "Spawn a sub-agent for this: [[spawn: dig]]"
    async with start_agent(toml):
        await scheduler.answer(scheduler.leased(ask, run_id="R1"))
        last = list(scheduler.reports.values())[-1]
        assert (last.requested_model, last.call.provider_id) == ("demo-weak", "demo")
        assert len(scheduler.children) == 1
        end = await scheduler.answer(
            scheduler.leased(ask, run_id="R2", task=task("strict", "demo-weak"))
        )
        assert models_of(end) == ("demo-weak", "demo-weak")
        assert len(scheduler.children) == 1
