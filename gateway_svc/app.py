"""Composition root of the gateway: what is built from what, in one place."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from conveyor.gateway.v1.gateway_service_pb2_grpc import add_GatewayServiceServicer_to_server
from gateway_svc.about import About
from gateway_svc.auth import Door
from gateway_svc.bindings import Bindings
from gateway_svc.commands import Commands
from gateway_svc.commands.asked import Services
from gateway_svc.config import (
    announce_styles,
    archive_after,
    reachable_from_outside,
    refuse_unsupported,
    routing_rules,
    token_holders,
)
from gateway_svc.conversations import Conversations
from gateway_svc.delivery.channel import Channel
from gateway_svc.delivery.dispatcher import Dispatcher
from gateway_svc.delivery.follower import Follower
from gateway_svc.domain.origin import origin_rules
from gateway_svc.harness_runs import HarnessRuns
from gateway_svc.harness_sessions import HarnessSessions
from gateway_svc.harness_spawning import HarnessSpawning
from gateway_svc.hook_settings import hooks_of
from gateway_svc.hooks import Hooks, HookServices
from gateway_svc.http.edge import Edge
from gateway_svc.http.health import Readiness, build_health_router
from gateway_svc.http.routes import build_router
from gateway_svc.http.server import build_web
from gateway_svc.inbox import Inbox
from gateway_svc.intake import Intake
from gateway_svc.operations import Operations
from gateway_svc.questions import Questions
from gateway_svc.retention import remove_old
from gateway_svc.rpc.gateway import FULL_NAME, GatewayServicer
from gateway_svc.rpc.guard import Guard
from gateway_svc.store import outbox
from gateway_svc.tls import load_tls
from gateway_svc.upstream import open_channels, upstream_of
from gateway_svc.use_cases import UseCases
from gateway_svc.watching.announcements import AnnouncementWatcher
from gateway_svc.watching.chat import ChatService
from gateway_svc.watching.lanes import SpawnedLanes
from gateway_svc.watching.log import EventLog
from gateway_svc.watching.session import SessionWatcher
from svckit.database import Database
from svckit.errors import StoreUnavailable
from svckit.housekeeping import keep_tidy
from svckit.logging import get_logger
from svckit.metrics import definitions
from svckit.service import App, Build, Context, Registered
from svckit.web import WebServer, bind_http

MIGRATIONS = Path(__file__).parent / "store" / "migrations"

log = get_logger(__name__)


@dataclass
class GatewayApp(App):
    """The gateway's app. `http_address` has the port that was bound."""

    http_address: str = ""


def builder(channels: Sequence[Channel] = ()) -> Build:
    """Return the composition root with these push channels."""
    by_name = {channel.name: channel for channel in channels}

    @asynccontextmanager
    async def build_with_channels(context: Context) -> AsyncIterator[App]:
        async with AsyncExitStack() as stack:
            yield await _build(context, by_name, stack)

    return build_with_channels


build: Build = builder()


async def _build(
    context: Context, channels: Mapping[str, Channel], stack: AsyncExitStack
) -> GatewayApp:
    settings, draining, clock = context.settings, context.draining, context.clock
    metrics = context.metrics
    refuse_unsupported(settings, served=channels)
    door = Door(token_holders(settings), time.monotonic, metrics)
    tls = load_tls(settings.gateway.tls)
    hooks = hooks_of(settings)
    if tls is None and reachable_from_outside(settings):
        log.warning(
            "tokens come in plain text unless something in front encrypts; see gateway.tls",
            http=settings.gateway.http,
            grpc=settings.gateway.grpc,
        )
    bound = bind_http(settings.gateway.http)
    stack.callback(bound.close)
    database = await Database.open(
        settings.store.database("gateway"), migrations=MIGRATIONS, name="gateway"
    )
    stack.push_async_callback(database.close)
    addresses = settings.services
    neighbours = await stack.enter_async_context(
        open_channels(
            {"scheduler": addresses.scheduler, "agent": addresses.agent, "acp": addresses.acp},
            context.tracer,
        )
    )
    upstream = upstream_of(neighbours["scheduler"], neighbours["agent"], neighbours["acp"])

    rules = replace(routing_rules(settings), holders=door.holders)
    event_log = EventLog(upstream)
    dispatcher = Dispatcher(
        database,
        channels,
        clock,
        metrics=metrics,
        tracer=context.tracer,
        kinds={name: channel.kind for name, channel in settings.channels.items()},
    )
    bindings = Bindings(database, upstream, clock)
    conversations = Conversations(database, upstream, event_log, bindings, rules, clock)
    operations, questions = Operations(upstream), Questions(upstream)
    intake = Intake(
        database,
        upstream,
        clock,
        context.tracer,
        capture_content=settings.telemetry.capture_content,
    )
    harness_runs = HarnessRuns(database, upstream, intake, rules)
    lanes = SpawnedLanes(database, clock, settings.acp.idle_minutes * 60)
    spawning = HarnessSpawning(database, upstream, harness_runs, bindings, lanes, rules, clock)
    harness_sessions = HarnessSessions(
        database,
        upstream,
        harness_runs,
        spawning,
        bindings,
        event_log,
        rules,
        archive_after(settings),
        clock,
    )
    services = Services(
        database=database,
        intake=intake,
        operations=operations,
        conversations=conversations,
        questions=questions,
        harness_sessions=harness_sessions,
        event_log=event_log,
        rules=rules,
        clock=clock,
        tracer=context.tracer,
        providers=frozenset(settings.providers),
    )
    commands = Commands(services, channels, dispatcher.wake)
    inbox = Inbox(database, intake, bindings, rules, clock, commands, metrics)
    use_cases = UseCases(
        inbox=inbox,
        chats=ChatService(inbox, event_log, upstream, draining),
        sessions=SessionWatcher(event_log, upstream, conversations, lanes, draining),
        announcements=AnnouncementWatcher(event_log, upstream, conversations, draining),
        conversations=conversations,
        operations=operations,
        questions=questions,
        harness_sessions=harness_sessions,
        hooks=Hooks(
            hooks,
            HookServices(
                inbox,
                operations,
                harness_sessions,
                database,
                rules,
                clock,
                door.count,
                context.tracer,
            ),
        ),
        about=About(settings.telemetry.ui_url, clock.now_us()),
    )

    styles = announce_styles(settings)
    follower = Follower(
        database, upstream, event_log, channels, styles, archive_after(settings), dispatcher.wake
    )

    forget = partial(remove_old, database, settings.retention)
    waiting = metrics.gauge(definitions.DELIVERIES_PENDING)

    async def count_waiting() -> None:
        with suppress(StoreUnavailable):  # what it said before stands: the rest can be told
            found = await database.run(outbox.count_pending)
            for channel in {*channels, *found}:
                waiting.set(found.get(channel, 0), channel)

    metrics.before(count_waiting)
    metrics.read(definitions.DELIVERY_POSITION, lambda: follower.position)
    origins = settings.gateway.allowed_origins
    web = build_web(
        [
            build_router(use_cases, metrics),
            build_health_router(Readiness(database, neighbours, draining), metrics),
        ],
        origins,
        door,
        settings.telemetry.ui_url,
    )
    edge = Edge(
        web,
        origin_rules(settings.gateway.http, origins),
        metrics,
        context.tracer,
        draining.is_set,
        door.knows,
    )
    server = WebServer(edge, bound, tls.http if tls else None)
    servicer = GatewayServicer(use_cases)
    http_address = server.address
    log.info("console", address=f"{'https' if tls else 'http'}://{http_address}/")
    return GatewayApp(
        services=[
            Registered(FULL_NAME, lambda grpc: add_GatewayServiceServicer_to_server(servicer, grpc))
        ],
        tasks=[
            ("http", server.run),
            ("delivery follower", follower.run),
            ("delivery dispatcher", dispatcher.run),
            ("retention", partial(keep_tidy, forget, clock)),
        ],
        drain=server.stop,
        interceptors=[Guard(door)],
        knows=door.knows,
        credentials=tls.grpc if tls else None,
        http_address=http_address,
    )
