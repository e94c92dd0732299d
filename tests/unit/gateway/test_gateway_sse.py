"""Server-sent events and a client that leaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
from starlette.types import Message

from conveyor.gateway.v1 import gateway_service_pb2 as gw
from gateway_svc.http.sse import event_stream
from svckit.errors import EventsCompacted
from svckit.metrics import Metrics, definitions

SCOPE = {"type": "http", "method": "GET", "path": "/", "headers": []}


class Watch:
    """A watch that says `count` things and then nothing more; `closed` when it was left."""

    def __init__(self, count: int = 0) -> None:
        self.closed = False
        self._count = count

    async def responses(self) -> AsyncGenerator[gw.WatchSessionResponse, None]:
        try:
            for _ in range(self._count):
                yield gw.WatchSessionResponse(progress=gw.WatchProgress(live=True))
            await asyncio.Event().wait()
        finally:
            self.closed = True


async def never(_: Message) -> None:
    await asyncio.Event().wait()


async def ready(_: Message) -> None:
    return


async def gone() -> Message:
    return {"type": "http.disconnect"}


@pytest.mark.parametrize("said", [0, 3])
@pytest.mark.parametrize("send", [never, ready], ids=["before it began", "in the middle"])
async def test_a_client_that_leaves_ends_its_watch(
    send: object, said: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway_svc.http.sse.FIRST_ITEM_SECONDS", 0.01)
    metrics, watch = Metrics(), Watch(said)
    response = await event_stream(watch.responses(), metrics)
    async with asyncio.timeout(30):
        await response(SCOPE, gone, send)  # type: ignore[arg-type]
    assert watch.closed
    assert metrics.gauge(definitions.HTTP_STREAMS).values == {(): 0}


async def test_a_failure_in_the_middle_is_the_last_event() -> None:
    async def responses() -> AsyncGenerator[gw.WatchSessionResponse, None]:
        yield gw.WatchSessionResponse(progress=gw.WatchProgress(live=True))
        raise EventsCompacted("gone")

    sent: list[bytes] = []

    async def send(message: Message) -> None:
        sent.append(message.get("body", b""))

    async def stays() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async with asyncio.timeout(30):
        await (await event_stream(responses(), Metrics()))(SCOPE, stays, send)
    whole = b"".join(sent)
    assert whole.index(b"event: progress") < whole.index(b"event: failure")
    assert b"EVENTS_COMPACTED" in whole
