"""`grpc.health.v1.Health`, with watches that end when the server drains."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio

SERVICE = "grpc.health.v1.Health"


class Health(health_aio.HealthServicer):  # type: ignore[misc]  # the package has no types
    """Answers for the server as a whole (`""`) and for each of its services."""

    def __init__(self, services: Sequence[str]) -> None:
        super().__init__()
        self._names = ("", *services)
        self._closed = asyncio.Event()

    async def set_serving(self, serving: bool, *, alive: bool | None = None) -> None:
        """Tell clients whether calls make sense now. Ignored once the server drains.

        `alive` is the answer for the server as a whole, by default the same.
        """
        for name in self._names:
            well = serving if name or alive is None else alive
            await self.set(
                name,
                health_pb2.HealthCheckResponse.SERVING
                if well
                else health_pb2.HealthCheckResponse.NOT_SERVING,
            )

    async def drain(self) -> None:
        """Say `NOT_SERVING` for good."""
        await self.enter_graceful_shutdown()

    def end_watches(self) -> None:
        """End open watches with OK; left open, they would hold the server for its whole grace."""
        self._closed.set()

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: aio.ServicerContext[Any, Any]
    ) -> None:
        """Stream the status until the client leaves or the server drains."""
        watching = asyncio.create_task(super().Watch(request, context))
        closing = asyncio.create_task(self._closed.wait())
        try:
            await asyncio.wait({watching, closing}, return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()
        finally:
            for task in (watching, closing):
                task.cancel()
            await asyncio.gather(watching, closing, return_exceptions=True)


def add_to(server: aio.Server, health: Health) -> None:
    """Register the service."""
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
