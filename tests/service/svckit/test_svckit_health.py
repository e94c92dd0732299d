"""Who asks for health is told what is, and a watch of it ends well."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from svckit.grpc import health
from svckit.grpc.server import bind, make_server

NAME = "conveyor.scheduler.v1.SchedulerService"
Status = health_pb2.HealthCheckResponse


@asynccontextmanager
async def served() -> AsyncIterator[tuple[health.Health, Any]]:
    answers = health.Health([NAME])
    server = make_server()
    health.add_to(server, answers)
    port = bind(server, "127.0.0.1:0")
    await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield answers, health_pb2_grpc.HealthStub(channel)
    await server.stop(None)


def asked(service: str) -> Any:
    return health_pb2.HealthCheckRequest(service=service)


async def test_a_standby_is_alive_and_does_not_serve() -> None:
    async with served() as (answers, stub):
        watch = stub.Watch(asked(NAME))
        assert (await watch.read()).status == Status.SERVING
        await answers.set_serving(False, alive=True)
        assert (await watch.read()).status == Status.NOT_SERVING
        assert (await stub.Check(asked(""))).status == Status.SERVING
        assert (await stub.Check(asked(NAME))).status == Status.NOT_SERVING
        await answers.set_serving(True)
        assert (await watch.read()).status == Status.SERVING


async def test_a_service_that_is_not_here() -> None:
    async with served() as (_, stub):
        assert (await stub.Watch(asked("no.Such")).read()).status == Status.SERVICE_UNKNOWN
        with pytest.raises(aio.AioRpcError, match="NOT_FOUND"):
            await stub.Check(asked("no.Such"))


async def test_watches_that_are_told_of_the_drain_while_it_ends_them_are_not_cut(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with served() as (answers, stub):
        watches = [stub.Watch(asked(NAME)) for _ in range(50)]
        await asyncio.gather(*(watch.read() for watch in watches))
        await answers.drain()
        answers.end_watches()
        await answers.set_serving(True)  # too late
        for watch in watches:
            assert (await watch.read()).status == Status.NOT_SERVING
            assert await watch.read() is aio.EOF
    assert "ExecuteBatchError" not in caplog.text
