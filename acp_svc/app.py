"""Puts the service together: catalog, servicer, and the worker that answers queue `acp`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from acp_svc.domain.catalog import Catalog, CatalogError, Override
from acp_svc.prompts import Prompts
from acp_svc.rpc.service import FULL_NAME, AcpServicer
from conveyor.acp.v1 import acp_service_pb2_grpc as acp_grpc
from svckit.errors import StartError
from svckit.grpc.channel import make_channel
from svckit.service import App, Context, Registered
from svckit.settings import Settings
from svckit.worker import Worker

WORKER_NAME = "acp-0"


def catalog_of(settings: Settings) -> Catalog:
    """Return the harnesses of the registry as the configuration changes them.

    Raises `StartError` with the key at fault.
    """
    acp = settings.acp
    overrides = {
        harness_id: Override(harness.command, harness.env, harness.install)
        for harness_id, harness in acp.harness.items()
    }
    try:
        return Catalog.build(overrides, allowed=acp.allowed_harnesses, default=acp.default_harness)
    except CatalogError as error:
        raise StartError(str(error)) from error


@asynccontextmanager
async def build(context: Context) -> AsyncIterator[App]:
    """Open what the service needs; a `Build` of `svckit.service`."""
    settings = context.settings
    acp = settings.acp
    catalog = catalog_of(settings)
    servicer = AcpServicer(
        catalog, enabled=acp.enabled, workspace_roots=acp.workspace_roots, clock=context.clock
    )
    prompts = Prompts(catalog, enabled=acp.enabled, workspace_roots=acp.workspace_roots)
    channel = make_channel(settings.services.scheduler, tracer=context.tracer)
    try:
        worker = Worker(
            channel,
            queue="acp",
            name=WORKER_NAME,
            slots=acp.max_sessions,
            handler=prompts.handle,
            clock=context.clock,
            tracer=context.tracer,
        )
        yield App(
            services=[
                Registered(
                    FULL_NAME,
                    lambda server: acp_grpc.add_AcpServiceServicer_to_server(servicer, server),
                )
            ],
            tasks=[("worker acp", worker.run)],
            drain=worker.drain,
        )
    finally:
        await channel.close()
