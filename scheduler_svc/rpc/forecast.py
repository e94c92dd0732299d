"""`SchedulerService.Forecast`: from a request to a page of a forecast."""

from __future__ import annotations

import asyncio

from conveyor.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_svc.engine import Engine
from scheduler_svc.forecast import reading
from scheduler_svc.forecast.desk import Desk, Made
from scheduler_svc.rpc import validate
from svckit import paging
from svckit.errors import invalid_field


async def forecast(engine: Engine, desk: Desk, request: pb.ForecastRequest) -> pb.ForecastResponse:
    """Answers the call. Raises `InvalidField`, `RateLimited`, `ShuttingDown`."""
    size = validate.page_size(request.page_size, 100, 10_000)
    said = {"input": validate.digest(request.input)}
    start, made = _earlier(desk, paging.decode(request.page_token, said))
    if made is None:
        present = await engine.submit(
            lambda k, now: {lane.name: lane.limit for lane in k.lanes.values()}
        )
        whole = reading.resolved(request.input, present)
        # In a thread, because the input may be long; the process cannot say what is wrong with it.
        await asyncio.to_thread(reading.load, whole)
        made = await desk.make(whole)
    customers = await desk.page(made, start, size)
    end = start + len(customers)
    more = end < made.customers
    return pb.ForecastResponse(
        result=made.result,
        customers=customers,
        next_page_token=paging.encode([end, made.key], said) if more else "",
    )


def _earlier(desk: Desk, place: tuple[paging.Scalar, ...] | None) -> tuple[int, Made | None]:
    match place:
        case None:
            return 0, None
        case (int(start), str(key)) if start >= 0:
            made = desk.find(key)
            if made is None:
                raise invalid_field(
                    "page_token", "its forecast is no longer kept; leave it empty to start again"
                )
            return start, made
    raise invalid_field("page_token", "is not a token of a forecast; leave it empty to start")
