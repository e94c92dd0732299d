"""Ways to call something many times."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable

Call = Callable[[int], Awaitable[object]]


async def one_by_one(call: Call, count: int) -> list[float]:
    """Each call begins when the one before has ended. Milliseconds of each."""
    spent = []
    for i in range(count):
        begin = time.perf_counter()
        await call(i)
        spent.append((time.perf_counter() - begin) * 1000)
    return spent


async def side_by_side(call: Call, count: int, width: int) -> list[float]:
    """At most `width` calls at a time, the next as soon as one ends. Milliseconds of each."""
    numbers: Iterable[int] = iter(range(count))
    spent: list[float] = []

    async def caller() -> None:
        for i in numbers:
            begin = time.perf_counter()
            await call(i)
            spent.append((time.perf_counter() - begin) * 1000)

    await asyncio.gather(*(caller() for _ in range(width)))
    return spent


async def at_rate(call: Call, count: int, per_second: float) -> list[float]:
    """Calls begin at fixed times, whether earlier ones have ended or not. Milliseconds of each,
    from when it should have begun."""
    spent: list[float] = []
    start = time.perf_counter()

    async def due(i: int) -> None:
        begin = start + i / per_second
        await asyncio.sleep(max(0.0, begin - time.perf_counter()))
        await call(i)
        spent.append((time.perf_counter() - begin) * 1000)

    await asyncio.gather(*(due(i) for i in range(count)))
    return spent
