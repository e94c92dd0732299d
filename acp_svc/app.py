"""Puts the service together: catalog, sessions with their processes, servicer, and the worker that
answers queue `acp`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING

from acp_svc.counts import Counts, show
from acp_svc.creating import Creator
from acp_svc.doctor import Doctor
from acp_svc.domain.catalog import Catalog, CatalogError, Override
from acp_svc.driving import LAST_WRITE_SECONDS
from acp_svc.opening import Opener
from acp_svc.processes import Processes
from acp_svc.reaping import Reaper
from acp_svc.rpc.service import FULL_NAME, AcpServicer
from acp_svc.sessions import Sessions
from acp_svc.store.prompts import PromptStore
from acp_svc.store.sessions import SessionStore
from acp_svc.turn import TurnRunner
from conveyor.acp.v1 import acp_service_pb2_grpc as acp_grpc
from conveyor.events.v1 import event_log_service_pb2_grpc as log_grpc
from conveyor.scheduler.v1 import limit_service_pb2_grpc as limit_grpc
from conveyor.scheduler.v1 import scheduler_service_pb2_grpc as sched_grpc
from svckit.database import Database
from svckit.errors import StartError
from svckit.grpc.channel import make_channel
from svckit.housekeeping import keep_tidy
from svckit.programs import owner_name
from svckit.service import App, Context, Registered
from svckit.settings import Settings
from svckit.usage import UsageReporter
from svckit.worker import MAX_POLL_RUNS, Worker

if TYPE_CHECKING:
    from conveyor.events.v1.event_log_service_pb2_grpc import EventLogServiceAsyncStub
    from conveyor.scheduler.v1.limit_service_pb2_grpc import LimitServiceAsyncStub
    from conveyor.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceAsyncStub

SLOTS = MAX_POLL_RUNS
"""Turns that the worker takes at a time: more than anybody wants. How many are at work the global
lane bounds, which can be changed live, and how many have a process `max_sessions` does: a run that
finds none waits as for a limit and can say so, which it could not while it waited for a slot."""
STOP_SECONDS = 5.0
"""What a harness that was told to stop and did not takes to be stopped, as `Program.stop` says."""
LAST_REPORTS_SECONDS = 1.0
DRAIN_GRACE_SECONDS = 1.5
"""How long a turn may go on that began before the service was told to stop. Most would take much
longer: they are cancelled, and not sent again."""
DRAIN_TURNS_SECONDS = 2.5
"""When the processes are stopped, whatever the turns do: that takes up to four seconds of the seven
that a service has."""
MIGRATIONS = Path(__file__).parent / "store" / "migrations"


def catalog_of(settings: Settings) -> Catalog:
    """Return the harnesses of the registry as the configuration changes them.

    Raises `StartError` with the key at fault.
    """
    acp = settings.acp
    overrides = {
        harness_id: Override(
            command=harness.command,
            env=harness.env,
            install=harness.install,
            env_names=harness.env_names,
            env_from_file=harness.env_from_file,
            asks=harness.asks,
            skips=harness.skips,
            state=harness.state,
        )
        for harness_id, harness in acp.harness.items()
    }
    try:
        return Catalog.build(overrides, allowed=acp.allowed_harnesses, default=acp.default_harness)
    except CatalogError as error:
        raise StartError(str(error)) from error


@asynccontextmanager
async def build(context: Context) -> AsyncIterator[App]:
    """Open what the service needs, and close it afterwards; a `Build` of `svckit.service`."""
    settings, clock = context.settings, context.clock
    acp = settings.acp
    catalog = catalog_of(settings)
    worker_name = acp.worker_name or gethostname()
    owner = owner_name(settings.store, settings.services.acp, worker_name)
    database = await Database.open(
        settings.store.database("acp"), migrations=MIGRATIONS, name="acp"
    )
    channel = make_channel(settings.services.scheduler, tracer=context.tracer, begins_traces=False)
    store, prompt_store = SessionStore(database), PromptStore(database)
    counts = Counts(context.metrics, catalog.harnesses)
    processes = Processes(
        store,
        Opener(catalog, acp, owner),
        clock,
        worker=worker_name,
        most=acp.max_sessions,
        counts=counts,
    )
    show(context.metrics, store, processes, worker_name)
    try:
        scheduler: SchedulerServiceAsyncStub = sched_grpc.SchedulerServiceStub(channel)
        sessions = Sessions(
            store=store,
            prompts=prompt_store,
            creator=Creator(store, catalog, acp, clock, processes.check_room),
            processes=processes,
            scheduler=scheduler,
            clock=clock,
            cancel_seconds=acp.cancel_seconds,
            workspace_roots=acp.workspace_roots,
        )
        reaper = Reaper(
            sessions,
            processes,
            store,
            prompt_store,
            clock,
            worker=worker_name,
            owner=owner,
            idle_minutes=acp.idle_minutes,
            keep=settings.retention,
        )
        await reaper.recover()
        servicer = AcpServicer(
            catalog,
            sessions,
            Doctor(acp, owner),
            enabled=acp.enabled,
            clock=clock,
        )
        event_log: EventLogServiceAsyncStub = log_grpc.EventLogServiceStub(channel)
        limits: LimitServiceAsyncStub = limit_grpc.LimitServiceStub(channel)
        usage = UsageReporter(limits, clock)
        runner = TurnRunner(
            sessions=sessions,
            catalog=catalog,
            settings=acp,
            scheduler=scheduler,
            event_log=event_log,
            usage=usage,
            clock=clock,
            tracer=context.tracer,
            counts=counts,
            capture_content=settings.telemetry.capture_content,
        )
        worker = Worker(
            channel,
            queue="acp",
            name=worker_name,
            slots=SLOTS,
            handler=runner,
            drain_grace=DRAIN_GRACE_SECONDS,
            stop_seconds=acp.cancel_seconds + STOP_SECONDS + LAST_WRITE_SECONDS,
            clock=clock,
            tracer=context.tracer,
            metrics=context.metrics,
        )

        async def drain() -> None:
            turns = asyncio.create_task(worker.drain(), name="drain turns")
            try:
                # A harness that does not stop its turn must not cost the time to stop itself.
                await asyncio.wait({turns}, timeout=DRAIN_TURNS_SECONDS)
                await processes.drain()
                await turns
            finally:
                turns.cancel()
                await asyncio.gather(turns, return_exceptions=True)
            await usage.drain(LAST_REPORTS_SECONDS)

        yield App(
            services=[
                Registered(
                    FULL_NAME,
                    lambda server: acp_grpc.add_AcpServiceServicer_to_server(servicer, server),
                )
            ],
            tasks=[
                ("worker acp", worker.run),
                ("reaper", reaper.run),
                ("families of processes", reaper.watch_families),
                ("retention", partial(keep_tidy, reaper.remove_old, clock)),
            ],
            drain=drain,
        )
    finally:
        # Once more, for a drain that was cut short: no process outlives the service.
        await processes.drain()
        await channel.close()
        await database.close()
