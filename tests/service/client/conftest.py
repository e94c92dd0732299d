"""A gateway that says what the test told it to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

# Makes the service known to the scripted servicer.
from conveyor.gateway.v1 import gateway_service_pb2_grpc as _gateway_grpc  # noqa: F401
from svckit.testing import ScriptedServicer, memory_tracer, scripted_server

GATEWAY = "conveyor.gateway.v1.GatewayService"


@dataclass
class Gateway:
    """Its address and its script."""

    address: str
    script: ScriptedServicer


@pytest.fixture
async def traced_gateway() -> AsyncIterator[Gateway]:
    """One whose calls have traces."""
    script = ScriptedServicer(GATEWAY)
    async with scripted_server(script, tracer=memory_tracer()[0]) as (address, _):
        yield Gateway(address, script)


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    script = ScriptedServicer(GATEWAY)
    async with scripted_server(script) as (address, _):
        yield Gateway(address, script)
