"""The wire: servicers translate between the contract and the engine, and decide nothing."""

from __future__ import annotations

from typing import Any, TypeAlias

from grpc import aio

from svckit.errors import NotLeader, ShuttingDown, StoreUnavailable

CallContext: TypeAlias = "aio.ServicerContext[Any, Any]"
"""What grpc.aio hands to every method."""

OF_THE_CALL = (NotLeader, ShuttingDown, StoreUnavailable)
"""Errors that fail a whole batch: what says "not now, not here" is no outcome of an item. A client
repeats the call, perhaps elsewhere; items that were done are known by their ids."""
