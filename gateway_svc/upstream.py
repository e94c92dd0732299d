"""The services behind the gateway, as typed stubs whose failures are the suite's own errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import grpc.aio
from opentelemetry import trace

from conveyor.acp.v1.acp_service_pb2_grpc import AcpServiceStub
from conveyor.agent.v1.agent_service_pb2_grpc import AgentServiceStub
from conveyor.events.v1.event_log_service_pb2_grpc import EventLogServiceStub
from conveyor.scheduler.v1.flow_service_pb2_grpc import FlowServiceStub
from conveyor.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceStub
from svckit.backoff import full_jitter
from svckit.grpc.channel import make_channel
from svckit.grpc.client import call
from svckit.grpc.watch import RECONNECT

if TYPE_CHECKING:
    from conveyor.acp.v1.acp_service_pb2_grpc import AcpServiceAsyncStub
    from conveyor.agent.v1.agent_service_pb2_grpc import AgentServiceAsyncStub
    from conveyor.events.v1.event_log_service_pb2_grpc import EventLogServiceAsyncStub
    from conveyor.scheduler.v1.flow_service_pb2_grpc import FlowServiceAsyncStub
    from conveyor.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceAsyncStub

T = TypeVar("T")

PATIENCE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Upstream:
    """Stubs of every service that the gateway calls."""

    scheduler: SchedulerServiceAsyncStub
    flows: FlowServiceAsyncStub
    events: EventLogServiceAsyncStub
    agents: AgentServiceAsyncStub
    acp: AcpServiceAsyncStub


def upstream_of(
    scheduler: grpc.aio.Channel, agent: grpc.aio.Channel, acp: grpc.aio.Channel
) -> Upstream:
    """Return stubs over open channels."""
    return Upstream(
        scheduler=SchedulerServiceStub(scheduler),
        flows=FlowServiceStub(scheduler),
        events=EventLogServiceStub(scheduler),
        agents=AgentServiceStub(agent),
        acp=AcpServiceStub(acp),
    )


@asynccontextmanager
async def open_channels(
    addresses: Mapping[str, str], tracer: trace.Tracer
) -> AsyncIterator[dict[str, grpc.aio.Channel]]:
    """Open a channel to each address, under the same names, and close them on leaving."""
    channels = {
        name: make_channel(address, tracer=tracer, begins_traces=False)
        for name, address in addresses.items()
    }
    try:
        yield channels
    finally:
        for channel in channels.values():
            await channel.close()


async def patiently(start: Callable[[], Awaitable[T]], service: str) -> T:
    """Make a call that may be repeated, until somebody answers or `PATIENCE_SECONDS` are over.

    For calls in the middle of a stream: a neighbour that restarts should not end it.
    """
    pauses = full_jitter(0.2, 2.0)
    deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
    while True:
        try:
            return await call(start(), service=service)
        except RECONNECT:
            pause = next(pauses)
            if asyncio.get_running_loop().time() + pause > deadline:
                raise
            await asyncio.sleep(pause)
