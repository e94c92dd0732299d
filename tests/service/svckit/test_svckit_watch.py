"""`follow` against servers that end, fail, vanish and fall silent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from grpc import aio

from conveyor.events.v1 import event_log_service_pb2 as log_pb2
from conveyor.events.v1 import event_log_service_pb2_grpc as log_grpc
from svckit.errors import EventsCompacted, ShuttingDown, StoreUnavailable
from svckit.grpc.channel import make_channel
from svckit.grpc.watch import follow
from svckit.testing import ScriptedServicer, eventually, free_port, scripted_server

SERVICE = "conveyor.events.v1.EventLogService"


def at(sequence: int) -> log_pb2.WatchEventsResponse:
    return log_pb2.WatchEventsResponse(progress=log_pb2.WatchProgress(sequence=sequence))


def delta() -> log_pb2.WatchEventsResponse:
    response = log_pb2.WatchEventsResponse()
    response.delta.SetInParent()
    return response


def position_of(message: log_pb2.WatchEventsResponse) -> int | None:
    return message.progress.sequence or None


def watch(channel: aio.Channel, start: int = 0, **options: Any) -> Any:
    stub = log_grpc.EventLogServiceStub(channel)
    return contextlib.aclosing(
        follow(
            lambda after: stub.WatchEvents(log_pb2.WatchEventsRequest(after_sequence=after)),
            position_of,
            start,
            initial_backoff=0.01,
            max_backoff=0.05,
            **options,
        )
    )


async def take(messages: AsyncIterator[Any], number: int) -> list[int | None]:
    return [position_of(await anext(messages)) for _ in range(number)]


async def test_it_goes_on_after_the_last_position() -> None:
    async def breaks(_: Any) -> AsyncIterator[Any]:
        yield at(4)
        yield delta()
        raise ShuttingDown("bye")

    script = ScriptedServicer(SERVICE)
    script.queue("WatchEvents", [at(1), at(2)], lambda r: breaks(r), StoreUnavailable("x"))
    script.always("WatchEvents", lambda r: [at(r.after_sequence + 1)])
    async with scripted_server(script) as (_, channel), watch(channel) as messages:
        assert await take(messages, 6) == [1, 2, 4, None, 5, 6]
    # `StoreUnavailable` came before the first message, so the channel itself repeated that call.
    assert [c.after_sequence for c in script.calls["WatchEvents"]] == [0, 2, 4, 4, 5]


async def test_other_errors_are_raised() -> None:
    script = ScriptedServicer(SERVICE)
    compacted = EventsCompacted("gone", metadata={"oldestSequence": "9"})
    script.queue("WatchEvents", [at(1)], compacted)
    async with scripted_server(script) as (_, channel), watch(channel) as messages:
        assert await take(messages, 1) == [1]
        with pytest.raises(EventsCompacted) as caught:
            await take(messages, 1)
    assert caught.value.metadata == {"oldestSequence": "9"}


async def test_leaving_tells_the_server() -> None:
    left = asyncio.Event()

    async def endless(_: Any) -> AsyncIterator[Any]:
        try:
            yield at(1)
            await asyncio.Event().wait()
        finally:
            left.set()

    script = ScriptedServicer(SERVICE)
    script.always("WatchEvents", lambda r: endless(r))
    async with scripted_server(script) as (_, channel):
        async with watch(channel) as messages:
            assert await take(messages, 1) == [1]
        await asyncio.wait_for(left.wait(), 30)
        left.clear()
        async with watch(channel) as messages:
            await take(messages, 1)
            reader = asyncio.create_task(anext(messages))
            await asyncio.sleep(0)
            reader.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reader
            await asyncio.wait_for(left.wait(), 30)
    assert len(script.calls["WatchEvents"]) == 2


async def test_silence_counts_as_a_lost_connection() -> None:
    async def falls_silent(_: Any) -> AsyncIterator[Any]:
        yield at(1)
        await asyncio.Event().wait()

    script = ScriptedServicer(SERVICE)
    script.queue("WatchEvents", lambda r: falls_silent(r), [at(2)])
    script.always("WatchEvents", [at(3)])
    async with scripted_server(script) as (_, channel), watch(channel, silence=0.1) as messages:
        assert await take(messages, 2) == [1, 2]


async def test_a_restarted_server_is_found_again() -> None:
    address = f"127.0.0.1:{free_port()}"
    script = ScriptedServicer(SERVICE)
    script.always("WatchEvents", lambda r: [at(r.after_sequence + 1)])
    channel = make_channel(address)
    async with watch(channel) as messages:
        waiting = asyncio.ensure_future(take(messages, 1))
        async with scripted_server(script, address=address):
            assert await asyncio.wait_for(waiting, 30) == [1]
        waiting = asyncio.ensure_future(take(messages, 3))
        await eventually(lambda: len(script.calls["WatchEvents"]) >= 1)
        async with scripted_server(script, address=address):
            assert await asyncio.wait_for(waiting, 30) == [2, 3, 4]
    await channel.close()
