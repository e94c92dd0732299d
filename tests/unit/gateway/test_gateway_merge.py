"""Several streams read as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from gateway_svc.watching.merge import Draining, Ended, Idle, Item, Merge
from svckit.testing import eventually


async def numbers(
    count: int, closed: list[str] | None = None, made: list[int] | None = None
) -> AsyncGenerator[int, None]:
    try:
        for number in range(count):
            if made is not None:
                made.append(number)
            yield number
    finally:
        if closed is not None:
            closed.append("closed")


async def silent(closed: list[str]) -> AsyncGenerator[int, None]:
    try:
        await asyncio.Event().wait()
        yield 0
    finally:
        closed.append("closed")


async def failing() -> AsyncGenerator[int, None]:
    yield 1
    raise ValueError("no more")


async def test_each_stream_keeps_its_order() -> None:
    async with Merge[int](asyncio.Event(), 5) as merge:
        merge.add("a", numbers(200))
        merge.add("b", numbers(200))
        got: dict[str, list[int]] = {"a": [], "b": []}
        ended = set()
        while ended != {"a", "b"}:
            item = await merge.next()
            if isinstance(item, Item):
                got[item.source].append(item.value)
            elif isinstance(item, Ended):
                ended.add(item.source)
    assert got == {"a": list(range(200)), "b": list(range(200))}


async def test_a_slow_reader_slows_the_stream() -> None:
    made: list[int] = []
    async with Merge[int](asyncio.Event(), 5) as merge:
        merge.add("a", numbers(1000, made=made))
        await merge.next()
        await eventually(lambda: len(made) > 60)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(made) < 70


async def test_leaving_closes_every_stream() -> None:
    closed: list[str] = []
    async with Merge[int](asyncio.Event(), 5) as merge:
        merge.add("a", silent(closed))
        merge.add("b", numbers(1000, closed))
        await merge.next()
    assert closed == ["closed", "closed"]


async def test_a_removed_stream_is_closed() -> None:
    closed: list[str] = []
    async with Merge[int](asyncio.Event(), 0.01) as merge:
        merge.add("a", silent(closed))
        assert isinstance(await merge.next(), Idle)
        assert "a" in merge
        await merge.remove("a")
        assert closed == ["closed"]
        assert "a" not in merge


async def test_an_error_comes_after_what_came_before_it() -> None:
    async with Merge[int](asyncio.Event(), 5) as merge:
        merge.add("a", failing())
        assert await merge.next() == Item("a", 1)
        ended = await merge.next()
        assert isinstance(ended, Ended)
        assert isinstance(ended.error, ValueError)


async def test_draining_ends_a_silent_stream() -> None:
    draining = asyncio.Event()
    async with Merge[int](draining, 5) as merge:
        merge.add("a", silent([]))
        waiting = asyncio.create_task(merge.next())
        await asyncio.sleep(0)
        draining.set()
        assert isinstance(await waiting, Draining)


async def test_items_that_the_client_does_not_want_do_not_starve_its_heartbeat() -> None:
    async def chatter() -> AsyncGenerator[int, None]:
        while True:
            await asyncio.sleep(0)
            yield 0

    async with Merge[int](asyncio.Event(), 0.05) as merge, asyncio.timeout(30):
        merge.add("a", chatter())
        while not isinstance(await merge.next(), Idle):
            pass
        while not isinstance(await merge.next(), Idle):
            pass


async def test_what_is_said_to_the_client_is_its_heartbeat() -> None:
    # Longer in all than the heartbeat, which a busy machine does not reach between two items.
    async with Merge[int](asyncio.Event(), 1.5) as merge:
        merge.add("a", numbers(300))
        for _ in range(300):
            assert isinstance(await merge.next(), Item)
            merge.said()
            await asyncio.sleep(0.006)


async def test_a_stream_that_never_pauses_ends_when_draining() -> None:
    draining = asyncio.Event()

    async def chatter() -> AsyncGenerator[int, None]:
        while True:
            yield 0

    async with Merge[int](draining, 5) as merge, asyncio.timeout(30):
        merge.add("a", chatter())
        assert isinstance(await merge.next(), Item)
        draining.set()
        while not isinstance(await merge.next(), Draining):
            pass
