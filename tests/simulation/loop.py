"""An event loop without waiting and without chance: time jumps to what is due next.

Nothing of the outside gets in: no sockets, no threads. Work for an executor is done on the spot.
So a program that takes its randomness from a seed does the same in every run.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from typing import Any


class Stuck(RuntimeError):
    """Nothing is ready and nothing is due: everybody waits for somebody."""


class _Jump(selectors.SelectSelector):
    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise Stuck("nothing is ready and nothing is due: everybody waits for somebody")
        self.loop.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Starts at time 0. Use it with `asyncio.Runner(loop_factory=VirtualLoop)`."""

    def __init__(self) -> None:
        self.now = 0.0
        selector = _Jump()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self.now

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """Runs it now, in this thread."""
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as err:
            future.set_exception(err)
        return future


class VirtualClock:
    """A `svckit.clock.Clock` on the loop, at an offset: the wall clock of one process."""

    def __init__(self, offset: float = 0.0) -> None:
        self._base = 1_700_000_000 + offset

    def now_us(self) -> int:
        """Microseconds since 1970."""
        return round((self._base + asyncio.get_running_loop().time()) * 1e6)

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`."""
        await asyncio.sleep(max(0.0, seconds))
