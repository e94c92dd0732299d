"""The model that real coding agents talk to in tests: on the loopback, in a thread, scripted.

It serves the model APIs of three vendors (`dialects`) and says what the prompt tells it to
(`said`), so that a real harness reads, writes and runs without a key and without a network.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from svckit.testing import eventually
from tests.harnesses import dialects
from tests.harnesses.said import Asked, Call, Fail, Hold, Move, Say, next_move

MODELS = ("fake-model", "claude-sonnet-4-5", "claude-haiku-4-5", "gpt-5")


@dataclass(frozen=True)
class Seen:
    """One request as it came, and what the model did."""

    path: str
    asked: Asked
    move: Move
    headers: dict[str, str]


class ModelServer:
    """Serves at `url` (without `/v1`) inside `serving()`. Safe to use from the test's thread."""

    def __init__(self) -> None:
        self.url = ""
        self.seen: list[Seen] = []
        self.left: list[str] = []
        """Names of `{{hold}}` whose harness hung up before they were released."""
        self._held: set[str] = set()
        self._gates: dict[str, asyncio.Event] = {}
        self.loop: asyncio.AbstractEventLoop | None = None

    async def until_held(self, name: str, within: float = 60) -> None:
        """Wait until a harness waits for the rest of the answer to `{{hold name}}`."""
        await eventually(lambda: name in self._held, timeout=within)

    async def until_left(self, name: str, within: float = 30) -> None:
        """Wait until the harness that waited there hung up."""
        await eventually(lambda: name in self.left, timeout=within)

    def release(self, name: str) -> None:
        """Let `{{hold name}}` go on."""
        assert self.loop is not None
        self.loop.call_soon_threadsafe(lambda: self._gate(name).set())

    @property
    def url_v1(self) -> str:
        """What most settings call the base URL."""
        return f"{self.url}/v1"

    # Inside the thread

    def _gate(self, name: str) -> asyncio.Event:
        return self._gates.setdefault(name, asyncio.Event())

    def app(self) -> Starlette:
        """The routes."""
        return Starlette(
            routes=[
                *(
                    Route(dialect.path, self._endpoint(dialect), methods=["POST"])
                    for dialect in dialects.ALL
                ),
                Route("/v1/messages/count_tokens", self._count, methods=["POST"]),
                Route("/v1/models", self._models),
                # Harnesses look for this and that beside their model: nothing, for them.
                Route("/{rest:path}", self._nothing, methods=["GET", "HEAD", "POST"]),
            ]
        )

    def _endpoint(self, dialect: dialects.Dialect) -> Any:
        async def serve(request: Request) -> Response:
            raw = await request.body()
            if request.headers.get("content-encoding") == "gzip":
                raw = gzip.decompress(raw)
            body = json.loads(raw)
            asked = dialect.asked(body)
            move = next_move(asked)
            self.seen.append(Seen(dialect.path, asked, move, dict(request.headers)))
            if isinstance(move, Fail):
                error = {"type": "api_error", "message": "scripted failure"}
                return JSONResponse({"type": "error", "error": error}, status_code=move.status)
            answer = dialect.answer(body)
            if not body.get("stream"):
                told = Say(f"working on {move.name}") if isinstance(move, Hold) else move
                return JSONResponse(answer.whole(told))
            return StreamingResponse(self._stream(answer, move), media_type="text/event-stream")

        return serve

    async def _stream(self, answer: dialects.Answer, move: Say | Call | Hold) -> AsyncIterator[str]:
        for event in answer.head():
            yield event
        if isinstance(move, Call):
            for event in answer.call(move):
                yield event
        elif isinstance(move, Say):
            # In two pieces: a harness that shows only the last one is found out.
            middle = len(move.text) // 2
            for piece in (move.text[:middle], move.text[middle:]):
                for event in answer.piece(piece):
                    yield event
        else:
            for event in answer.piece(f"working on {move.name}"):
                yield event
            # It goes on speaking, as models do: some agents see only then that nobody listens.
            async with aclosing(self._hold(move.name)) as words:
                async for word in words:
                    for event in answer.piece(word):
                        yield event
        for event in answer.tail():
            yield event

    async def _hold(self, name: str) -> AsyncGenerator[str, None]:
        self._held.add(name)
        gate = self._gate(name)
        try:
            while not gate.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(gate.wait(), 0.2)
                yield ", done" if gate.is_set() else " ."
        except (asyncio.CancelledError, GeneratorExit):
            # The web framework cancels the stream when the harness hangs up.
            self.left.append(name)
            raise

    async def _count(self, _: Request) -> Response:
        return JSONResponse({"input_tokens": 10})

    async def _models(self, _: Request) -> Response:
        data = [
            {"id": name, "object": "model", "type": "model", "display_name": name, "created": 0}
            for name in MODELS
        ]
        return JSONResponse({"object": "list", "data": data, "has_more": False})

    async def _nothing(self, _: Request) -> Response:
        return JSONResponse({})


class _Server(uvicorn.Server):
    """Says when it is up."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = threading.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.up.set()


@contextmanager
def serving() -> Iterator[ModelServer]:
    """Serve while the block lasts."""
    model = ModelServer()
    config = uvicorn.Config(
        model.app(), host="127.0.0.1", port=0, log_config=None, lifespan="off", ws="none"
    )
    server = _Server(config)

    async def run() -> None:
        model.loop = asyncio.get_running_loop()
        await server.serve()

    # Signals stay with the test: uvicorn leaves them alone outside the main thread.
    thread = threading.Thread(target=lambda: asyncio.run(run()), name="model", daemon=True)
    thread.start()
    assert server.up.wait(20), "the model server did not start"
    model.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        yield model
    finally:
        server.should_exit = True
        server.force_exit = True
        thread.join(20)
        assert not thread.is_alive()
