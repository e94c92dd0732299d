"""The scripted model that real harnesses talk to, as the vendors' own libraries see it.

They are imported in the tests: every worker collects this file, and each takes a second.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.harnesses.modelserver import ModelServer, serving

SHELL = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}
WRITE = {
    "type": "object",
    "properties": {"absolute_path": {"type": "string"}, "content": {}, "why": {"type": "string"}},
    "required": ["absolute_path", "content", "why"],
}


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    with serving() as server:
        yield server


async def test_anthropic_messages(model: ModelServer) -> None:
    import anthropic

    async with anthropic.AsyncAnthropic(base_url=model.url, api_key="x", max_retries=0) as client:
        tools = [{"name": "Write", "description": "", "input_schema": WRITE}]
        asked = {"role": "user", "content": "please {{write a.txt two words}} {{say both}}"}
        common = {"model": "fake-model", "max_tokens": 100, "tools": tools}
        async with client.messages.stream(messages=[asked], **common) as stream:
            (call,) = (await stream.get_final_message()).content
        assert call.name == "Write"
        assert call.input == {
            "absolute_path": "a.txt",
            "content": "two words",
            "why": "as you said",
        }
        result = {"type": "tool_result", "tool_use_id": call.id, "content": "{{say not this}}"}
        history = [
            asked,
            {"role": "assistant", "content": [call.model_dump(exclude={"caller"})]},
            {"role": "user", "content": [result, {"type": "text", "text": "a reminder"}]},
        ]
        async with client.messages.stream(messages=history, **common) as stream:
            assert [text async for text in stream.text_stream] == ["bo", "th"]


async def test_openai_chat_and_responses(model: ModelServer) -> None:
    import openai

    async with openai.AsyncOpenAI(base_url=model.url_v1, api_key="x", max_retries=0) as client:
        asked = {"role": "user", "content": "{{read a.txt}}"}
        function = {"name": "exec_command", "description": "", "parameters": SHELL}
        chunks = await client.chat.completions.create(
            model="fake-model",
            messages=[asked],
            tools=[{"type": "function", "function": function}],
            stream=True,
        )
        deltas = [chunk.choices[0].delta async for chunk in chunks if chunk.choices]
        (call,) = [calls[0] for delta in deltas if (calls := delta.tool_calls)]
        assert json.loads(call.function.arguments) == {"command": "cat a.txt"}

        tool = {"type": "function", **function, "strict": False}
        turns = [asked, {"role": "assistant", "content": "a heron"}]
        async with client.responses.stream(
            model="gpt-5", input=[*turns, {"role": "user", "content": "{{count}}"}], tools=[tool]
        ) as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
        assert final.output_text == "this is text 2 of the conversation"
        assert "response.output_text.delta" in kinds

        with pytest.raises(openai.InternalServerError):
            await client.responses.create(model="gpt-5", input="{{fail 500}}", tools=[tool])


async def test_what_is_held_waits_to_be_released_or_left(model: ModelServer) -> None:
    import anthropic

    async with anthropic.AsyncAnthropic(base_url=model.url, api_key="x", max_retries=0) as client:
        tools = [{"name": "Bash", "description": "", "input_schema": SHELL}]
        common = {"model": "fake-model", "max_tokens": 100, "tools": tools}
        for name in ("one", "two"):
            asked = [{"role": "user", "content": f"{{{{hold {name}}}}}"}]
            async with client.messages.stream(messages=asked, **common) as stream:
                texts = stream.text_stream
                assert await anext(texts) == f"working on {name}"
                await model.until_held(name)
                if name == "one":
                    model.release("one")
                    assert [text async for text in texts][-1] == ", done"
        await model.until_left("two")
        assert model.left == ["two"]
