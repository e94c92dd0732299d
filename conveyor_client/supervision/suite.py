"""All services together: started at once, kept alive, stopped together."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from conveyor_client.supervision.child import Child, Relay
from conveyor_client.supervision.plan import Service, check_addresses_free
from conveyor_client.supervision.rules import GiveUp, Life, Limits, describe_end
from svckit.backoff import full_jitter

START_BOUND = 60.0
"""Seconds a process may take to become healthy; after that it is killed and counts as failed."""
DRAIN_BOUND = 7.5
"""Seconds for the services to hand back their work before they are killed."""
LAST_BOUND = 2.0
"""Seconds for the one that stops last. With `DRAIN_BOUND` below the ten promised for a stop."""


class SuiteFailed(Exception):
    """The suite cannot start or go on. Attributes: `exit_code`; the text is for people."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Suite:
    """Processes that are kept alive until `stop`. Use `running_suite`.

    `say` gets one line of news at a time, `relay` the output of the services.
    """

    def __init__(
        self,
        services: Sequence[Service],
        *,
        say: Callable[[str], None],
        relay: Relay,
        limits: Limits | None = None,
    ) -> None:
        self.services = list(services)
        self._say = say
        self._relay = relay
        self._limits = limits or Limits()
        self._children: dict[str, Child] = {}
        self._ready = {service.name: asyncio.Event() for service in services}
        self._stopping = False
        self._keepers: list[asyncio.Task[None]] = []
        self._hurry = asyncio.Event()

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by service name, of those that run now."""
        return {name: child.pid for name, child in self._children.items() if child.running}

    def start(self) -> None:
        """Start all services. Raises `SuiteFailed` when an address is taken."""
        try:
            check_addresses_free(self.services)
        except Exception as problem:
            raise SuiteFailed(str(problem), 2) from problem
        self._keepers = [
            asyncio.create_task(self._keep(service), name=f"keep {service.name}")
            for service in self.services
        ]

    async def until_ready(self) -> None:
        """Return when each service was healthy once. Raises `SuiteFailed`."""
        await self._or_failure(asyncio.gather(*(event.wait() for event in self._ready.values())))

    async def until_failed(self) -> None:
        """Wait until a service is given up, then raise `SuiteFailed`. Does not return otherwise."""
        await self._or_failure(asyncio.get_running_loop().create_future())

    async def _or_failure(self, wanted: asyncio.Future[Any]) -> None:
        try:
            await asyncio.wait([wanted, *self._keepers], return_when=asyncio.FIRST_COMPLETED)
            for keeper in self._keepers:
                if keeper.done() and not keeper.cancelled():
                    keeper.result()  # raises: a keeper ends only by giving up
        finally:
            wanted.cancel()
            await asyncio.gather(wanted, return_exceptions=True)

    async def _keep(self, service: Service) -> None:
        life = Life(lambda: full_jitter(0.1, 5.0), self._limits)
        while True:
            began = time.monotonic()
            try:
                child = await Child.start(service, self._relay)
            except OSError as error:
                raise SuiteFailed(
                    f"{service.name} cannot start: {error.strerror or 'no such program'}", 2
                ) from error
            self._children[service.name] = child
            if await self._became_healthy(child):
                took = time.monotonic() - began
                if life.ever_ready:
                    self._say(f"{service.name} is back after {took:.1f} s (process {child.pid})")
                life.became_ready(time.monotonic())
                child.show_output()
                self._ready[service.name].set()
            code = await child.ended()
            if self._stopping:
                return
            verdict = life.ended(code, time.monotonic())
            if isinstance(verdict, GiveUp):
                words = child.take_last_words()
                child.show_output()
                raise SuiteFailed(_farewell(service.name, verdict.why, words), verdict.exit_code)
            child.show_output()
            self._say(f"{service.name} {verdict.why}; starting it again in {verdict.delay:.1f} s")
            await asyncio.sleep(verdict.delay)

    async def _became_healthy(self, child: Child) -> bool:
        healthy = asyncio.create_task(child.healthy())
        ended = asyncio.create_task(child.ended())
        either: set[asyncio.Future[Any]] = {healthy, ended}
        try:
            await asyncio.wait(either, timeout=START_BOUND, return_when=asyncio.FIRST_COMPLETED)
            if healthy.done() and child.running:
                healthy.result()
                return True
            if child.running:
                child.show_output()
                self._say(f"{child.service.name} is not healthy after {START_BOUND:.0f} s")
                child.kill()
            return False
        finally:
            for task in either:
                task.cancel()
            await asyncio.gather(*either, return_exceptions=True)

    def hurry(self) -> None:
        """Make a `stop` under way kill what still runs."""
        self._hurry.set()

    async def stop(self) -> None:
        """Stop all services: ask, wait within the bounds, kill. No process is left after it."""
        self._stopping = True
        for keeper in self._keepers:
            if keeper.get_name().removeprefix("keep ") not in self.pids:
                keeper.cancel()  # between two processes: nothing to wait for
        try:
            first = [c for c in self._children.values() if not c.service.stops_last]
            last = [c for c in self._children.values() if c.service.stops_last]
            await self._end(first, DRAIN_BOUND)
            await self._end(last, LAST_BOUND)
        finally:
            for child in self._children.values():
                child.kill()
            for keeper in self._keepers:
                keeper.cancel()
            await asyncio.gather(*self._keepers, return_exceptions=True)
            # A keeper that was cancelled may have started a process in its last moment.
            for child in self._children.values():
                child.kill()
                await child.ended()

    async def _end(self, children: Sequence[Child], bound: float) -> None:
        running = [child for child in children if child.running]
        if not running:
            return
        for child in running:
            child.terminate()
        ended = asyncio.gather(*(child.ended() for child in running))
        hurry = asyncio.create_task(self._hurry.wait())
        either: set[asyncio.Future[Any]] = {ended, hurry}
        try:
            await asyncio.wait(either, timeout=bound, return_when=asyncio.FIRST_COMPLETED)
            for child in running:
                if child.running:
                    self._say(f"{child.service.name} did not stop in time and was killed")
                    child.kill()
            await ended
        finally:
            hurry.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await hurry


@asynccontextmanager
async def running_suite(
    services: Sequence[Service],
    *,
    say: Callable[[str], None],
    relay: Relay,
    limits: Limits | None = None,
) -> AsyncIterator[Suite]:
    """Start the services on entering, stop all of them on leaving, however that happens.

    Raises `SuiteFailed` when an address is taken. Wait for health with `Suite.until_ready`.
    """
    suite = Suite(services, say=say, relay=relay, limits=limits)
    suite.start()
    try:
        yield suite
    finally:
        # Shielded: a second cancellation must not leave processes behind.
        await asyncio.shield(asyncio.ensure_future(suite.stop()))


def _farewell(name: str, why: str, words: str) -> str:
    words = words.removeprefix(f"{name}: ")
    if not words:
        return f"{name} {why}"
    if why == describe_end(2):
        return f"{name} cannot start: {words}"
    return f"{name} {why}: {words}"
