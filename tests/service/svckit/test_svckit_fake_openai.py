"""The fake provider, as the real client library of that API sees it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from svckit.testing import eventually
from svckit.testing.fake_openai import (
    Failure,
    FakeOpenAI,
    Hang,
    Reply,
    ToolCall,
    unanswered_tool_calls,
)

ASK: list[Any] = [{"role": "user", "content": "hello there"}]
TOOLS: list[Any] = [{"type": "function", "function": {"name": "spawn", "parameters": {}}}]


@pytest.fixture
async def fake() -> AsyncIterator[FakeOpenAI]:
    async with FakeOpenAI(api_key="k") as serving:
        yield serving
    serving.assert_clean()


@pytest.fixture
async def client(fake: FakeOpenAI) -> AsyncIterator[Any]:
    import openai

    async with openai.AsyncOpenAI(base_url=fake.base_url, api_key="k", max_retries=0) as made:
        yield made


async def test_text_and_usage(fake: FakeOpenAI, client: Any) -> None:
    fake.script(Reply("two  words\nmore", input_tokens=3, output_tokens=4))
    whole = await client.chat.completions.create(model="m", messages=ASK)
    assert whole.choices[0].message.content == "two  words\nmore"
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (3, 4)
    fake.script(Reply("two  words\nmore"))
    stream = await client.chat.completions.create(
        model="m", messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    texts = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(texts) == "two  words\nmore"
    assert len([t for t in texts if t]) == 3
    assert chunks[-1].usage.total_tokens == 15
    assert [r.texts("user") for r in fake.requests] == [["hello there"]] * 2
    assert fake.abandoned == 0


async def test_parallel_tool_calls_with_repeated_ids(fake: FakeOpenAI, client: Any) -> None:
    calls = [ToolCall("spawn", {"task": t}, id="call_x") for t in ("a", "b")]
    fake.when("hello", Reply(tool_calls=calls))
    whole = await client.chat.completions.create(model="m", messages=ASK, tools=TOOLS)
    made = whole.choices[0].message.tool_calls
    assert whole.choices[0].finish_reason == "tool_calls"
    assert [c.id for c in made] == ["call_x", "call_x"]
    assert [json.loads(c.function.arguments) for c in made] == [{"task": "a"}, {"task": "b"}]
    assert fake.requests[0].tools == ["spawn"]

    stream = await client.chat.completions.create(model="m", messages=ASK, tools=TOOLS, stream=True)
    arguments = {0: "", 1: ""}
    async for chunk in stream:
        for part in chunk.choices[0].delta.tool_calls or ():
            arguments[part.index] += part.function.arguments or ""
    assert [json.loads(a) for a in arguments.values()] == [{"task": "a"}, {"task": "b"}]


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, "AuthenticationError"), (429, "RateLimitError"), (500, "InternalServerError")],
)
async def test_failures(fake: FakeOpenAI, client: Any, status: int, error: str) -> None:
    import openai

    fake.script(Failure(status, retry_after=7))
    with pytest.raises(getattr(openai, error)) as caught:
        await client.chat.completions.create(model="m", messages=ASK)
    assert caught.value.response.headers["retry-after"] == "7"


async def test_a_wrong_key(fake: FakeOpenAI) -> None:
    import openai

    async with openai.AsyncOpenAI(base_url=fake.base_url, api_key="no", max_retries=0) as other:
        with pytest.raises(openai.AuthenticationError):
            await other.chat.completions.create(model="m", messages=ASK)


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_hanging_request_learns_that_its_client_left(
    fake: FakeOpenAI, client: Any, streaming: bool
) -> None:
    fake.script(Hang(after="some "))

    async def ask() -> None:
        answer = await client.chat.completions.create(model="m", messages=ASK, stream=streaming)
        async for _ in answer:
            pass

    asking = asyncio.create_task(ask())
    await eventually(lambda: fake.requests)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await eventually(lambda: fake.abandoned == 1)


async def test_a_prompt_with_an_unanswered_call_is_refused_and_noted() -> None:
    import openai

    async with (
        FakeOpenAI() as fake,
        openai.AsyncOpenAI(base_url=fake.base_url, api_key="k", max_retries=0) as client,
    ):
        call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        messages = [*ASK, {"role": "assistant", "tool_calls": [call]}, *ASK]
        with pytest.raises(openai.BadRequestError, match="must be followed by tool messages"):
            await client.chat.completions.create(model="m", messages=messages)
        with pytest.raises(AssertionError, match="broken prompts"):
            fake.assert_clean()


def assistant(*ids: str) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"id": i} for i in ids]}


def tool(call_id: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id}


USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("messages", "faults"),
    [
        ([USER], 0),
        ([USER, assistant("a"), tool("a")], 0),
        ([USER, assistant("a", "b"), tool("b"), tool("a"), USER], 0),
        ([USER, assistant("a", "a"), tool("a"), tool("a")], 0),
        ([USER, assistant("a"), tool("a"), assistant("a"), tool("a")], 0),
        ([USER, assistant("a", "a"), tool("a"), USER], 1),
        ([USER, assistant("a")], 1),
        ([USER, assistant("a"), USER, tool("a")], 2),
        ([USER, tool("a")], 1),
        ([USER, assistant("a"), assistant("b"), tool("b")], 1),
    ],
)
def test_the_rule_about_tool_messages(messages: list[dict[str, Any]], faults: int) -> None:
    assert len(unanswered_tool_calls(messages)) == faults
