"""Whether the process lives, whether it can do its work, and what it has done so far."""

from __future__ import annotations

import asyncio

import grpc.aio
import sqlalchemy as sa
from fastapi import APIRouter, Request
from grpc_health.v1 import health_pb2, health_pb2_grpc
from starlette.responses import JSONResponse, Response

from gateway_svc.auth import Scope, caller
from svckit.database import Database
from svckit.errors import StoreUnavailable
from svckit.metrics import Metrics
from svckit.metrics.exposition import exposed

CHECK_SECONDS = 2.0
# A scheduler that stands by is alive; this it says of the one that leads only.
_LEADS = "conveyor.scheduler.v1.SchedulerService"


class Readiness:
    """Asks everything that the gateway needs."""

    def __init__(
        self, database: Database, channels: dict[str, grpc.aio.Channel], draining: asyncio.Event
    ) -> None:
        self._database = database
        self._channels = channels
        self._draining = draining
        self._asked: asyncio.Future[None] | None = None

    async def parts(self) -> dict[str, str]:
        """Return each part with `ok` or what is wrong with it."""
        names = list(self._channels)
        found = await asyncio.gather(
            self._store(), *(self._service(name, self._channels[name]) for name in names)
        )
        parts = dict(zip(["store", *names], found, strict=True))
        if self._draining.is_set():
            parts["gateway"] = "draining"
        return parts

    async def _store(self) -> str:
        # A database that hangs says so much later. Whoever asks until then waits for the question
        # that is under way, so that no line of them is before the work when it answers again.
        asked = self._asked
        if asked is None or asked.done():
            self._asked = asked = asyncio.ensure_future(self._database.run(_ask))
            asked.add_done_callback(_looked_at)
        if asked not in (await asyncio.wait([asked], timeout=CHECK_SECONDS))[0]:
            return "unavailable"
        try:
            asked.result()
        except StoreUnavailable:
            return "unavailable"
        return "ok"

    @staticmethod
    async def _service(name: str, channel: grpc.aio.Channel) -> str:
        stub = health_pb2_grpc.HealthStub(channel)
        asked = health_pb2.HealthCheckRequest(service=_LEADS if name == "scheduler" else "")
        try:
            answer = await stub.Check(asked, timeout=CHECK_SECONDS)
        except grpc.aio.AioRpcError:
            return "unreachable"
        serving = answer.status == health_pb2.HealthCheckResponse.SERVING
        return "ok" if serving else "not serving"


def _ask(connection: sa.Connection) -> None:
    connection.execute(sa.text("SELECT 1"))


def _looked_at(asked: asyncio.Future[None]) -> None:
    """Keep asyncio from telling of an error that came when nobody waited any more."""
    if not asked.cancelled():
        asked.exception()


def build_health_router(readiness: Readiness, metrics: Metrics) -> APIRouter:
    """Return `/healthz`, `/readyz` and `/metrics`."""
    router = APIRouter()

    @router.get("/healthz")
    async def healthz() -> Response:
        return JSONResponse({"alive": True})

    @router.get("/readyz")
    async def readyz() -> Response:
        parts = await readiness.parts()
        # Without harnesses everything else still works.
        ready = all(state == "ok" for name, state in parts.items() if name != "acp")
        return JSONResponse({"ready": ready, "parts": parts}, 200 if ready else 503)

    @router.get("/metrics")
    async def show_metrics(request: Request) -> Response:
        # Figures of the process: no label of them names a customer, a session or a run.
        caller().require(Scope.READ)
        text, content_type = await exposed(metrics, request.headers.get("accept", ""))
        return Response(text, headers={"content-type": content_type})

    return router
