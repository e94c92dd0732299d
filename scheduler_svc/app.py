"""The composition root of the scheduler: store, engine, servicers, background tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from conveyor.events.v1 import event_log_service_pb2_grpc as events_grpc
from conveyor.scheduler.v1 import flow_service_pb2_grpc as flow_grpc
from conveyor.scheduler.v1 import limit_service_pb2_grpc as limit_grpc
from conveyor.scheduler.v1 import scheduler_service_pb2_grpc as scheduler_grpc
from conveyor.scheduler.v1 import worker_service_pb2_grpc as worker_grpc
from scheduler_svc.counts import Counts, Standing
from scheduler_svc.domain.kernel import Config
from scheduler_svc.domain.limits import ProviderRates
from scheduler_svc.domain.records import SECOND, RetryPolicy
from scheduler_svc.engine import Engine
from scheduler_svc.forecast.desk import Desk
from scheduler_svc.leadership import Leadership
from scheduler_svc.places import Places
from scheduler_svc.retention import remove_old
from scheduler_svc.rpc.events import EventLogServicer
from scheduler_svc.rpc.flow import FlowServicer
from scheduler_svc.rpc.guard import LeaderGuard
from scheduler_svc.rpc.limits import LimitServicer
from scheduler_svc.rpc.scheduler import SchedulerServicer
from scheduler_svc.rpc.validate import NewRunDefaults
from scheduler_svc.rpc.worker import WorkerServicer
from scheduler_svc.spans import Spans
from scheduler_svc.store.base import LaneStore, SharedStore
from svckit.housekeeping import keep_tidy
from svckit.metrics import definitions
from svckit.service import App, Context, Registered, StartError
from svckit.settings import Settings


def address_of(settings: Settings) -> str:
    """Where this scheduler listens. Raises `StartError` when it cannot be one of several."""
    schedulers = settings.services.schedulers
    if len(schedulers) > 1:
        _check_several(settings)
    if settings.scheduler.listen:
        return settings.scheduler.listen
    if len(schedulers) > 1:
        raise StartError(
            f"services.scheduler names {len(schedulers)} schedulers; say which of them this one "
            f"is, for example CONVEYOR_SCHEDULER__LISTEN={schedulers[0]}"
        )
    return schedulers[0]


def _check_several(settings: Settings) -> None:
    if not settings.store.url.startswith("postgresql:"):
        raise StartError(
            "services.scheduler: several schedulers share one store, which has to be PostgreSQL "
            "(store.url); with another one, name one address"
        )
    if settings.runs.lease_seconds < 2 * settings.store.leader_lease_seconds:
        raise StartError(
            "runs.lease_seconds must be at least twice store.leader_lease_seconds "
            f"({settings.store.leader_lease_seconds:g}), so that no worker loses its turn while "
            "another scheduler takes over"
        )


@asynccontextmanager
async def build(context: Context) -> AsyncIterator[App]:
    """Opens the store and yields the scheduler; closes the store at the end.

    With a store that several schedulers share it stands by until it leads.
    """
    settings = context.settings
    shared = make_shared_store(settings)
    store = shared or make_store(settings)
    rules = config(settings)
    engine = Engine(
        store,
        rules,
        context.clock,
        context.set_serving,
        counts=Counts(context.metrics, rules.lanes),
        spans=make_spans(context),
    )
    if shared is None:
        await engine.start()
        context.metrics.counter(definitions.LEADERSHIPS).add()
    else:
        await shared.acquire()
        engine.stand_by()
        context.set_serving(False, alive=True)
    try:
        app = make_app(engine, context)
        yield with_leadership(app, engine, shared, context) if shared else app
    finally:
        await asyncio.shield(engine.close())


def with_leadership(app: App, engine: Engine, store: SharedStore, context: Context) -> App:
    """The same scheduler as one of several: it serves while it leads."""
    settings = context.settings
    led = context.metrics.counter(definitions.LEADERSHIPS)

    def tell(leads: bool) -> None:
        led.add(by=leads)
        context.set_serving(leads, alive=True)

    leadership = Leadership(
        engine,
        store,
        ttl=settings.store.leader_lease_seconds,
        address=lambda: advertised(settings, context.address),
        tell=tell,
    )

    async def drain() -> None:
        if app.drain is not None:
            await app.drain()
        await leadership.leave()

    async def forget(now_us: int) -> int:
        return await remove_old(store, settings.retention, now_us) if leadership.leads else 0

    return App(
        services=app.services,
        tasks=[
            ("leadership", leadership.run),
            ("retention", partial(keep_tidy, forget, context.clock)),
            ("places", Places(engine, context.clock).run),
        ],
        drain=drain,
        ready=leadership.settled,
        interceptors=[LeaderGuard(leadership)],
    )


def advertised(settings: Settings, bound: str) -> str:
    """How others reach this scheduler, in their own words if they can be known."""
    schedulers = settings.services.schedulers
    if settings.scheduler.advertise:
        return settings.scheduler.advertise
    if len(schedulers) == 1 and not schedulers[0].endswith(":0"):
        return schedulers[0]
    return bound


def make_app(engine: Engine, context: Context, desk: Desk | None = None) -> App:
    """The servicers over an engine, and the tasks that keep it going."""
    settings = context.settings
    desk = desk or Desk(context.clock)
    Standing(engine, context.metrics)

    async def drain() -> None:
        engine.drain()
        desk.close()

    forget = partial(remove_old, engine.store, settings.retention)
    return App(
        services=[
            Registered(
                "conveyor.scheduler.v1.SchedulerService",
                partial(
                    scheduler_grpc.add_SchedulerServiceServicer_to_server,
                    SchedulerServicer(engine, defaults(settings), desk),
                ),
            ),
            Registered(
                "conveyor.scheduler.v1.WorkerService",
                partial(worker_grpc.add_WorkerServiceServicer_to_server, WorkerServicer(engine)),
            ),
            Registered(
                "conveyor.scheduler.v1.FlowService",
                partial(flow_grpc.add_FlowServiceServicer_to_server, FlowServicer(engine)),
            ),
            Registered(
                "conveyor.scheduler.v1.LimitService",
                partial(limit_grpc.add_LimitServiceServicer_to_server, LimitServicer(engine)),
            ),
            Registered(
                "conveyor.events.v1.EventLogService",
                partial(
                    events_grpc.add_EventLogServiceServicer_to_server, EventLogServicer(engine)
                ),
            ),
        ],
        tasks=[
            ("engine", engine.run),
            ("retention", partial(keep_tidy, forget, context.clock)),
            ("places", Places(engine, context.clock).run),
        ],
        drain=drain,
    )


def make_spans(context: Context) -> Spans:
    """What the scheduler tells of itself in traces."""
    return Spans(context.tracer, links=context.settings.telemetry.continuation == "link")


def make_shared_store(settings: Settings) -> SharedStore | None:
    """The store that `store.url` names, if several schedulers can share it."""
    if not settings.store.url.startswith("postgresql:"):
        return None
    from scheduler_svc.store.postgres import PostgresStore

    return PostgresStore(settings.store.postgres)


def make_store(settings: Settings) -> LaneStore:
    """The store that `store.url` names, for one scheduler alone."""
    url = settings.store.url
    if url.startswith("memory:"):
        from scheduler_svc.store.memory import MemoryStore

        return MemoryStore()
    if url.startswith("sqlite:"):
        from scheduler_svc.store.sqlite import SqliteStore

        return SqliteStore(settings.store.file("scheduler"))
    from scheduler_svc.store.postgres import PostgresStore

    return PostgresStore(settings.store.postgres, leads=settings.store.leader_lease_seconds)


def config(settings: Settings) -> Config:
    """What the configuration says about the rules."""
    subagents = settings.agents.defaults.subagents
    limits = {name: lane.limit for name, lane in settings.lanes.all().items()}
    if subagents.max_concurrent is not None:  # another name for the same limit
        limits["subagent"] = subagents.max_concurrent
    return Config(
        lanes=limits,
        lease_ttl=round(settings.runs.lease_seconds * SECOND),
        max_depth=subagents.max_spawn_depth,
        max_children=subagents.max_children_per_agent,
        max_descendants=subagents.max_descendants,
        providers={
            provider_id: ProviderRates(
                requests_per_minute=provider.requests_per_minute,
                tokens_per_minute=provider.tokens_per_minute,
                per_model=provider.rates_per_model,
            )
            for provider_id, provider in settings.providers.items()
        },
        weights={key: customer.weight for key, customer in settings.customers.items()},
        expected_turns={
            name: round(lane.expected_turn_seconds * SECOND)
            for name, lane in settings.lanes.all().items()
        },
    )


def defaults(settings: Settings) -> NewRunDefaults:
    """What the configuration fills into a new run."""
    runs = settings.runs
    return NewRunDefaults(
        RetryPolicy(
            max_attempts=runs.max_attempts,
            initial_backoff=round(runs.backoff.initial_seconds * SECOND),
            max_backoff=round(runs.backoff.max_seconds * SECOND),
            multiplier=runs.backoff.multiplier,
        ),
        queue_timeout=round(runs.queue_timeout_seconds * SECOND),
        run_timeout=round(runs.run_timeout_seconds * SECOND),
        lane_cap=settings.lanes.session.cap,
    )
