"""What the verbs `up` and `demo` do: a suite that runs until it is told to stop, or was shown."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conveyor_client.cli.context import Options

if TYPE_CHECKING:
    from conveyor_client.client import ConveyorClient
    from conveyor_client.supervision.plan import Service
    from svckit.settings import Settings

_IMPORTED = time.monotonic()

CLASSIC = "Do three things: research a market trend, analyse competitors, draft a summary"
"""The request that `demo` sends."""


def services_of(chosen: Options, settings: Settings, verbose: bool) -> list[Service]:
    """Return the services of the suite that `settings` describe, as `up` starts them."""
    from conveyor_client.supervision.plan import suite

    env = _log_env(settings, verbose)
    return [
        replace(service, env={**env, **service.env}) for service in suite(settings, chosen.config)
    ]


def _log_env(settings: Settings, verbose: bool) -> dict[str, str]:
    """What makes the services log less, and for people when people read it."""
    env = {}
    if not verbose and "CONVEYOR_LOG__LEVEL" not in os.environ:
        env["CONVEYOR_LOG__LEVEL"] = "warning"
    if settings.log.format == "auto" and sys.stderr.isatty():
        env["CONVEYOR_LOG__FORMAT"] = "console"
    return env


async def run_suite(services: Sequence[Service], *, console: str) -> None:
    """Run `services` until a signal comes. `console` is the address of the web page.

    Raises `SuiteFailed` when they cannot start or go on; no process is left then either.
    """
    from conveyor_client.supervision.suite import running_suite

    print("starting " + ", ".join(service.name for service in services), flush=True)
    with _stop_on_signals() as stop:
        async with running_suite(services, say=_say, relay=_relay) as suite:
            stop.hurry = suite.hurry
            if await stop.unless(suite.until_ready()):
                for service in services:
                    print(f"  {service.name:<10} {service.grpc_address}")
                print(f"  {'console':<10} {console}")
                print(f"ready in {since_start():.1f} s; Ctrl-C stops all", flush=True)
                await stop.unless(suite.until_failed())
            print("stopping", flush=True)
    print("stopped", flush=True)


class _Stop:
    """The wish to stop: the first signal ends `unless`, each further one calls `hurry`."""

    def __init__(self) -> None:
        self._wished = asyncio.Event()
        self.hurry: Callable[[], None] = _nothing

    def signalled(self) -> None:
        if self._wished.is_set():
            self.hurry()
        self._wished.set()

    async def unless(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do `work` until it ends or a signal comes; True when it ended. Raises what it raises."""
        task = asyncio.create_task(work)
        wish = asyncio.create_task(self._wished.wait())
        try:
            await asyncio.wait([task, wish], return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
            return task.done()
        finally:
            for each in (task, wish):
                each.cancel()
            await asyncio.gather(task, wish, return_exceptions=True)


def _nothing() -> None:
    pass


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[_Stop]:
    loop = asyncio.get_running_loop()
    stop = _Stop()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, stop.signalled)
    try:
        yield stop
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _say(text: str) -> None:
    print(text, flush=True)


def _relay(name: str, line: str) -> None:
    # A terminal that is gone must not stop the services from being read.
    with contextlib.suppress(OSError):
        print(f"{name:<9} | {line}", file=sys.stderr, flush=True)


def since_start() -> float:
    """Return the seconds since this process was started, its own imports included."""
    try:
        # The part after the name, which may itself hold spaces and brackets.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, AttributeError, IndexError, ValueError):
        return time.monotonic() - _IMPORTED


async def demo(chosen: Options, *, json: bool) -> bool:
    """Show a delegated request, with the suite that runs or one of its own; True when answered."""
    address = chosen.gateway()
    if await _answers(address, encrypted=chosen.security() is not None):
        _tell(f"using the suite at {address}", json)
        return await _show(chosen.client(), json=json)
    if chosen.address:
        from conveyor_client.cli.context import CannotRun

        raise CannotRun(f"nothing answers at {address}")
    with tempfile.TemporaryDirectory(prefix="conveyor-demo-") as directory:
        return await _demo_in(Path(directory), json=json)


async def _demo_in(directory: Path, *, json: bool) -> bool:
    from conveyor_client.client import ConveyorClient
    from conveyor_client.supervision.plan import suite as suite_of
    from conveyor_client.supervision.suite import running_suite
    from svckit.settings import load

    config = directory / "conveyor.toml"
    config.write_text(_demo_config(directory), encoding="utf-8")
    # The demo must be the same everywhere: nothing of the user's own configuration counts.
    settings = load(config, environ={})
    hidden = {name: None for name in os.environ if name.upper().startswith("CONVEYOR_")}
    services = [
        replace(service, env={**hidden, **service.env}) for service in suite_of(settings, config)
    ]
    _tell("starting a suite of its own", json)
    done = False

    async def work() -> None:
        nonlocal done
        await suite.until_ready()
        _tell(f"ready in {since_start():.1f} s", json)
        done = await _show(ConveyorClient(settings.gateway.grpc), json=json)

    with _stop_on_signals() as stop:
        async with running_suite(services, say=_say, relay=_relay) as suite:
            stop.hurry = suite.hurry
            await stop.unless(work())
    _tell("stopped", json)
    return done


def _demo_config(directory: Path) -> str:
    from conveyor_client.supervision.addresses import free_addresses

    http, grpc, scheduler, agent, acp = free_addresses(5)
    return f"""\
[store]
url = "sqlite:///{directory / "data"}"
[gateway]
http = "{http}"
grpc = "{grpc}"
[services]
scheduler = "{scheduler}"
agent = "{agent}"
acp = "{acp}"
[log]
level = "warning"
"""


async def _show(connection: ConveyorClient, *, json: bool) -> bool:
    from conveyor.scheduler.v1 import run_pb2
    from conveyor_client.cli import output as out
    from conveyor_client.cli.narrate import Narrator
    from conveyor_client.cli.printer import printer
    from conveyor_client.cli.traces import print_trace
    from conveyor_client.cli.tree import flow_tree

    _tell(f"> {CLASSIC}", json)
    narrator, shown = Narrator(), printer()
    ended = run_pb2.Run()
    async with (
        connection as client,
        contextlib.aclosing(client.chat(CLASSIC)) as stream,
    ):
        async for item in stream:
            if item.HasField("ended"):
                ended = item.ended
            if json:
                out.print_json_line(item)
                continue
            for utterance in narrator.tell(item):
                shown.show(utterance)
        flow = await client.flow(ended.spawn.flow_id or ended.run_id)
        if json:
            out.print_json_line(flow)
        else:
            out.console().print(flow_tree(flow))
            for root in flow.nodes[:1]:
                await print_trace(client, root.trace)
    return ended.state == run_pb2.RUN_STATE_SUCCEEDED


async def _answers(address: str, *, encrypted: bool) -> bool:
    from conveyor_client.supervision.addresses import accepts_connections
    from conveyor_client.supervision.child import wait_healthy

    # A refused connection says it at once; only what listens is asked for its health.
    if not accepts_connections(address):
        return False
    try:
        await asyncio.wait_for(wait_healthy(address, encrypted=encrypted), timeout=2.0)
    except TimeoutError:
        return False
    return True


def _tell(text: str, json: bool) -> None:
    # With --json standard output holds documents only.
    print(text, file=sys.stderr if json else sys.stdout, flush=True)
