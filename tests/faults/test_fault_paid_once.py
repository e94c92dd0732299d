"""What a provider is asked, and paid for, when the agent is killed: each finished step once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterator

import pytest

from svckit.testing.fake_openai import Answer, ChatRequest, Reply, ToolCall
from tests.system.harness import SUCCEEDED, Suite, chat, payloads, replies, running
from tests.system.provider import Gate, Provider, answered, last_user, spawn


@pytest.fixture(scope="module")
def suite(serving: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    toml = f"""
[agents.defaults]
model = "local:big"
[providers.local]
base_url = "{serving.fake.base_url}"
"""
    with running(tmp_path_factory.mktemp("paid"), toml) as started:
        yield started


async def test_calls_in_flight_are_repeated_and_finished_ones_are_not(
    suite: Suite, provider: Provider, session: str
) -> None:
    """Killed while two children's calls hang: the parent's call and its tools stay done."""
    hanging = Gate()

    def model(request: ChatRequest) -> Answer | Awaitable[Answer]:
        text = last_user(request)
        if text in ("left", "right"):
            return hanging.then(Reply(f"{text} done"))
        if answered(request):
            return Reply("Together: " + ", ".join(sorted(_done(request))))
        return Reply("", [ToolCall("agents_list"), spawn("left"), spawn("right")])

    provider.rules = [model]
    async with suite.client() as client:
        chatting = asyncio.create_task(chat(client, "two halves", session_key=session))
        await hanging.until_reached()
        suite.kill("agent")
        hanging.open()
        told = await chatting
        assert told.ended.state == SUCCEEDED
        assert told.answer == "Together: left, right"
        assert len(provider.asked("two halves")) == 2, "once to split, once to join"
        assert len(provider.asked("left")) + len(provider.asked("right")) <= 4
        flow = await client.flow(told.run_id)
        assert len(flow.nodes) == 3
        assert [node.usage.model_calls for node in flow.nodes] == [2, 1, 1]
    log = await suite.events(session)
    calls = [item.tool_call_id for item in payloads(log, "tool_call_started")]
    assert len(calls) == len(set(calls)) == 3
    assert replies(log) == ["Together: left, right"]


async def test_killed_while_it_joins_nothing_is_delegated_again(
    suite: Suite, provider: Provider, session: str
) -> None:
    joining = Gate()

    def model(request: ChatRequest) -> Answer | Awaitable[Answer]:
        text = last_user(request)
        if text in ("left", "right"):
            return Reply(f"{text} done")
        if answered(request):
            return joining.then(Reply("Joined: " + ", ".join(sorted(_done(request)))))
        return Reply("", [spawn("left"), spawn("right")])

    provider.rules = [model]
    async with suite.client() as client:
        chatting = asyncio.create_task(chat(client, "both halves", session_key=session))
        await joining.until_reached()
        suite.kill("agent")
        joining.open()
        told = await chatting
        assert told.answer == "Joined: left, right"
        assert len(provider.asked("left")) == len(provider.asked("right")) == 1
        split, *joins = provider.asked("both halves")
        assert "tool" not in {message["role"] for message in split.messages}
        assert len(joins) == 2, "the call in flight, and its repetition"
        assert joins[0].messages == joins[1].messages
        assert len((await client.flow(told.run_id)).nodes) == 3
    log = await suite.events(session)
    assert len(payloads(log, "child_announced")) == 2
    assert replies(log) == ["Joined: left, right"]


def _done(request: ChatRequest) -> list[str]:
    """Return which halves the prompt holds results of."""
    shown = " ".join(request.texts("tool"))
    return [half for half in ("left", "right") if f"{half} done" in shown]
