"""`grpc.health.v1.Health`, with watches that end when the server drains."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

SERVICE = "grpc.health.v1.Health"

_Status = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # the package has no types
    """Answers for the server as a whole (`""`) and for each of its services.

    Not the servicer of the package: that one cannot end a watch without cutting it in the middle of
    a message, and waits for the slowest watcher before it changes anything.
    """

    def __init__(self, services: Sequence[str]) -> None:
        self._status = dict.fromkeys(("", *services), _Status.SERVING)
        self._draining = False
        self._closed = False
        # Set, and replaced by another, with each change.
        self._news = asyncio.Event()

    async def set_serving(self, serving: bool, *, alive: bool | None = None) -> None:
        """Tell clients whether calls make sense now. Ignored once the server drains.

        `alive` is the answer for the server as a whole, by default the same.
        """
        if self._draining:
            return
        for name in self._status:
            well = serving if name or alive is None else alive
            self._status[name] = _Status.SERVING if well else _Status.NOT_SERVING
        self._tell()

    async def drain(self) -> None:
        """Say `NOT_SERVING` for good."""
        self._draining = True
        self._status = dict.fromkeys(self._status, _Status.NOT_SERVING)
        self._tell()

    def end_watches(self) -> None:
        """End open watches with OK; left open, they would hold the server for its whole grace."""
        self._closed = True
        self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: aio.ServicerContext[Any, Any]
    ) -> health_pb2.HealthCheckResponse:
        """Answer the status of a service; `NOT_FOUND` for one that is not here."""
        status = self._status.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return _Status(status=status)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: aio.ServicerContext[Any, Any]
    ) -> None:
        """Stream the status until the client leaves or the server drains."""
        told = None
        while True:
            news = self._news
            status = self._status.get(request.service, _Status.SERVICE_UNKNOWN)
            if status != told:
                await context.write(_Status(status=status))
                told = status
            elif self._closed:
                return
            else:
                await news.wait()


def add_to(server: aio.Server, health: Health) -> None:
    """Register the service."""
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
