"""The life of a service process: load, start, say ready, drain in order, stop.

Start: settings, logs, telemetry, the service's own `build` (stores, engine, servicers), bind, start
the server, background tasks, `ready`, health `SERVING`.

Stop, on SIGTERM or SIGINT (once more: at once), when a background task dies, or with
`--exit-with-parent` when the parent is gone:

1. health says `NOT_SERVING`, and watchers get a moment to see it;
2. `Context.draining` is set and `App.drain` runs: long polls return empty, watches end with OK,
   workers finish or give back their runs;
3. the server stops: new calls are refused, open ones get a short grace, their handlers end;
4. background tasks are cancelled and what `build` opened is closed;
5. telemetry is flushed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import uvloop
from grpc import ServerCredentials, aio
from opentelemetry import trace

from svckit import failpoints, pseudonyms
from svckit.clock import Clock, SystemClock
from svckit.errors import ServiceError, StartError
from svckit.grpc import deadline, health
from svckit.grpc.boundary import ServerBoundary
from svckit.grpc.server import PortInUse, bind, make_server, probe
from svckit.logging import get_logger
from svckit.logging import setup as setup_logging
from svckit.metrics import NOBODY, Metrics, definitions, endpoint
from svckit.metrics.loop import watch_loop
from svckit.settings import ConfigError, Settings, load
from svckit.version import __version__

__all__ = [
    "App",
    "Build",
    "Context",
    "PortInUse",
    "Registered",
    "Running",
    "StartError",
    "main",
    "running",
]

SEEN_SECONDS = 0.1
DRAIN_SECONDS = 7.0
STOP_SECONDS = 1.0
PARENT_POLL_SECONDS = 0.5
INNER = ("scheduler", "agent", "acp")
"""Services whose metrics nobody can read without an address of their own."""

_log = get_logger("svckit.service")


@dataclass(frozen=True)
class Registered:
    """One gRPC service: its full name, for health and reflection, and how to add it."""

    full_name: str
    add: Callable[[aio.Server], None]


@dataclass
class App:
    """What `build` made.

    `tasks` are long-lived: one that ends while the service does not drain stops it with exit code
    1. `drain` runs after health says `NOT_SERVING` and after `Context.draining` is set; it returns
    when nothing is left that should not be cut. `ready` runs once the server listens; health says
    `SERVING` after it. `interceptors` run around every handler, and may raise `ServiceError`.
    `credentials` make the server speak TLS only. `knows` tells by a call's `authorization` whether
    it may say to which trace it belongs; left out, each may.
    """

    services: Sequence[Registered]
    tasks: Sequence[tuple[str, Callable[[], Awaitable[None]]]] = ()
    drain: Callable[[], Awaitable[None]] | None = None
    ready: Callable[[], Awaitable[None]] | None = None
    interceptors: Sequence[aio.ServerInterceptor] = ()
    credentials: ServerCredentials | None = None
    knows: Callable[[Sequence[str]], bool] | None = None


@dataclass
class Context:
    """What `build` gets. `address`: where the server listens; known to `tasks` and `ready`.

    `metrics` is for this service's instruments.
    """

    name: str
    settings: Settings
    clock: Clock
    tracer: trace.Tracer
    metrics: Metrics = NOBODY
    draining: asyncio.Event = field(default_factory=asyncio.Event)
    address: str = ""
    _serving: bool = True
    _alive: bool = True
    _health: health.Health | None = None
    _flips: set[asyncio.Task[None]] = field(default_factory=set)

    def set_serving(self, serving: bool, *, alive: bool | None = None) -> None:
        """Flip health at run time, for example while the store takes no writes.

        `alive` is what is said of the server as a whole, by default the same; a standby is alive
        and does not serve. Remembered when called before the service is ready; ignored while it
        drains.
        """
        self._serving, self._alive = serving, serving if alive is None else alive
        if self._health is not None:
            flip = deadline.spawn(self._say(self._health), name="health")
            self._flips.add(flip)
            flip.add_done_callback(self._flips.discard)

    async def _become_ready(self, answers: health.Health) -> None:
        self._health = answers
        await self._say(answers)

    async def _say(self, answers: health.Health) -> None:
        await answers.set_serving(self._serving, alive=self._alive)


Build = Callable[[Context], AbstractAsyncContextManager[App]]
"""The composition root of a service: opens everything, yields the `App`, closes everything."""


@dataclass
class Running:
    """A service that listens. `address` has the port that was bound."""

    address: str
    app: App
    context: Context
    failed: asyncio.Future[str]
    """Resolves to the name of the first background task that died."""
    metrics_address: str = ""
    """Where metrics are answered, with the port that was bound; empty where they are not."""


@contextlib.asynccontextmanager
async def running(
    name: str,
    build: Build,
    settings: Settings,
    address: str,
    *,
    clock: Clock | None = None,
    tracer: trace.Tracer | None = None,
    interceptors: Sequence[aio.ServerInterceptor] = (),
    metrics: Metrics | None = None,
) -> AsyncIterator[Running]:
    """Run a service inside the block; leaving it drains in the documented order.

    `metrics`: by default those that `metrics_of` makes. Raises `StartError` (also `PortInUse`) when
    it cannot start.
    """
    tracer = tracer or trace.get_tracer("conveyor")
    metrics = metrics or metrics_of(name, settings)
    context = Context(name, settings, clock or SystemClock(), tracer, metrics)
    boundary = ServerBoundary(tracer, metrics)
    # Before any store is opened: a second start by mistake must not touch what the first one uses.
    probe(address)
    async with (
        _endpoint(metrics, getattr(settings.metrics, name, "")) as metrics_address,
        build(context) as app,
    ):
        names = [service.full_name for service in app.services]
        boundary.knows = app.knows
        answers = health.Health(names)
        await answers.set_serving(False)
        server = make_server(boundary=boundary, interceptors=[*interceptors, *app.interceptors])
        for service in app.services:
            service.add(server)
        health.add_to(server, answers)
        _add_reflection(server, [*names, health.SERVICE])
        try:
            port = bind(server, address, app.credentials)
            await server.start()
        except BaseException:
            # A server that is never stopped complains from its destructor, without a loop.
            await server.stop(None)
            raise
        bound = address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"
        context.address = bound
        failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        tasks = [
            deadline.spawn(_watched(task_name, work, context, failed), name=task_name)
            for task_name, work in app.tasks
        ]
        try:
            if app.ready is not None:
                await app.ready()
            await context._become_ready(answers)
            yield Running(bound, app, context, failed, metrics_address)
        finally:
            await _stop(context, app, answers, server, boundary, tasks)


def metrics_of(name: str, settings: Settings) -> Metrics:
    """Return the metrics of a service. They cost nothing where nobody can ever read them.

    An inner service answers on the address of `[metrics]` alone; the gateway on its own too.
    """
    metrics = Metrics(listening=name not in INNER or bool(getattr(settings.metrics, name)))
    metrics.gauge(definitions.BUILD).set(1, name, __version__)
    return metrics


@contextlib.asynccontextmanager
async def _endpoint(metrics: Metrics, address: str) -> AsyncIterator[str]:
    """Measure the loop, and answer on `address` if there is one; until all else has stopped."""
    if not metrics.listening:
        yield ""
        return
    tasks = [deadline.spawn(watch_loop(metrics), name="event loop lag")]
    server = None
    try:
        if address:
            server = endpoint.serve(metrics, address)
            _log.info("metrics", address=server.address)
            tasks.append(deadline.spawn(server.run(), name="metrics"))
        yield server.address if server is not None else ""
    finally:
        if server is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    await server.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def calm_collector() -> None:
    """Leaves out of the garbage collection what is there now, and looks less often at the rest.

    What a service loads at its start lives as long as it does; looking through it again and again
    would make calls slower the more unfinished work there is.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


async def _watched(
    name: str,
    work: Callable[[], Awaitable[None]],
    context: Context,
    failed: asyncio.Future[str],
) -> None:
    try:
        await work()
    except Exception as err:
        # A cause that has an answer needs one line; anything else needs its traceback.
        expected = isinstance(err, ServiceError | StartError)
        _log.error(
            "background task died",
            task=name,
            problem=str(err) if expected else type(err).__name__,
            exc_info=None if expected else err,
        )
    else:
        if context.draining.is_set():
            return
        _log.error("background task ended", task=name)
    if not failed.done():
        failed.set_result(name)


async def _stop(
    context: Context,
    app: App,
    answers: health.Health,
    server: aio.Server,
    boundary: ServerBoundary,
    tasks: Sequence[asyncio.Task[None]],
) -> None:
    await answers.drain()
    await asyncio.sleep(SEEN_SECONDS)
    context.draining.set()
    answers.end_watches()
    if app.drain is not None:
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                await app.drain()
        except TimeoutError:
            _log.warning("drain took too long", seconds=DRAIN_SECONDS)
        except Exception as err:
            _log.error("drain failed", exc_info=err)
    await server.stop(STOP_SECONDS)
    await boundary.settled(STOP_SECONDS)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _add_reflection(server: aio.Server, names: Sequence[str]) -> None:
    from grpc_reflection.v1alpha import reflection

    reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)


def main(
    name: str,
    build: Build,
    address_of: Callable[[Settings], str],
    *,
    new_loop: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop,
) -> NoReturn:
    """Run the service `name` as this process and exit.

    The loop is that of libuv, since much of the cost of a call is the loop's own. `new_loop`: for
    services that live with many child processes, which only the standard one handles in all ways.

    Exit codes: 0 drained, 1 a background task died, 2 it could not start (one line says why).
    """
    arguments = _parse(name)
    try:
        settings = load(arguments.config)
    except ConfigError as err:
        _refuse(name, "; ".join(err.problems))
    try:
        pseudonyms.setup(settings)
    except StartError as err:
        _refuse(name, str(err))
    setup_logging(name, settings)
    from svckit import telemetry as telemetry_module

    telemetry = telemetry_module.setup(name, settings)
    metrics = metrics_of(name, settings)
    metrics.read(definitions.SPANS_DROPPED, lambda: telemetry.dropped)
    try:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            code = runner.run(
                _serve(
                    name,
                    build,
                    settings,
                    address_of(settings),
                    telemetry.tracer,
                    metrics,
                    arguments.exit_with_parent,
                )
            )
    except StartError as err:
        _refuse(name, str(err))
    except ServiceError as err:
        _refuse(name, err.message)
    finally:
        telemetry.shutdown()
    sys.exit(code)


def _parse(name: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=name, description=f"The Conveyor service {name}.")
    parser.add_argument("--version", action="version", version=f"{name}-svc {__version__}")
    parser.add_argument(
        "--config", type=Path, default=None, help="configuration file (default: ./conveyor.toml)"
    )
    parser.add_argument(
        "--exit-with-parent",
        nargs="?",
        type=int,
        # A parent that gives its own id is also noticed when it was gone before we looked.
        const=os.getppid(),
        default=None,
        metavar="PID",
        help="drain and stop when the process that started this one is gone",
    )
    return parser.parse_args()


def _refuse(name: str, problem: str) -> NoReturn:
    """Say in one line why the service does not start, and exit with code 2."""
    # Stores begin with the service's name by themselves.
    print(f"{name}: {' '.join(problem.removeprefix(f'{name}: ').split())}", file=sys.stderr)  # noqa: T201
    sys.exit(2)


async def _serve(
    name: str,
    build: Build,
    settings: Settings,
    address: str,
    tracer: trace.Tracer,
    metrics: Metrics,
    parent: int | None,
) -> int:
    stopping = asyncio.Event()
    _install_signals(stopping)
    orphaned = None
    if parent is not None:
        orphaned = asyncio.create_task(_stop_without(parent, stopping), name="parent")
    try:
        async with running(
            name, build, settings, address, tracer=tracer, metrics=metrics
        ) as service:
            calm_collector()
            if failpoints.ARMED:
                _log.warning("failpoints are armed: this is a test", variable=failpoints.VARIABLE)
            age = _process_age_ms()
            _log.info("ready", address=service.address, milliseconds=age, version=__version__)
            stop = asyncio.create_task(stopping.wait())
            either: set[asyncio.Future[Any]] = {stop, service.failed}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            stop.cancel()
            _log.info("draining")
        _log.info("stopped")
        return 1 if service.failed.done() else 0
    finally:
        if orphaned is not None:
            orphaned.cancel()


def _install_signals(stopping: asyncio.Event) -> None:
    """First signal drains; the same signal again ends the process at once.

    Ctrl-C on a terminal reaches the whole group, so a supervisor's SIGTERM often follows our own
    SIGINT within a moment: two different signals are one wish.
    """
    loop = asyncio.get_running_loop()
    seen: set[int] = set()

    def on_signal(number: int) -> None:
        if number in seen:
            os._exit(128 + number)
        seen.add(number)
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)


async def _stop_without(parent: int, stopping: asyncio.Event) -> None:
    while os.getppid() == parent:  # noqa: ASYNC110  nothing tells a process of this
        await asyncio.sleep(PARENT_POLL_SECONDS)
    stopping.set()


def _process_age_ms() -> int:
    """Milliseconds since the process started, interpreter included, where the system tells."""
    try:
        stat = Path("/proc/self/stat").read_text("ascii")
        uptime = float(Path("/proc/uptime").read_text("ascii").split()[0])
        started = int(stat.rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return round((uptime - started) * 1000)
    except (OSError, ValueError):
        return round(time.process_time() * 1000)
