"""Time as a dependency, so that rules about time can be tested without waiting."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time and waits. Nothing else in the suite reads the system clock for its rules."""

    def now_us(self) -> int:
        """Microseconds since 1970. Never goes back while the process lives."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`; at once for 0 or less."""
        ...


class SystemClock:
    """Wall time at start plus monotonic time since: a step of the system clock does no harm."""

    def __init__(self) -> None:
        self._offset_ns = time.time_ns() - time.monotonic_ns()

    def now_us(self) -> int:
        """Microseconds since 1970."""
        return (time.monotonic_ns() + self._offset_ns) // 1000

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        await asyncio.sleep(max(0.0, seconds))


class FakeClock:
    """A clock that stands still until `advance` moves it."""

    def __init__(self, start_us: int = 1_700_000_000_000_000) -> None:
        self._now_us = start_us
        self._order = itertools.count()
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []

    def now_us(self) -> int:
        """Microseconds since 1970, as far as this clock was moved."""
        return self._now_us

    def advance(self, seconds: float) -> None:
        """Move the clock and wake those whose time has come, earliest first."""
        target = self._now_us + round(seconds * 1_000_000)
        while self._sleepers and self._sleepers[0][0] <= target:
            due, _, waiter = heapq.heappop(self._sleepers)
            self._now_us = max(self._now_us, due)
            if not waiter.done():
                waiter.set_result(None)
        self._now_us = target

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock was advanced by `seconds`."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        due = self._now_us + round(seconds * 1_000_000)
        heapq.heappush(self._sleepers, (due, next(self._order), waiter))
        await waiter

    @property
    def sleepers(self) -> int:
        """How many wait, for tests that must not advance too early."""
        return sum(1 for _, _, waiter in self._sleepers if not waiter.done())
