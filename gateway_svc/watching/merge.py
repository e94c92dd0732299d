"""Reads several streams as one, with back-pressure, a heartbeat, and an end when draining."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")

# Small: each stream that fills it waits, so a slow client slows its upstream down instead of
# filling this process.
_QUEUE_SIZE = 64
HEARTBEAT_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Item(Generic[T]):
    """One item, and the name of the stream that it came from."""

    source: str
    value: T


@dataclass(frozen=True, slots=True)
class Ended:
    """A stream came to its end; with the error that ended it, if any."""

    source: str
    error: Exception | None = None


class Idle:
    """Nothing was said to the client for the length of a heartbeat: say how far the stream is."""


class Draining:
    """The service is going away: say so by ending."""


class Merge(Generic[T]):
    """An async context manager over any number of streams; leaving it closes them all.

    Call `said` with everything that goes to the client: much may come that it does not want, and
    it takes a long silence for a broken stream.
    """

    def __init__(self, draining: asyncio.Event, heartbeat: float = HEARTBEAT_SECONDS) -> None:
        self._draining = draining
        self._heartbeat = heartbeat
        self._due = asyncio.get_running_loop().time() + heartbeat
        self._queue: asyncio.Queue[Item[T] | Ended] = asyncio.Queue(_QUEUE_SIZE)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._drain_wait: asyncio.Task[bool] | None = None

    async def __aenter__(self) -> Self:
        self._drain_wait = asyncio.create_task(self._draining.wait())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        tasks: list[asyncio.Task[None] | asyncio.Task[bool]] = [*self._tasks.values()]
        if self._drain_wait is not None:
            tasks.append(self._drain_wait)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def __contains__(self, source: str) -> bool:
        return source in self._tasks

    def add(self, source: str, stream: AsyncGenerator[T, None]) -> None:
        """Read `stream` too. Its items come under the name `source`."""
        self._tasks[source] = asyncio.create_task(self._pump(source, stream))

    async def remove(self, source: str) -> None:
        """Stop reading a stream. What it already handed over may still come."""
        task = self._tasks.pop(source, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def said(self) -> None:
        """Note that the client was told something: the next heartbeat counts from now."""
        self._due = asyncio.get_running_loop().time() + self._heartbeat

    async def next(self) -> Item[T] | Ended | Idle | Draining:
        """Return what comes next."""
        assert self._drain_wait is not None
        if self._draining.is_set():
            return Draining()
        left = self._due - asyncio.get_running_loop().time()
        if left <= 0:
            self.said()
            return Idle()
        if not self._queue.empty():
            return self._queue.get_nowait()
        getting = asyncio.ensure_future(self._queue.get())
        try:
            await asyncio.wait(
                (getting, self._drain_wait), timeout=left, return_when=asyncio.FIRST_COMPLETED
            )
            if getting.done():
                return getting.result()
        finally:
            getting.cancel()
        if self._drain_wait.done():
            return Draining()
        self.said()
        return Idle()

    async def _pump(self, source: str, stream: AsyncGenerator[T, None]) -> None:
        ended = Ended(source)
        try:
            async with aclosing(stream) as items:
                async for value in items:
                    await self._queue.put(Item(source, value))
        except Exception as error:
            # Handed to the reader, who raises it.
            ended = Ended(source, error)
        await self._queue.put(ended)
