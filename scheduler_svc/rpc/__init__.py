"""The wire: servicers translate between the contract and the engine, and decide nothing."""

from __future__ import annotations

from typing import Any, TypeAlias

from grpc import aio

CallContext: TypeAlias = "aio.ServicerContext[Any, Any]"
"""What grpc.aio hands to every method."""
