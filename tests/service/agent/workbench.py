"""The agent's turn runner on a test's bench: no worker around it, and a store that may crash."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from opentelemetry import trace

from agent_svc.agents import Agents
from agent_svc.app import MIGRATIONS
from agent_svc.domain import steps as s
from agent_svc.harnesses import HarnessList
from agent_svc.models.catalog import Catalog
from agent_svc.prices import Prices
from agent_svc.reserving import Reserver
from agent_svc.spawning import Spawner
from agent_svc.store.transcripts import Transcripts
from agent_svc.toolsets import Toolset
from agent_svc.turn import TurnRunner
from agent_svc.windows import Windows
from conveyor.acp.v1 import acp_service_pb2_grpc as acp_grpc
from conveyor.events.v1 import event_log_service_pb2_grpc as log_grpc
from conveyor.scheduler.v1 import limit_service_pb2_grpc as limit_grpc
from conveyor.scheduler.v1 import scheduler_service_pb2_grpc as sched_grpc
from conveyor.scheduler.v1 import worker_service_pb2 as ws
from svckit.clock import SystemClock
from svckit.database import Database
from svckit.grpc.channel import make_channel
from svckit.settings import load
from svckit.turn import LeasedTurn, Outcome
from svckit.usage import UsageReporter
from tests.service.agent.fake_scheduler import FakeScheduler


class Crash(Exception):
    """The process died here."""


class CrashingStore(Transcripts):
    """Dies at the n-th call that stores steps, before or after it took effect."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.die_at = 0
        self.after = False
        self.stored: list[s.Record] = []

    async def add_steps(self, run_id: str, *args: Any, **kwargs: Any) -> None:
        records = args[3]
        self.die_at -= 1
        if self.die_at == 0 and not self.after:
            raise Crash
        await super().add_steps(run_id, *args, **kwargs)
        self.stored.extend(records)
        if self.die_at == 0:
            raise Crash


class Bench:
    """The turn runner without its worker: an attempt is a call."""

    def __init__(self, scheduler: FakeScheduler, store: CrashingStore, runner: TurnRunner) -> None:
        self.scheduler = scheduler
        self.store = store
        self.runner = runner

    async def attempt(self, leased: ws.LeasedRun) -> Outcome:
        return await self.runner(LeasedTurn(leased))


@contextlib.asynccontextmanager
async def a_bench(
    scheduler: FakeScheduler, config: Path, url: str, toolsets: Sequence[Toolset] = ()
) -> AsyncIterator[Bench]:
    """Set a bench up with a configuration and a database."""
    settings, clock = load(config, {}), SystemClock()
    agents, catalog = Agents(settings), Catalog(settings, clock)
    channel = make_channel(scheduler.address)  # type: ignore[attr-defined]
    database = await Database.open(url, migrations=MIGRATIONS, name="agent")
    store = CrashingStore(database)
    limits = limit_grpc.LimitServiceStub(channel)
    usage = UsageReporter(limits, clock)
    runner = TurnRunner(
        store=store,
        agents=agents,
        catalog=catalog,
        spawner=Spawner(
            sched_grpc.SchedulerServiceStub(channel),
            agents,
            catalog,
            Windows({}),
            HarnessList(acp_grpc.AcpServiceStub(channel), settings.acp, clock),
        ),
        usage=usage,
        reserver=Reserver(limits, usage, Prices(settings.providers), settings, clock),
        windows=Windows(settings.providers),
        event_log=log_grpc.EventLogServiceStub(channel),
        clock=clock,
        tracer=trace.get_tracer("test"),
        toolsets=toolsets,
    )
    yield Bench(scheduler, store, runner)
    await usage.drain(0)
    await catalog.close()
    await channel.close()
    await database.close()
