"""Where Prometheus reads a service: who answers, with what, and until when."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import httpx
import pytest
from grpc import aio

from conveyor.events.v1 import event_log_service_pb2 as log_pb2
from conveyor.events.v1 import event_log_service_pb2_grpc as log_grpc
from svckit.errors import StartError
from svckit.service import Context, running
from svckit.settings import load
from svckit.testing import InProcess, eventually, in_process
from tests.service.svckit import example_service

ADDRESS = {"CONVEYOR_METRICS__SCHEDULER": "127.0.0.1:0"}


@asynccontextmanager
async def serving(**environ: str) -> AsyncIterator[InProcess]:
    build: Any = example_service.build
    example_service.FAIL = asyncio.Event()  # of this test's own loop
    async with in_process(build, load(None, environ), name="scheduler") as service:
        yield service


async def read(service: InProcess, path: str = "/metrics", **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False) as client:
        return await client.get(f"http://{service.metrics}{path}", headers=headers)


async def test_a_service_counts_its_calls_where_it_is_asked() -> None:
    async with serving(**ADDRESS) as service:
        stub: Any = log_grpc.EventLogServiceStub(service.channel)
        await stub.ListEvents(log_pb2.ListEventsRequest(session_key="a"))
        watch = stub.WatchEvents(log_pb2.WatchEventsRequest())
        await watch.read()
        with pytest.raises(aio.AioRpcError) as refused:
            await stub.AppendEvents(log_pb2.AppendEventsRequest())
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
        answer = await read(service)
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        for line in (
            'conveyor_grpc_calls_total{code="OK",method="EventLogService/ListEvents"} 1.0',
            'conveyor_grpc_call_seconds_count{method="EventLogService/ListEvents"} 1.0',
            'conveyor_grpc_open_calls{method="EventLogService/ListEvents"} 0.0',
            'conveyor_grpc_open_calls{method="EventLogService/WatchEvents"} 1.0',
            'conveyor_grpc_calls_total{code="UNIMPLEMENTED",method="EventLogService/AppendEvents"}',
            'conveyor_build_info{service="scheduler",version="',
        ):
            assert line in answer.text
        # How long somebody watched says nothing.
        assert 'seconds_count{method="EventLogService/WatchEvents"}' not in answer.text
        watch.cancel()

        async def looked_at() -> bool:
            return "conveyor_event_loop_lag_seconds_count 0.0" not in (await read(service)).text

        await eventually(looked_at)


async def test_nothing_but_metrics_is_answered() -> None:
    async with serving(**ADDRESS) as service:
        assert (await read(service, "/")).status_code == 404
        assert (await read(service, "/metrics/")).status_code == 404
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.post(f"http://{service.metrics}/metrics")).status_code == 405


async def test_a_service_that_nobody_asks_keeps_nothing() -> None:
    async with serving() as service:
        assert service.metrics == ""
        assert not service.context.metrics.listening


async def test_an_address_that_is_taken_is_a_clear_refusal() -> None:
    async with serving(**ADDRESS) as service:
        again = load(None, {"CONVEYOR_METRICS__SCHEDULER": service.metrics})

        @asynccontextmanager
        async def never(_: Context) -> AsyncIterator[Any]:
            raise AssertionError("a store was opened")
            yield

        with pytest.raises(StartError, match="another process uses that port"):
            async with running("scheduler", never, again, "127.0.0.1:0"):
                pass
