"""A turn with Google's API: another wire, the same steps; and its errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from agent_svc.domain.prompt import Prompt, Said, ToolSchema
from agent_svc.models.base import CallFailed
from agent_svc.models.provider import ProviderModel
from svckit.grpc.status import from_proto
from svckit.settings_model import ProviderSettings
from tests.service.agent.conftest import StartAgent
from tests.service.agent.fake_scheduler import FakeScheduler, reply_text

SECRET = "AIza-very-secret"


@dataclass
class Gemini:
    """Speaks `streamGenerateContent`: each scripted answer is (status, body)."""

    script: list[tuple[int, bytes]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    base_url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.paths.append(head.split()[1])
        self.headers.append(head.lower())
        length = int(head.lower().split("content-length:")[1].split("\r\n")[0])
        self.bodies.append(json.loads(await reader.readexactly(length)))
        status, body = self.script.pop(0)
        kind = "text/event-stream" if status == 200 else "application/json"
        writer.write(
            f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\nconnection: close\r\n"
            f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        await writer.drain()
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def gemini() -> AsyncIterator[Gemini]:
    fake = Gemini()
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    fake.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield fake


def reply(*parts: dict[str, Any], finish: str = "STOP") -> tuple[int, bytes]:
    """A streamed reply, one chunk per part; tool calls come without any id."""
    chunks: list[dict[str, Any]] = [
        {"candidates": [{"content": {"role": "model", "parts": [part]}, "index": 0}]}
        for part in parts
    ]
    chunks[-1]["candidates"][0]["finishReason"] = finish
    chunks[-1]["usageMetadata"] = {
        "promptTokenCount": 12,
        "candidatesTokenCount": 7,
        "totalTokenCount": 19,
    }
    return 200, "".join(f"data: {json.dumps(chunk)}\r\n\r\n" for chunk in chunks).encode()


def failure(status: int, name: str, message: str = SECRET, *details: Any) -> tuple[int, bytes]:
    body = {"code": status, "message": message, "status": name, "details": list(details)}
    return status, json.dumps({"error": body}).encode()


def spawn(task: str) -> dict[str, Any]:
    return {"functionCall": {"name": "sessions_spawn", "args": {"task": task}}}


async def test_streaming_with_parallel_calls(
    scheduler: FakeScheduler, start_agent: StartAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEM_KEY", SECRET)
    async with gemini() as fake:
        fake.script = [
            reply({"text": "On "}, {"text": "it."}, spawn("a"), spawn("b")),
            reply({"text": "All done."}),
        ]
        toml = f"""
[agents.defaults]
model = "gem:gemini-2.5-flash"
[providers.gem]
kind = "google"
base_url = "{fake.base_url}"
api_key_env = "GEM_KEY"
"""
        async with start_agent(toml):
            end = await scheduler.answer(scheduler.leased("a and b"))
            assert list(end.condition.children.run_ids) == ["C1", "C2"]
            assert end.interim_reply.parts[0].text == "On it."
            usage = scheduler.reports["R1/1.2"].usage
            assert (usage.input_tokens, usage.output_tokens) == (12, 7)
            resumption = scheduler.resumption(
                scheduler.child_result("C1", "aa"), scheduler.child_result("C2", "bb")
            )
            end = await scheduler.answer(scheduler.leased("a and b", turn=2, resumption=resumption))
            assert reply_text(end) == "All done."
    assert fake.paths[0].startswith("/v1beta/models/gemini-2.5-flash:streamGenerateContent")
    assert SECRET not in "".join(fake.paths), "the key goes in a header"
    assert f"x-goog-api-key: {SECRET}".lower() in fake.headers[0]
    assert "sessions_spawn" in str(fake.bodies[0]["tools"])
    assert "You may delegate" in str(fake.bodies[0]["systemInstruction"])
    answers = [
        part["functionResponse"]
        for content in fake.bodies[1]["contents"]
        for part in content["parts"]
        if "functionResponse" in part
    ]
    assert [answer["name"] for answer in answers] == ["sessions_spawn"] * 2
    assert "aa" in str(answers[0])
    assert "bb" in str(answers[1])


async def test_a_forced_tool_is_the_only_one_that_may_be_called() -> None:
    tools = [
        ToolSchema(name, "Look.", {"type": "object", "properties": {}}) for name in ("look", "go")
    ]
    async with gemini() as fake:
        fake.script = [reply({"functionCall": {"name": "look", "args": {}}})]
        settings = ProviderSettings(kind="google", base_url=fake.base_url)
        model = ProviderModel("gem", "gemini-2.5-flash", settings)
        prompt = Prompt("", [Said("hi")], tools, force_tool="look")
        answer = await model.ask(prompt, lambda _: None)
        await model.close()
    assert answer.calls == (("look", "{}"),)
    choice = fake.bodies[0]["toolConfig"]["functionCallingConfig"]
    assert choice == {"mode": "ANY", "allowedFunctionNames": ["look"]}


@pytest.mark.parametrize(
    ("cause", "answer"),
    [
        (
            "auth",
            failure(
                400,
                "INVALID_ARGUMENT",
                SECRET,
                {
                    "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                    "reason": "API_KEY_INVALID",
                    "domain": "googleapis.com",
                },
            ),
        ),
        ("auth", failure(403, "PERMISSION_DENIED")),
        ("not_found", failure(404, "NOT_FOUND")),
        ("bad_request", failure(400, "INVALID_ARGUMENT")),
        (
            "too_long",
            failure(
                400,
                "INVALID_ARGUMENT",
                "The input token count (9) exceeds the maximum number of tokens allowed (8).",
            ),
        ),
        (
            "quota",
            failure(
                429,
                "RESOURCE_EXHAUSTED",
                SECRET,
                {
                    "@type": "type.googleapis.com/google.rpc.QuotaFailure",
                    "violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel"}],
                },
            ),
        ),
        (
            "throttled",
            failure(
                429,
                "RESOURCE_EXHAUSTED",
                SECRET,
                {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "14s"},
            ),
        ),
        ("overloaded", failure(503, "UNAVAILABLE", "The model is overloaded.")),
        ("server_error", failure(500, "INTERNAL")),
        ("unreadable", (200, b"")),
    ],
)
async def test_errors_have_the_same_causes_as_elsewhere(
    cause: str, answer: tuple[int, bytes]
) -> None:
    async with gemini() as fake:
        fake.script = [answer]
        settings = ProviderSettings(kind="google", base_url=fake.base_url)
        model = ProviderModel("gem", "gemini-2.5-flash", settings)
        with pytest.raises(CallFailed) as caught:
            await model.ask(Prompt("", [Said("hi")]), lambda _: None)
        await model.close()
    failed = caught.value
    assert failed.cause == cause
    assert SECRET not in failed.error.message
    assert failed.retry_after == (14 if cause == "throttled" else None)


async def test_a_prompt_that_the_filter_stops(
    scheduler: FakeScheduler, start_agent: StartAgent
) -> None:
    async with gemini() as fake:
        blocked = {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {}}
        fake.script = [(200, f"data: {json.dumps(blocked)}\r\n\r\n".encode())]
        toml = f"""
[agents.defaults]
model = "gem:gemini-2.5-flash"
[providers.gem]
kind = "google"
base_url = "{fake.base_url}"
"""
        async with start_agent(toml):
            end = await scheduler.answer(scheduler.leased("hi"))
    error = from_proto(end.error)
    assert (error.reason, error.metadata["cause"]) == ("MODEL_REJECTED", "content_refused")
