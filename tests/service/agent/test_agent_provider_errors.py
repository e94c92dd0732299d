"""What every kind of provider error becomes, over real HTTP, and that none of its text gets out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from time import time

import pytest

from agent_svc.domain.prompt import Prompt, Said, ToolSchema
from agent_svc.models.base import CallFailed
from agent_svc.models.provider import ProviderModel
from conveyor.events.v1 import event_pb2
from svckit.settings_model import ProviderSettings
from svckit.testing import free_port
from svckit.testing.fake_openai import FakeOpenAI, Reply
from tests.service.agent.conftest import StartAgent
from tests.service.agent.fake_scheduler import FakeScheduler, reply_text

SECRET = "sk-very-secret"
TOOL = ToolSchema("look", "Look.", {"type": "object", "properties": {}})


@asynccontextmanager
async def answering(raw: bytes, *, pause: bool = False) -> AsyncIterator[str]:
    """A server that sends these bytes and closes; with `pause` it never does."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(raw)
            await writer.drain()
            if pause:
                await reader.read(1_000_000)
                await reader.read(1)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


def http(status: int, body: object, *headers: str) -> bytes:
    text = body if isinstance(body, str) else json.dumps(body)
    lines = [f"HTTP/1.1 {status} X", "content-type: application/json", *headers]
    lines += [f"content-length: {len(text.encode())}", "connection: close"]
    return "\r\n".join([*lines, "", text]).encode()


def error(message: str = SECRET, **fields: str) -> dict[str, object]:
    return {"error": {"message": message, **fields}}


def stream(*chunks: object) -> bytes:
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
    return (
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" + body
    ).encode()


def piece(text: str) -> dict[str, object]:
    choice = {"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": None}
    return {
        "id": "x",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": "m",
        "choices": [choice],
    }


async def failing(base_url: str, kind: str = "openai") -> CallFailed:
    settings = ProviderSettings.model_validate({"kind": kind, "base_url": base_url})
    model = ProviderModel("p", "m", settings)
    try:
        with pytest.raises(CallFailed) as caught:
            await model.ask(Prompt("", [Said("hi")], [TOOL]), lambda _: None)
    finally:
        await model.close()
    failed = caught.value
    assert SECRET not in failed.error.message + str(failed.error.metadata)
    assert failed.error.metadata["cause"] == failed.cause
    return failed


REFUSALS = [
    ("auth", http(401, error())),
    ("auth", http(403, error())),
    ("not_found", http(404, error(code="model_not_found"))),
    ("quota", http(402, error())),
    ("quota", http(429, error(code="insufficient_quota"))),
    ("bad_request", http(400, error())),
    ("bad_request", http(422, error())),
    ("too_long", http(400, error(code="context_length_exceeded"))),
    ("too_long", http(400, error("This model's maximum context length is 8192 tokens"))),
    # llama.cpp
    ("too_long", http(400, error("exceeds the context size", type="exceed_context_size_error"))),
    ("too_long", http(413, error("too much"))),
    ("content_refused", http(400, error(code="content_filter"))),
    (
        "content_refused",
        http(400, error("triggering Azure OpenAI's content management policy")),
    ),
]
OUTAGES = [
    ("overloaded", http(503, error("overloaded"))),
    ("overloaded", http(529, error())),
    ("server_error", http(500, error())),
    ("server_error", http(502, "<html>bad gateway</html>")),
    ("server_error", http(408, error())),
    ("connection", b""),
    ("unreadable", http(200, "<html>please log in</html>")),
    ("unreadable", stream()),
]


@pytest.mark.parametrize(("cause", "raw"), REFUSALS)
async def test_refusals(cause: str, raw: bytes) -> None:
    async with answering(raw) as base_url:
        failed = await failing(base_url)
    assert (failed.cause, failed.outcome, failed.error.reason) == (
        cause,
        "rejected",
        "MODEL_REJECTED",
    )
    assert failed.too_long == (cause == "too_long")
    assert failed.error.metadata["httpStatus"] == raw.split()[1].decode()


@pytest.mark.parametrize(("cause", "raw"), OUTAGES)
async def test_outages(cause: str, raw: bytes) -> None:
    async with answering(raw) as base_url:
        failed = await failing(base_url)
    assert (failed.cause, failed.outcome, failed.error.reason) == (
        cause,
        "unavailable",
        "MODEL_UNAVAILABLE",
    )
    assert not failed.started


async def test_nobody_listens() -> None:
    failed = await failing(f"http://127.0.0.1:{free_port()}/v1")
    assert (failed.cause, failed.outcome) == ("connection", "unavailable")


async def test_a_reply_that_breaks_off(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = stream(piece("Half an ans")).replace(b"connection: close", b"content-length: 9999")
    async with answering(raw) as base_url:
        failed = await failing(base_url)
    assert (failed.cause, failed.started) == ("broken_stream", True)


async def test_an_error_in_the_middle_of_a_reply() -> None:
    async with answering(stream(piece("Half"), error(code="server_error"))) as base_url:
        failed = await failing(base_url)
    assert (failed.outcome, failed.started) == ("unavailable", True)


async def test_a_provider_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent_svc.models.provider.FIRST_TOKEN_SECONDS", 0.2)
    async with answering(b"", pause=True) as base_url:
        failed = await failing(base_url)
    assert (failed.cause, failed.outcome) == ("timeout", "unavailable")


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("retry-after: 7", 7),
        ("retry-after: 0.5", 0.5),
        ("retry-after-ms: 1500", 1.5),
        ("retry-after: <in an hour>", 3600),
        ("x-ratelimit-reset-tokens: 6m0s\r\nx-ratelimit-remaining-tokens: 0", 360),
    ],
)
async def test_a_429_says_how_long_to_wait(header: str, seconds: float) -> None:
    header = header.replace("<in an hour>", formatdate(time() + 3600, usegmt=True))
    async with answering(http(429, error(), header)) as base_url:
        failed = await failing(base_url)
    assert (failed.cause, failed.outcome) == ("throttled", "throttled")
    assert failed.retry_after == pytest.approx(seconds, abs=60 if seconds == 3600 else 0.01)


async def test_an_overloaded_anthropic_says_it_in_its_own_words() -> None:
    raw = http(529, {"type": "error", "error": {"type": "overloaded_error", "message": SECRET}})
    async with answering(raw) as base_url:
        assert (await failing(base_url, "anthropic")).cause == "overloaded"
    body = {"type": "invalid_request_error", "message": "prompt is too long: 9 tokens > 8 maximum"}
    async with answering(http(400, {"type": "error", "error": body})) as base_url:
        assert (await failing(base_url, "anthropic")).too_long


async def test_a_forced_tool_is_the_tool_choice_of_the_request(provider: FakeOpenAI) -> None:
    model = ProviderModel("p", "m", ProviderSettings(base_url=provider.base_url))
    for forced in ("", "look", "gone"):
        prompt = Prompt("", [Said("hi")], [TOOL], force_tool=forced)
        await model.ask(prompt, lambda _: None)
    await model.close()
    first, second, third = (request.body.get("tool_choice") for request in provider.requests)
    assert first == third, "a tool that is not offered cannot be forced"
    assert second in ("required", {"type": "function", "function": {"name": "look"}})


async def test_a_fallback_is_told_once_and_again_after_a_crash(
    scheduler: FakeScheduler, start_agent: StartAgent, provider: FakeOpenAI
) -> None:
    toml = f"""
[agents.defaults]
model = "gone:m"
fallback_models = ["fake:small"]
[providers.gone]
base_url = "http://127.0.0.1:{free_port()}/v1"
[providers.fake]
base_url = "{provider.base_url}"
"""
    provider.script(Reply("here"))
    async with start_agent(toml):
        end = await scheduler.answer(scheduler.leased("go"))
        assert reply_text(end) == "here"

        def notes() -> list[event_pb2.Event]:
            return [event for event in scheduler.events.values() if event.HasField("note_added")]

        (note,) = notes()
        assert note.note_added.code == "model_fallback"
        assert note.note_added.text == "gone:m did not answer (connection): fake:small did."
        assert not note.note_added.visible
        # The event got lost with its worker, its step did not: the next attempt tells it.
        scheduler.events.clear()
        await scheduler.answer(scheduler.leased("go", attempt=2))
        assert [event.event_id for event in notes()] == [note.event_id]
    assert len(provider.requests) == 1
