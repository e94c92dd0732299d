"""The deadline of the request that is being served, for the calls it makes.

grpc.aio does not pass deadlines on. The server boundary opens a scope here, and the client
interceptors take what is left of it. A scope counts only while its handler runs: tasks inherit
context variables when they are created, and work that outlives its request must not die with a
deadline that was never its own.

Work that is *started* by a request but belongs to nobody's request, for example a task put on a
queue or a watcher, starts with `spawn`, which gives it a context of its own: no deadline, no span,
no log fields.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from svckit import failpoints

T = TypeVar("T")


class _Scope:
    __slots__ = ("at", "open")

    def __init__(self, at: float) -> None:
        self.at = at
        self.open = True


_scope: contextvars.ContextVar[_Scope | None] = contextvars.ContextVar("deadline", default=None)


@contextmanager
def scope(remaining: float | None) -> Iterator[None]:
    """Bound the calls made inside by `remaining` seconds from now; None means unbounded."""
    entry = None
    if remaining is not None:
        entry = _Scope(asyncio.get_running_loop().time() + remaining)
    token = _scope.set(entry)
    try:
        yield
    finally:
        if entry is not None:
            entry.open = False
        _scope.reset(token)


def remaining() -> float | None:
    """Seconds left for the request being served, never below 0; None when nothing bounds it."""
    entry = _scope.get()
    if entry is None or not entry.open:
        return None
    return max(0.0, entry.at - asyncio.get_running_loop().time())


def tightest(*timeouts: float | None) -> float | None:
    """Return the least of the given timeouts and what is left of the request."""
    return min((t for t in (*timeouts, remaining()) if t is not None), default=None)


def spawn(work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
    """Create a task that inherits nothing from the request that creates it. Keep the result."""
    context = contextvars.Context()
    failpoints.take_along(context)
    return asyncio.create_task(work, name=name, context=context)
