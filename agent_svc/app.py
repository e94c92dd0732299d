"""Composition root of the agent service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING

from agent_svc.agents import Agent, Agents
from agent_svc.counts import Counts
from agent_svc.harnesses import HarnessList
from agent_svc.mcp.toolset import McpTools
from agent_svc.models.catalog import Catalog
from agent_svc.outside import Outside
from agent_svc.prices import Prices
from agent_svc.probing import Prober
from agent_svc.reserving import Reserver
from agent_svc.retention import Retention
from agent_svc.rpc.service import AgentServicer
from agent_svc.sessions import SessionTools
from agent_svc.spawning import Spawner
from agent_svc.standing import StandingReader
from agent_svc.store.probes import ProbeReports
from agent_svc.store.transcripts import Transcripts
from agent_svc.toolsets import Toolset
from agent_svc.turn import TurnRunner
from agent_svc.windows import Windows
from conveyor.acp.v1 import acp_service_pb2_grpc as acp_grpc
from conveyor.agent.v1 import agent_service_pb2_grpc as agent_grpc
from conveyor.events.v1 import event_log_service_pb2_grpc as log_grpc
from conveyor.scheduler.v1 import flow_service_pb2_grpc as flow_grpc
from conveyor.scheduler.v1 import limit_service_pb2_grpc as limit_grpc
from conveyor.scheduler.v1 import scheduler_service_pb2_grpc as sched_grpc
from svckit.database import Database
from svckit.errors import ModelNotFound, StartError
from svckit.grpc.channel import make_channel
from svckit.housekeeping import keep_tidy
from svckit.service import App, Context, Registered
from svckit.settings import Settings
from svckit.usage import UsageReporter
from svckit.worker import Worker

if TYPE_CHECKING:
    from conveyor.acp.v1.acp_service_pb2_grpc import AcpServiceAsyncStub
    from conveyor.events.v1.event_log_service_pb2_grpc import EventLogServiceAsyncStub
    from conveyor.scheduler.v1.flow_service_pb2_grpc import FlowServiceAsyncStub
    from conveyor.scheduler.v1.limit_service_pb2_grpc import LimitServiceAsyncStub
    from conveyor.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceAsyncStub

SERVICE = "conveyor.agent.v1.AgentService"
QUEUE = "agent"
MIGRATIONS = Path(__file__).parent / "store" / "migrations"
LAST_REPORTS_SECONDS = 1.0


def address_of(settings: Settings) -> str:
    """Where the service listens."""
    return settings.agent.listen or settings.services.agent


@asynccontextmanager
async def build(context: Context) -> AsyncIterator[App]:
    """Open everything the service needs, and close it afterwards."""
    settings, clock = context.settings, context.clock
    agents = Agents(settings)
    catalog = Catalog(settings, clock)
    _check_models(agents, catalog)
    tool_servers = McpTools(settings, clock)
    database = await Database.open(
        settings.store.database("agent"), migrations=MIGRATIONS, name="agent"
    )
    channel = make_channel(settings.services.scheduler, tracer=context.tracer, begins_traces=False)
    acp_channel = make_channel(settings.services.acp, tracer=context.tracer, begins_traces=False)
    try:
        await tool_servers.clear_up()
        store = Transcripts(database)
        scheduler: SchedulerServiceAsyncStub = sched_grpc.SchedulerServiceStub(channel)
        event_log: EventLogServiceAsyncStub = log_grpc.EventLogServiceStub(channel)
        limits: LimitServiceAsyncStub = limit_grpc.LimitServiceStub(channel)
        usage = UsageReporter(limits, clock)
        flows: FlowServiceAsyncStub = flow_grpc.FlowServiceStub(channel)
        toolsets: list[Toolset] = [
            SessionTools(scheduler, flows, event_log, store, clock),
            tool_servers,
        ]
        acp: AcpServiceAsyncStub = acp_grpc.AcpServiceStub(acp_channel)
        harnesses = HarnessList(acp, settings.acp, clock)
        prices, windows = Prices(settings.providers), Windows(settings.providers)
        runner = TurnRunner(
            store=store,
            agents=agents,
            catalog=catalog,
            spawner=Spawner(scheduler, agents, catalog, windows, harnesses),
            usage=usage,
            reserver=Reserver(limits, usage, prices, settings, clock),
            windows=windows,
            event_log=event_log,
            clock=clock,
            tracer=context.tracer,
            toolsets=toolsets,
            capture_content=settings.telemetry.capture_content,
            counts=Counts(context.metrics, sorted(_all_models(agents))),
        )
        worker = Worker(
            channel,
            queue=QUEUE,
            name=settings.agent.worker_name or gethostname(),
            slots=settings.agent.slots,
            handler=runner,
            clock=clock,
            tracer=context.tracer,
            metrics=context.metrics,
        )
        standing = StandingReader(scheduler, store, clock)
        reports = ProbeReports(database)
        outside = Outside(limits, usage, prices, settings, clock)
        servicer = AgentServicer(
            store=store,
            agents=agents,
            catalog=catalog,
            windows=windows,
            standing=standing,
            clock=clock,
            toolsets=toolsets,
            prober=Prober(catalog, outside, reports, toolsets, clock, context.tracer),
            reports=reports,
        )
        retention = Retention(store, standing, settings.retention)

        async def drain() -> None:
            await worker.drain()
            await usage.drain(LAST_REPORTS_SECONDS)

        yield App(
            services=[
                Registered(
                    SERVICE,
                    lambda server: agent_grpc.add_AgentServiceServicer_to_server(servicer, server),
                )
            ],
            tasks=[
                ("agent worker", worker.run),
                ("retention", partial(keep_tidy, retention.remove_old, clock)),
            ],
            drain=drain,
        )
    finally:
        await tool_servers.close()
        await catalog.close()
        await acp_channel.close()
        await channel.close()
        await database.close()


def _check_models(agents: Agents, catalog: Catalog) -> None:
    """A model that does not exist is a mistake of the configuration: say so before any turn."""
    for agent in agents.all():
        key = f"agents.list.{agent.agent_id}"
        for name in _models_of(agent):
            if not name:
                continue
            try:
                catalog.get(name)
            except ModelNotFound as err:
                raise StartError(f"{key} (or agents.defaults): {err.message}") from err


def _all_models(agents: Agents) -> set[str]:
    return {name for agent in agents.all() for name in _models_of(agent) if name}


def _models_of(agent: Agent) -> list[str]:
    own = agent.settings
    return [*agent.models(), own.subagents.model, own.guard.fallback_model]
