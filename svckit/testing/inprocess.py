"""Runs a real service inside the test: same start, same boundary, same drain."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from grpc import aio
from opentelemetry import trace

from svckit.clock import Clock
from svckit.grpc.channel import make_channel
from svckit.service import App, Build, Context, running
from svckit.settings import Settings

ADDRESSES = ("scheduler", "agent", "acp")
NOBODY = "127.0.0.1:1"
"""Where nobody listens: a call is refused at once."""


@dataclass(frozen=True)
class InProcess:
    """A running service. `channel` is closed with it. `metrics`: where it answers for them."""

    address: str
    channel: aio.Channel
    app: App
    context: Context
    metrics: str = ""


@asynccontextmanager
async def in_process(
    build: Build,
    settings: Settings,
    address: str = "127.0.0.1:0",
    *,
    name: str = "test",
    clock: Clock | None = None,
    tracer: trace.Tracer | None = None,
    interceptors: Sequence[aio.ServerInterceptor] = (),
    client_interceptors: Sequence[aio.ClientInterceptor] = (),
) -> AsyncIterator[InProcess]:
    """Run a service for the block and drain it afterwards.

    A background task that died meanwhile fails the test when the block ends. Other services are
    where `settings` say, and nowhere when they do not: a suite that runs on this machine at the
    usual addresses has nothing to do with a test.
    """
    settings = _apart(settings)
    async with running(
        name, build, settings, address, clock=clock, tracer=tracer, interceptors=interceptors
    ) as service:
        channel = make_channel(service.address, tracer=tracer, interceptors=client_interceptors)
        try:
            yield InProcess(
                service.address, channel, service.app, service.context, service.metrics_address
            )
        finally:
            await channel.close()
        if service.failed.done():
            raise AssertionError(f"background task {service.failed.result()!r} died")


def _apart(settings: Settings) -> Settings:
    services = settings.services
    nowhere = {name: NOBODY for name in ADDRESSES if name not in services.model_fields_set}
    return settings.model_copy(update={"services": services.model_copy(update=nowhere)})


def free_port() -> int:
    """Return a loopback port that is free now. Prefer port 0 where the service can tell its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
