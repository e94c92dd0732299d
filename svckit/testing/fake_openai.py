"""A model provider on the loopback that says what the test told it to.

It speaks `/v1/chat/completions` and `/v1/models` of the OpenAI API, streaming and not, with tools
and parallel tool calls, records every request, and is as strict as the real one about the rule that
matters most here: an assistant message with tool calls must be followed, at once, by one tool
message for each of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


@dataclass(frozen=True)
class ToolCall:
    """A tool call of a reply. `id`: left out, a fresh one; the same one again is allowed."""

    name: str
    arguments: Mapping[str, Any] | str = field(default_factory=dict)
    id: str = ""


@dataclass(frozen=True)
class Reply:
    """What the model says. Several `tool_calls` are parallel. `pause`: seconds between chunks.

    `model`: which one it says it is; left out, the one that was asked for.
    """

    text: str = ""
    tool_calls: Sequence[ToolCall] = ()
    pause: float = 0.0
    input_tokens: int = 10
    output_tokens: int = 5
    model: str = ""


@dataclass(frozen=True)
class Failure:
    """An HTTP error, for example 401, 429 (with `retry_after` seconds) or 500.

    `code` is the vendor's, for example `context_length_exceeded`.
    """

    status: int
    message: str = "scripted failure"
    retry_after: float | None = None
    code: str | None = None


@dataclass(frozen=True)
class Hang:
    """No answer until the client leaves; with `after`, only after that many characters of text."""

    after: str = ""


Answer: TypeAlias = Reply | Failure | Hang


@dataclass(frozen=True)
class ChatRequest:
    """One recorded request."""

    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages of the prompt, oldest first."""
        return list(self.body.get("messages", []))

    @property
    def tools(self) -> list[str]:
        """Names of the offered tools."""
        return [tool["function"]["name"] for tool in self.body.get("tools") or []]

    @property
    def last(self) -> dict[str, Any]:
        """The last message."""
        return self.messages[-1]

    def texts(self, role: str) -> list[str]:
        """Texts of the messages with a role, oldest first."""
        return [_text(m) for m in self.messages if m.get("role") == role]


Responder: TypeAlias = Callable[[ChatRequest], "Answer | Awaitable[Answer]"]


class FakeOpenAI:
    """`async with FakeOpenAI() as fake:` serves at `fake.base_url` (ends with `/v1`).

    Answers come from `script` (used once, in order), else from the first rule of `when` that
    matches, else from `respond`. `requests` holds every request; `violations` every broken prompt,
    which is also refused with status 400.
    """

    def __init__(self, respond: Responder | None = None, *, api_key: str = "") -> None:
        self._respond: Responder = respond or (lambda _: Reply("ok"))
        self._api_key = api_key
        self._script: list[Answer] = []
        self._rules: list[tuple[Callable[[ChatRequest], bool], Responder]] = []
        self._ids = itertools.count(1)
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self.requests: list[ChatRequest] = []
        self.violations: list[str] = []
        self.abandoned = 0
        """How many requests the client left before their answer was complete."""
        self.base_url = ""

    def script(self, *answers: Answer) -> None:
        """Use `answers` for the next requests, one each, whatever they ask."""
        self._script.extend(answers)

    def when(
        self, matches: Callable[[ChatRequest], bool] | str, answer: Answer | Responder
    ) -> None:
        """Answer matching requests; a text matches when it is in the last user message."""
        if isinstance(matches, str):
            wanted = matches

            def found(request: ChatRequest) -> bool:
                return wanted in (request.texts("user") or [""])[-1]

            matches = found
        if isinstance(answer, Reply | Failure | Hang):
            fixed = answer
            self._rules.append((matches, lambda _: fixed))
        else:
            self._rules.append((matches, answer))

    def assert_clean(self) -> None:
        """Fail when any request held an assistant tool call without its tool message."""
        if self.violations:
            raise AssertionError("broken prompts: " + "; ".join(self.violations))

    async def __aenter__(self) -> Self:
        app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/models", self._models),
            ]
        )
        config = uvicorn.Config(
            app, host="127.0.0.1", port=0, log_config=None, lifespan="off", ws="none"
        )
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve())
        started = asyncio.create_task(self._server.is_up.wait())
        await asyncio.wait({self._serving, started}, return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        if self._serving.done():
            self._serving.result()
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.base_url = f"http://127.0.0.1:{port}/v1"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        assert self._serving is not None
        self._stop.set()
        self._server.should_exit = True
        self._server.force_exit = True
        await self._serving

    async def _models(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "fake", "object": "model"}]})

    async def _chat(self, request: Request) -> Response:
        recorded = ChatRequest(await request.json(), dict(request.headers))
        self.requests.append(recorded)
        expected = f"Bearer {self._api_key}"
        if self._api_key and request.headers.get("authorization") != expected:
            return _error(Failure(401, "Incorrect API key provided"))
        broken = unanswered_tool_calls(recorded.messages)
        if broken:
            self.violations.extend(broken)
            return _error(Failure(400, broken[0]))
        answer = await self._answer(recorded)
        if isinstance(answer, Failure):
            return _error(answer)
        model = str(recorded.body.get("model", "fake"))
        if isinstance(answer, Reply) and answer.model:
            model = answer.model
        if recorded.body.get("stream"):
            usage = bool((recorded.body.get("stream_options") or {}).get("include_usage"))
            return StreamingResponse(
                self._stream(answer, model, usage), media_type="text/event-stream"
            )
        if isinstance(answer, Hang):
            await self._hang(request)
            return Response(status_code=499)
        return JSONResponse(self._whole(answer, model))

    async def _answer(self, request: ChatRequest) -> Answer:
        if self._script:
            return self._script.pop(0)
        respond = next((r for matches, r in self._rules if matches(request)), self._respond)
        answer = respond(request)
        return await answer if inspect.isawaitable(answer) else answer

    async def _hang(self, request: Request) -> None:
        """Wait until the client leaves or the test ends."""
        left = asyncio.create_task(_until_gone(request))
        stop = asyncio.create_task(self._stop.wait())
        await asyncio.wait({left, stop}, return_when=asyncio.FIRST_COMPLETED)
        self.abandoned += left.done()
        for task in (left, stop):
            task.cancel()
        await asyncio.gather(left, stop, return_exceptions=True)

    def _whole(self, reply: Reply, model: str) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": reply.text or None}
        if reply.tool_calls:
            message["tool_calls"] = [self._call(call) for call in reply.tool_calls]
        return {
            "id": f"chatcmpl-{next(self._ids)}",
            "object": "chat.completion",
            "created": 0,
            "model": model,
            "choices": [{"index": 0, "message": message, "finish_reason": _finish(reply)}],
            "usage": _usage(reply),
        }

    async def _stream(self, answer: Reply | Hang, model: str, usage: bool) -> AsyncIterator[str]:
        head = {
            "id": f"chatcmpl-{next(self._ids)}",
            "object": "chat.completion.chunk",
            "created": 0,
            "model": model,
        }

        def chunk(delta: dict[str, Any], finish: str | None = None) -> str:
            choices = [{"index": 0, "delta": delta, "finish_reason": finish}]
            return _event({**head, "choices": choices})

        complete = False
        try:
            yield chunk({"role": "assistant", "content": ""})
            if isinstance(answer, Hang):
                if answer.after:
                    yield chunk({"content": answer.after})
                # The web framework cancels this generator when the client leaves.
                await self._stop.wait()
                complete = True
                return
            for delta in self._deltas(answer):
                yield chunk(delta)
                await asyncio.sleep(answer.pause)
            yield chunk({}, _finish(answer))
            if usage:
                yield _event({**head, "choices": [], "usage": _usage(answer)})
            yield "data: [DONE]\n\n"
            complete = True
        finally:
            self.abandoned += not complete

    def _deltas(self, reply: Reply) -> Iterator[dict[str, Any]]:
        # Words with the space after them, so that the pieces together are the text again.
        for word in re.findall(r"\S*\s*", reply.text):
            if word:
                yield {"content": word}
        for index, call in enumerate(reply.tool_calls):
            whole = self._call(call)
            arguments = whole["function"]["arguments"]
            whole["function"]["arguments"] = ""
            yield {"tool_calls": [{"index": index, **whole}]}
            middle = len(arguments) // 2
            for part in (arguments[:middle], arguments[middle:]):
                yield {"tool_calls": [{"index": index, "function": {"arguments": part}}]}

    def _call(self, call: ToolCall) -> dict[str, Any]:
        arguments = call.arguments
        if not isinstance(arguments, str):
            arguments = json.dumps(dict(arguments))
        return {
            "id": call.id or f"call_{next(self._ids)}",
            "type": "function",
            "function": {"name": call.name, "arguments": arguments},
        }


def unanswered_tool_calls(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what is wrong with the tool messages of a prompt, one text per fault."""
    problems = []
    open_calls: list[str] = []
    for position, message in enumerate(messages):
        if message.get("role") == "tool":
            call_id = str(message.get("tool_call_id"))
            if call_id in open_calls:
                open_calls.remove(call_id)
            else:
                problems.append(f"messages[{position}]: tool message {call_id!r} answers no call")
            continue
        if open_calls:
            problems.append(
                f"messages[{position}]: an assistant message with 'tool_calls' must be followed by "
                f"tool messages; without one: {', '.join(open_calls)}"
            )
        open_calls = [str(call["id"]) for call in message.get("tool_calls") or ()]
    if open_calls:
        problems.append(f"end of messages: tool calls without answer: {', '.join(open_calls)}")
    return problems


class _Server(uvicorn.Server):
    """uvicorn inside a test's loop: it leaves signals alone and says when it is up."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.is_up.set()


async def _until_gone(request: Request) -> None:
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            return


def _error(failure: Failure) -> Response:
    headers = {}
    if failure.retry_after is not None:
        headers["retry-after"] = str(failure.retry_after)
    body = {
        "error": {"message": failure.message, "type": "error", "code": failure.code, "param": None}
    }
    return JSONResponse(body, status_code=failure.status, headers=headers)


def _event(body: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"


def _finish(reply: Reply) -> str:
    return "tool_calls" if reply.tool_calls else "stop"


def _usage(reply: Reply) -> dict[str, int]:
    return {
        "prompt_tokens": reply.input_tokens,
        "completion_tokens": reply.output_tokens,
        "total_tokens": reply.input_tokens + reply.output_tokens,
    }


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in content)
