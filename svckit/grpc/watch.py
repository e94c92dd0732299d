"""Follows a resumable stream for as long as anybody wants it, across restarts of its server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar, cast

from grpc import aio

from svckit.backoff import full_jitter
from svckit.errors import NotLeader, ServiceError, ShuttingDown, StoreUnavailable, Unreachable
from svckit.grpc.status import from_rpc_error
from svckit.logging import get_logger

Pos = TypeVar("Pos")
Msg = TypeVar("Msg")

RECONNECT: tuple[type[ServiceError], ...] = (
    Unreachable,
    ShuttingDown,
    StoreUnavailable,
    NotLeader,
)
"""Errors that only mean "come back later"."""

_log = get_logger("svckit.watch")


async def follow(
    open_stream: Callable[[Pos], aio.UnaryStreamCall[Any, Msg]],
    position_of: Callable[[Msg], Pos | None],
    start: Pos,
    *,
    service: str = "",
    initial_backoff: float = 0.1,
    max_backoff: float = 2.0,
    silence: float | None = 45.0,
) -> AsyncIterator[Msg]:
    """Yield the messages of a stream, and reopen it after its last position whenever it ends.

    `open_stream` starts the call after a position; `position_of` returns the position that a
    message reaches, or None when the message has none (a live delta). A message counts as seen
    when the next one is asked for, so a consumer that fails sees it again with a later `follow`.

    The stream is reopened when it ends with OK, when the server is gone, drains, has no store or
    does not lead, and when nothing came for `silence` seconds (servers send progress every 15 s;
    None waits for ever). Any other error is raised as its `ServiceError`.

    Leaving the loop does not close the generator at once, so wrap it in `contextlib.aclosing`;
    closing it cancels the call, which the server then learns.
    """
    position = start
    pauses = full_jitter(initial_backoff, max_backoff)
    while True:
        call = open_stream(position)
        try:
            while True:
                async with asyncio.timeout(silence):
                    read = await call.read()
                if read is aio.EOF:
                    break
                message = cast(Msg, read)
                yield message
                reached = position_of(message)
                if reached is not None:
                    position = reached
                pauses = full_jitter(initial_backoff, max_backoff)
        except TimeoutError:
            _log.warning("watch was silent", watched=service)
        except aio.AioRpcError as err:
            mapped = from_rpc_error(err, service=service)
            if not isinstance(mapped, RECONNECT):
                raise mapped from err
            _log.debug("watch lost", watched=service, reason=mapped.reason)
        finally:
            call.cancel()
        await asyncio.sleep(next(pauses))
