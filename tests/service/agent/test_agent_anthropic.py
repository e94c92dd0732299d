"""A turn with Anthropic's API: another wire, the same steps."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.service.agent.conftest import StartAgent
from tests.service.agent.fake_scheduler import FakeScheduler, reply_text


def sse(events: list[dict[str, Any]]) -> bytes:
    return "".join(f"event: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in events).encode()


def message(blocks: list[dict[str, Any]]) -> bytes:
    """A streamed reply; tool calls all carry the same id."""
    usage = {"input_tokens": 12, "output_tokens": 1}
    start = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x"}
    start |= {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": start}]
    for index, block in enumerate(blocks):
        if block["type"] == "text":
            empty: dict[str, Any] = {"type": "text", "text": ""}
            delta = {"type": "text_delta", "text": block["text"]}
        else:
            empty = {"type": "tool_use", "id": "toolu_0", "name": block["name"], "input": {}}
            delta = {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        events += [
            {"type": "content_block_start", "index": index, "content_block": empty},
            {"type": "content_block_delta", "index": index, "delta": delta},
            {"type": "content_block_stop", "index": index},
        ]
    reason = "tool_use" if blocks[-1]["type"] == "tool_use" else "end_turn"
    stop = {"stop_reason": reason, "stop_sequence": None}
    events += [
        {"type": "message_delta", "delta": stop, "usage": {"output_tokens": 7}},
        {"type": "message_stop"},
    ]
    return sse(events)


def read_in_order(body: dict[str, Any]) -> list[Any]:
    """What a model reads, the first first, without the marks of the cache."""
    parts = [*body["tools"], *body["system"], *body["messages"]]
    return [_unmarked(part) for part in parts]


def _unmarked(part: Any) -> Any:
    if isinstance(part, list):
        return [_unmarked(item) for item in part]
    if isinstance(part, dict):
        return {key: _unmarked(value) for key, value in part.items() if key != "cache_control"}
    return part


async def test_streaming_with_parallel_calls(
    scheduler: FakeScheduler, start_agent: StartAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLAUDE_KEY", "secret")
    spawns = [
        {"type": "tool_use", "name": "sessions_spawn", "input": {"task": task}} for task in "ab"
    ]
    script = [
        message([{"type": "text", "text": "On it."}, *spawns]),
        message([{"type": "text", "text": "All done."}]),
    ]
    bodies: list[dict[str, Any]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length:")[1].split("\r\n")[0])
        bodies.append(json.loads(await reader.readexactly(length)))
        body = script.pop(0)
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body)
        )
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    toml = f"""
[agents.defaults]
model = "claude:claude-x"
[providers.claude]
kind = "anthropic"
base_url = "http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
api_key_env = "CLAUDE_KEY"
"""
    async with server, start_agent(toml):
        end = await scheduler.answer(scheduler.leased("a and b"))
        assert list(end.condition.children.run_ids) == ["C1", "C2"]
        assert end.interim_reply.parts[0].text == "On it."
        assert scheduler.reports["R1/1.2"].usage.output_tokens == 7
        resumption = scheduler.resumption(
            scheduler.child_result("C1", "aa"), scheduler.child_result("C2", "bb")
        )
        end = await scheduler.answer(scheduler.leased("a and b", turn=2, resumption=resumption))
        assert reply_text(end) == "All done."
    asked = bodies[-1]["messages"]
    calls = [block["id"] for block in asked[1]["content"] if block["type"] == "tool_use"]
    answers = [b["tool_use_id"] for b in asked[2]["content"] if b["type"] == "tool_result"]
    assert calls == answers == ["call_1_2_1", "call_1_2_2"]
    assert "toolu_0" not in str(bodies)
    # What the next prompt will begin with is kept by the provider: tools, system, messages so far.
    for body in bodies:
        assert "cache_control" in body["tools"][-1]
        assert "cache_control" in body["system"][-1]
        assert "cache_control" in body or "cache_control" in str(body["messages"][-1])
    first, second = (json.dumps(read_in_order(body))[:-1] for body in bodies)
    assert second.startswith(first)
