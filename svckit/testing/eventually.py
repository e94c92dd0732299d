"""Waits for something to become true, instead of sleeping and hoping."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TypeVar, overload

T = TypeVar("T")


@overload
async def eventually(
    fn: Callable[[], Awaitable[T]], timeout: float = ..., interval: float = ...
) -> T: ...
@overload
async def eventually(fn: Callable[[], T], timeout: float = ..., interval: float = ...) -> T: ...
async def eventually(
    fn: Callable[[], T | Awaitable[T]], timeout: float = 30, interval: float = 0.02
) -> T:
    """Call `fn` until it returns something true, and return that.

    `fn` may be a coroutine function. An `AssertionError` from it counts as "not yet", and the last
    one is raised when the time is over; without one, `AssertionError` says what was returned last.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    while True:
        problem: AssertionError | None = None
        value: T | None = None
        try:
            found = fn()
            value = await found if inspect.isawaitable(found) else found
            if value:
                return value
        except AssertionError as err:
            problem = err
        if loop.time() >= end:
            raise problem or AssertionError(f"not true after {timeout} s; last: {value!r}")
        await asyncio.sleep(interval)
