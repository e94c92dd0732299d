"""Sends messages to the scheduler, as the gateway would."""

from __future__ import annotations

import asyncio
import itertools
import time

from grpc import aio

from conveyor.common.v1 import content_pb2
from conveyor.scheduler.v1 import lane_pb2, run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from conveyor.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceStub

SESSIONS = 500


class Driver:
    """Sends messages to the scheduler, as the gateway would."""

    def __init__(self, channel: aio.Channel) -> None:
        self._stub = SchedulerServiceStub(channel)
        self._ids = itertools.count()
        # Other drivers may have sent to the same scheduler.
        self._name = f"bench-{time.time_ns()}"

    async def send(self, phase: str, batch: int = 1) -> None:
        """Enqueues `batch` messages in one call, each for another session."""
        items = []
        for _ in range(batch):
            i = next(self._ids)
            key = f"agent:main:bench:direct:{i % SESSIONS}"
            message = content_pb2.Message(
                message_id=f"m{i}",
                role=content_pb2.ROLE_USER,
                parts=[content_pb2.ContentPart(text=f"{phase} {time.monotonic_ns()}")],
            )
            spec = run_pb2.RunSpec(session_key=key, customer_key=key, queue="agent")
            items.append(ss.EnqueueItem(spec=spec, message=message, request_id=f"{self._name}-{i}"))
        reply = await self._stub.EnqueueRuns(ss.EnqueueRunsRequest(items=items), timeout=30)
        for result in reply.results:
            if result.HasField("error"):
                raise RuntimeError(result.error.message)

    async def idle(self) -> None:
        """Returns when nothing is left to do."""
        request = ss.ListLanesRequest(kind=lane_pb2.LANE_KIND_GLOBAL)
        while True:
            lanes = (await self._stub.ListLanes(request)).lanes
            if not any(lane.waiting or lane.running for lane in lanes):
                return
            await asyncio.sleep(0.02)
