"""What the channel repeats, and faults on purpose."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from conveyor.events.v1 import event_log_service_pb2 as log_pb2
from conveyor.events.v1 import event_log_service_pb2_grpc as log_grpc
from conveyor.scheduler.v1 import worker_service_pb2 as ws
from conveyor.scheduler.v1 import worker_service_pb2_grpc as ws_grpc
from svckit.errors import (
    AcpBackendUnavailable,
    LaneFull,
    ModelUnavailable,
    ShuttingDown,
    StoreUnavailable,
    Unreachable,
)
from svckit.grpc import methods
from svckit.grpc.channel import make_channel
from svckit.grpc.client import call
from svckit.grpc.server import bind, make_server
from svckit.testing import FaultInjector, ScriptedServicer, eventually, free_port, scripted_server

LOG = "conveyor.events.v1.EventLogService"
WORKER = "conveyor.scheduler.v1.WorkerService"


async def test_unavailable_is_repeated_and_other_codes_are_not() -> None:
    script = ScriptedServicer(LOG)
    script.queue("ListEvents", ShuttingDown("bye"), StoreUnavailable("x"), LaneFull("full"))
    async with scripted_server(script) as (_, channel):
        log = log_grpc.EventLogServiceStub(channel)
        with pytest.raises(LaneFull):
            await call(log.ListEvents(log_pb2.ListEventsRequest()))
    assert len(script.calls["ListEvents"]) == 3


async def test_that_something_else_is_away_is_an_answer_and_not_repeated() -> None:
    for error in (AcpBackendUnavailable("no"), ModelUnavailable("no")):
        script = ScriptedServicer(LOG)
        script.always("ListEvents", error)
        async with scripted_server(script) as (_, channel):
            log = log_grpc.EventLogServiceStub(channel)
            with pytest.raises(type(error)):
                await call(log.ListEvents(log_pb2.ListEventsRequest()))
        assert len(script.calls["ListEvents"]) == 1


async def test_a_lease_is_never_repeated() -> None:
    script = ScriptedServicer(WORKER)
    script.always("LeaseRuns", ShuttingDown("bye"))
    async with scripted_server(script) as (_, channel):
        worker = ws_grpc.WorkerServiceStub(channel)
        with pytest.raises(ShuttingDown):
            await call(worker.LeaseRuns(ws.LeaseRunsRequest()))
    assert len(script.calls["LeaseRuns"]) == 1


async def test_a_call_finds_a_server_that_comes_a_moment_later() -> None:
    address = f"127.0.0.1:{free_port()}"
    script = ScriptedServicer(LOG)
    script.always("ListEvents", log_pb2.ListEventsResponse(next_page_token="x"))
    channel = make_channel(address)
    waiting = asyncio.ensure_future(
        call(log_grpc.EventLogServiceStub(channel).ListEvents(log_pb2.ListEventsRequest()))
    )
    await eventually(lambda: channel.get_state().name == "TRANSIENT_FAILURE")
    async with scripted_server(script, address=address):
        assert (await waiting).next_page_token == "x"
    await channel.close()


def test_deadlines_follow_the_contract() -> None:
    poll = ws.LeaseRunsRequest()
    poll.wait.FromSeconds(20)
    prefix = f"/{WORKER}/"
    assert methods.default_timeout(prefix + "LeaseRuns", poll) == 25
    assert methods.default_timeout(prefix + "ExtendLeases") == 5
    assert methods.default_timeout(prefix + "CompleteRuns") == 10
    assert methods.default_timeout("/conveyor.acp.v1.AcpService/Doctor") == 60
    assert methods.default_timeout("/conveyor.gateway.v1.GatewayService/ExecuteCommand") == 60


def test_every_service_of_the_contract_is_in_the_retry_table() -> None:
    protos = Path(__file__).parents[3] / "protos"
    services = {
        f"conveyor.{path.parent.parent.name}.v1.{line.split()[1]}"
        for path in protos.rglob("*.proto")
        for line in path.read_text("utf-8").splitlines()
        if line.startswith("service ")
    }
    assert services == set(methods.SERVICES)


@contextlib.asynccontextmanager
async def faulty(server: FaultInjector, client: FaultInjector) -> AsyncIterator[Any]:
    script = ScriptedServicer(LOG)
    script.always("AppendEvents", log_pb2.AppendEventsResponse(last_sequence=1))
    script.always("ListEvents", log_pb2.ListEventsResponse())
    serving = make_server(interceptors=[server.server])
    script.add_to(serving)
    port = bind(serving, "127.0.0.1:0")
    await serving.start()
    channel = make_channel(f"127.0.0.1:{port}", interceptors=client.client)
    try:
        yield script, log_grpc.EventLogServiceStub(channel)
    finally:
        await channel.close()
        await serving.stop(None)


async def test_a_lost_answer_is_asked_for_again() -> None:
    faults = FaultInjector()
    lost = faults.drop_response("AppendEvents")
    async with faulty(faults, FaultInjector()) as (script, log):
        answer = await call(log.AppendEvents(log_pb2.AppendEventsRequest()))
    assert answer.last_sequence == 1
    assert (lost.hits, len(script.calls["AppendEvents"])) == (1, 2)


async def test_failing_and_holding_back_at_the_server() -> None:
    faults = FaultInjector()
    faults.fail("ListEvents", error=LaneFull("full"))
    held = faults.delay("ListEvents", 60, nth=2)
    async with faulty(faults, FaultInjector()) as (script, log):
        with pytest.raises(LaneFull):
            await call(log.ListEvents(log_pb2.ListEventsRequest()))
        waiting = asyncio.ensure_future(call(log.ListEvents(log_pb2.ListEventsRequest())))
        await eventually(lambda: held.hits)
        assert not script.calls["ListEvents"]
        faults.clear()
        await waiting


async def test_faults_at_the_client() -> None:
    faults = FaultInjector()
    faults.fail("AppendEvents", nth=1)
    faults.drop_response("AppendEvents", nth=2)
    faults.fail("WatchEvents", error=ShuttingDown("bye"))
    async with faulty(FaultInjector(), faults) as (script, log):
        for done in (0, 1):
            with pytest.raises(Unreachable):
                await call(log.AppendEvents(log_pb2.AppendEventsRequest()))
            assert len(script.calls["AppendEvents"]) == done
        with pytest.raises(ShuttingDown):
            await call(log.WatchEvents(log_pb2.WatchEventsRequest()).read())


async def test_a_script_that_was_not_used_up_fails_the_test() -> None:
    script = ScriptedServicer(LOG)
    with pytest.raises(ValueError, match="has no method Appendevents"):
        script.queue("Appendevents", None)
    script.queue("ListEvents", log_pb2.ListEventsResponse())
    with pytest.raises(AssertionError, match="never asked for"):
        async with scripted_server(script):
            pass
