"""A service for tests of the life cycle, run as a process."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any

from conveyor.events.v1 import event_log_service_pb2 as log_pb2
from conveyor.events.v1 import event_log_service_pb2_grpc as log_grpc
from svckit.errors import StartError
from svckit.service import App, Context, Registered, main

NAME = "conveyor.events.v1.EventLogService"


class Log(log_grpc.EventLogServiceServicer):
    """Watches end when the service drains; a list of session `hold` is never answered."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def ListEvents(self, request: log_pb2.ListEventsRequest, context: Any) -> Any:
        if request.session_key == "hold":
            await asyncio.Event().wait()
        if request.session_key == "die":
            FAIL.set()
        if request.session_key == "store-gone":
            self._context.set_serving(False)
        return log_pb2.ListEventsResponse()

    async def WatchEvents(
        self, request: log_pb2.WatchEventsRequest, context: Any
    ) -> AsyncIterator[log_pb2.WatchEventsResponse]:
        yield log_pb2.WatchEventsResponse(progress=log_pb2.WatchProgress(sequence=1))
        await self._context.draining.wait()
        yield log_pb2.WatchEventsResponse(progress=log_pb2.WatchProgress(sequence=2))


FAIL = asyncio.Event()


@contextlib.asynccontextmanager
async def build(context: Context) -> AsyncIterator[App]:
    if os.environ.get("EXAMPLE_START_ERROR"):
        raise StartError("the store is\nfrom the future")

    async def work() -> None:
        await FAIL.wait()
        raise RuntimeError("the engine broke")

    async def drain() -> None:
        print("drain", context.draining.is_set(), flush=True)

    print("open", flush=True)
    try:
        yield App(
            [
                Registered(
                    NAME, lambda s: log_grpc.add_EventLogServiceServicer_to_server(Log(context), s)
                )
            ],
            tasks=[("engine", work)],
            drain=drain,
        )
    finally:
        print("close", flush=True)


if __name__ == "__main__":
    main("example-svc", build, lambda settings: settings.services.scheduler)
