"""Streams as server-sent events: a session watch, a probe of a model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from google.protobuf.message import Message
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from conveyor.agent.v1 import agent_service_pb2 as ag
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from gateway_svc.http.wire import error_body, to_dict
from svckit.errors import ServiceError
from svckit.metrics import Metrics, definitions

# An error that shows at once is an HTTP error; later ones are an event of the stream.
FIRST_ITEM_SECONDS = 1.0
# A provider that cannot be reached is an HTTP error too: it takes a few tries to know.
FIRST_TRY_SECONDS = 15.0

Item = TypeVar("Item", bound=Message)


async def event_stream(
    responses: AsyncGenerator[gw.WatchSessionResponse, None], metrics: Metrics
) -> EventSourceResponse:
    """Return the response that streams a watch.

    Events are named after the kind of message (`event`, `progress`, `delta`, `lane_position`), hold
    the whole `WatchSessionResponse`, and carry the resume token as their id; what does not move the
    token has no id. `failure` holds a typed error and is the last. Raises `ServiceError` when the
    watch fails at once.
    """
    return await _begin(responses, _event, metrics, FIRST_ITEM_SECONDS)


async def probe_stream(
    responses: AsyncGenerator[ag.ProbeModelResponse, None], metrics: Metrics
) -> EventSourceResponse:
    """Return the response that streams a probe: events `result`, last `report`.

    Events hold the whole `ProbeModelResponse`. `failure` holds a typed error and is the last.
    Raises `ServiceError` when the probe fails before its first result.
    """
    return await _begin(responses, _tried, metrics, FIRST_TRY_SECONDS)


async def _begin(
    responses: AsyncGenerator[Item, None],
    show: Callable[[Item], ServerSentEvent],
    metrics: Metrics,
    patience: float,
) -> EventSourceResponse:
    first = asyncio.ensure_future(anext(responses, None))
    try:
        await asyncio.wait((first,), timeout=patience)
        if first.done() and first.exception() is not None:
            await first
    except BaseException:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await responses.aclose()
        raise
    stream = _stream(first, responses, show)
    return _EventSource(stream, first, responses.aclose, metrics)


class _EventSource(EventSourceResponse):
    """The response. A watch is left with it, also when not a byte of it could be sent."""

    def __init__(
        self,
        stream: AsyncIterator[ServerSentEvent],
        first: asyncio.Future[Any],
        leave: Callable[[], Awaitable[None]],
        metrics: Metrics,
    ) -> None:
        super().__init__(stream, ping=15, sep="\n", headers={"Cache-Control": "no-store"})
        self._first = first
        self._leave = leave
        self._open = metrics.gauge(definitions.HTTP_STREAMS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._open.add()
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._open.add(by=-1)
            self._first.cancel()
            await asyncio.gather(self._first, return_exceptions=True)
            await self._leave()

    @staticmethod
    async def _listen_for_exit_signal() -> None:
        """Replace the library's own watch for a shutdown: our streams end by themselves."""
        await asyncio.Event().wait()


async def _stream(
    first: asyncio.Future[Item | None],
    responses: AsyncGenerator[Item, None],
    show: Callable[[Item], ServerSentEvent],
) -> AsyncIterator[ServerSentEvent]:
    # A comment at once, so that the browser knows that it is connected.
    yield ServerSentEvent(comment="connected", retry=1000, sep="\n")
    try:
        response = await first
        while response is not None:
            yield show(response)
            response = await anext(responses, None)
    except ServiceError as error:
        yield ServerSentEvent(
            data=json.dumps(error_body(error), ensure_ascii=False), event="failure", sep="\n"
        )


def _event(response: gw.WatchSessionResponse) -> ServerSentEvent:
    kind = response.WhichOneof("message") or "progress"
    moves = kind in ("event", "progress")
    data = json.dumps(to_dict(response), ensure_ascii=False, separators=(",", ":"))
    token = response.resume_token if moves else None
    return ServerSentEvent(data=data, event=kind, id=token, sep="\n")


def _tried(response: ag.ProbeModelResponse) -> ServerSentEvent:
    data = json.dumps(to_dict(response), ensure_ascii=False, separators=(",", ":"))
    return ServerSentEvent(data=data, event=response.WhichOneof("message"), sep="\n")
