"""The wire: servicers translate between the contract and the engine, and decide nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeAlias, TypeVar

from grpc import aio

from svckit.errors import NotLeader, ShuttingDown, StoreUnavailable

CallContext: TypeAlias = "aio.ServicerContext[Any, Any]"
"""What grpc.aio hands to every method."""

OF_THE_CALL = (NotLeader, ShuttingDown, StoreUnavailable)
"""Errors that fail a whole batch: what says "not now, not here" is no outcome of an item. A client
repeats the call, perhaps elsewhere; items that were done are known by their ids."""

T = TypeVar("T")


async def side_by_side(items: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Does all items of a call, in order and side by side, so that they share a commit."""
    if len(items) == 1:  # nearly always, and a task for it would only cost
        return [await items[0]]
    return await asyncio.gather(*items)
