"""The gRPC door: a call gets its caller before its handler runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from grpc import aio

from gateway_svc.auth import Door, Scope, enter

# Whoever starts, supervises or balances a gateway asks for its health, and holds no token.
_OPEN = "/grpc.health.v1.Health/"
_REFLECTION = "/grpc.reflection."


class Guard(aio.ServerInterceptor):
    """Admits every call but those of health. Runs inside the boundary, so that it may raise."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the handler of the call, which then runs in this same task."""
        method = handler_call_details.method
        if not method.startswith(_OPEN):
            principal = self._door.admit(_credentials(handler_call_details))
            if method.startswith(_REFLECTION):
                principal.require(Scope.READ)
            enter(principal)
        return await continuation(handler_call_details)


def _credentials(details: grpc.HandlerCallDetails) -> list[str]:
    return [
        value
        for name, value in details.invocation_metadata or ()
        if name == "authorization" and isinstance(value, str)
    ]
