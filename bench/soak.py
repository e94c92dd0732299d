"""The suite under random load, with services killed at random, for minutes or hours.

    make soak                                       ten minutes on SQLite
    make soak ARGS="--minutes 60 --store postgresql"

First services are killed and frozen while customers send delegated requests, cancel, steer and use
all queue modes. Then, in the last part, nothing is killed, and memory and open files of each
process must not grow. At the end everything that was accepted must have ended, and the history of
it all must keep the scheduler's promises. Exit code 0 only when all that holds.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from conveyor.scheduler.v1 import lane_pb2
from conveyor_client import ConveyorClient
from scheduler_svc.store.postgres import PostgresStore
from svckit.errors import ServiceError
from svckit.postgres import PostgresAddress
from svckit.testing.postgres import postgres_server
from tests.history import History, check, of_sqlite, of_store
from tests.system.harness import MODULES, Suite, nothing_unfinished

MESSAGES = (
    "[[reply: short]]",
    "[[sleep: 300ms]] [[reply: a moment]]",
    "[[spawn: [[reply: one]]]] [[spawn: [[sleep: 400ms]] [[reply: two]]]]",
    "[[spawn-background: [[sleep: 500ms]] [[reply: later]]]] [[reply: at once]]",
    "Do three things: research a market trend, analyse competitors, draft a summary",
    "[[fail: on purpose]]",
)
MODES = (
    lane_pb2.QUEUE_MODE_UNSPECIFIED,
    lane_pb2.QUEUE_MODE_UNSPECIFIED,
    lane_pb2.QUEUE_MODE_COLLECT,
    lane_pb2.QUEUE_MODE_STEER,
    lane_pb2.QUEUE_MODE_INTERRUPT,
)
CUSTOMERS = 12
VICTIMS = ("scheduler", "scheduler", "agent", "agent", "gateway", "acp")
CALM_SHARE = 0.4
"""Part of the time, at the end, in which nothing is killed."""
WARM_SECONDS = 60.0
"""Age of a process from which on it must not grow any more."""
MEMORY_GROWTH = 0.25
MEMORY_SLACK = 24 * 1024 * 1024
FILES_SLACK = 16


@dataclass
class Sample:
    """One look at one process."""

    age: float
    memory: int
    files: int


@dataclass
class Soak:
    """What happens and what was seen."""

    suite: Suite
    rng: random.Random
    seconds: float
    accepted: dict[str, str] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    samples: dict[tuple[str, int], list[Sample]] = field(default_factory=lambda: defaultdict(list))
    number: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def over(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() - self.began > self.seconds

    @property
    def calm(self) -> bool:
        """Whether the last part, without faults, has begun."""
        return time.monotonic() - self.began > self.seconds * (1 - CALM_SHARE)

    # -- Customers --------------------------------------------------------------------------------

    async def customer(self, client: ConveyorClient, key: str) -> None:
        """Sends, cancels and steers until the time is over."""
        while not self.over:
            await asyncio.sleep(self.rng.expovariate(1 / 3.0))
            act = self.rng.choices((self.send, self.cancel, self.steer), (8, 1, 1))[0]
            try:
                await act(client, key)
            except ServiceError as err:
                self.refused[err.reason] += 1

    async def send(self, client: ConveyorClient, key: str) -> None:
        """A message; sometimes sent twice with the same request id."""
        self.number += 1
        request_id, text = f"soak-{self.number}", self.rng.choice(MESSAGES)
        mode = self.rng.choice(MODES)
        for _ in range(self.rng.choice((1, 1, 1, 2))):
            sent = await client.send(text, session_key=key, queue_mode=mode, request_id=request_id)
            self.accepted[request_id] = sent.accepted.run.run_id
            self.done["accepted"] += 1

    async def cancel(self, client: ConveyorClient, key: str) -> None:
        """Stops one of the newest runs, or its whole flow."""
        if self.accepted:
            run_id = self.rng.choice(list(self.accepted.values())[-20:])
            if self.rng.random() < 0.5:
                await client.cancel(run_id)
            else:
                await client.cancel_flow(run_id)
            self.done["cancelled"] += 1

    async def steer(self, client: ConveyorClient, key: str) -> None:
        """Says something to one of the newest runs."""
        if self.accepted:
            run_id = self.rng.choice(list(self.accepted.values())[-20:])
            await client.steer(run_id, "and be quick")
            self.done["steered"] += 1

    # -- Faults -----------------------------------------------------------------------------------

    async def fate(self) -> None:
        """Kills and freezes services until the calm part begins."""
        while not self.calm:
            await asyncio.sleep(self.rng.uniform(8, 25))
            service = self.rng.choice(
                ("scheduler", "agent", "gateway", "scheduler", "agent", "acp")
            )
            pid = self.suite.pids().get(service)
            if pid is None or self.calm:
                continue
            with contextlib.suppress(ProcessLookupError):
                if self.rng.random() < 0.75:
                    os.kill(pid, signal.SIGKILL)
                    self.done[f"killed {service}"] += 1
                else:
                    os.kill(pid, signal.SIGSTOP)
                    await asyncio.sleep(self.rng.uniform(0.5, 6))
                    os.kill(pid, signal.SIGCONT)
                    self.done[f"frozen {service}"] += 1

    # -- Figures ----------------------------------------------------------------------------------

    async def look(self) -> None:
        """Takes the figures of all processes until the time is over."""
        born: dict[int, float] = {}
        while not self.over:
            await asyncio.sleep(5)
            for service, pid in self.suite.pids().items():
                with contextlib.suppress(OSError):
                    age = time.monotonic() - born.setdefault(pid, time.monotonic())
                    self.samples[service, pid].append(
                        Sample(age, _memory(pid), len(os.listdir(f"/proc/{pid}/fd")))
                    )

    def growth(self) -> Iterator[tuple[str, str, bool]]:
        """Yields per service the figures of its last process, and whether they are fine."""
        for service in (*MODULES, "up"):
            lives = [found for (name, _), found in self.samples.items() if name == service]
            warm = [s for s in (lives[-1] if lives else []) if s.age >= WARM_SECONDS]
            if len(warm) < 2:
                yield service, "lived too short to say", True
                continue
            first, last = warm[0], warm[-1]
            fine = (
                last.memory <= first.memory * (1 + MEMORY_GROWTH) + MEMORY_SLACK
                and last.files <= first.files + FILES_SLACK
            )
            figures = (
                f"{first.memory / 2**20:.1f} -> {last.memory / 2**20:.1f} MiB, "
                f"{first.files} -> {last.files} open files in {last.age - first.age:.0f} s"
            )
            yield service, figures, fine


def _memory(pid: int) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@contextlib.asynccontextmanager
async def _side(*work: asyncio.Task[None]) -> AsyncIterator[None]:
    try:
        yield
    finally:
        for task in work:
            task.cancel()
        await asyncio.gather(*work, return_exceptions=True)


async def live(soak: Soak) -> None:
    """The whole time, and until everything has ended."""
    async with soak.suite.client() as client:
        fate, look = asyncio.create_task(soak.fate()), asyncio.create_task(soak.look())
        async with _side(fate, look):
            keys = [f"agent:main:web:direct:soak{n}" for n in range(CUSTOMERS)]
            await asyncio.gather(*(soak.customer(client, key) for key in keys))
            await asyncio.wait([fate, look])
            fate.result()
            look.result()
        for _ in range(10):  # each of them waits for half a minute
            with contextlib.suppress(AssertionError, ServiceError, TimeoutError):
                await nothing_unfinished(client)
                return


def verdict(soak: Soak, history: History, seed: int) -> int:
    """Prints what came out; the exit code."""
    history.accepted, history.finished = soak.accepted, True
    history.exact = False  # a frozen scheduler is away for longer than it knows
    violations = check(history)
    print(f"seed {seed}, {time.monotonic() - soak.began:.0f} s")
    print("done:", ", ".join(f"{count} {what}" for what, count in sorted(soak.done.items())))
    print(
        "refused:", ", ".join(f"{n} {why}" for why, n in sorted(soak.refused.items())) or "nothing"
    )
    print(f"history: {len(history.runs)} runs, {len(history.events)} events")
    fine = not violations
    for violation in violations[:20]:
        print(f"BROKEN {violation}")
        print(history.story(violation.run_id))
    for service, figures, ok in soak.growth():
        fine = fine and ok
        print(f"{service}: {figures}{'' if ok else '  GREW'}")
    print("verdict:", "fine" if fine else "NOT FINE")
    return 0 if fine else 1


def main() -> int:
    """Runs it. The exit code says whether all was fine."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--store", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="conveyor-soak-")))
        environ = {}
        if options.store == "postgresql":
            server = stack.enter_context(postgres_server())
            environ["CONVEYOR_STORE__URL"] = server.create_database()
        suite = Suite(directory, environ=environ, real=True)
        soak = Soak(suite, random.Random(options.seed), options.minutes * 60)
        try:
            suite.start()
            asyncio.run(live(soak))
        finally:
            left = suite.output[-2000:]
            suite.stop()
        if environ:
            history = asyncio.run(_of_postgres(environ["CONVEYOR_STORE__URL"]))
        else:
            history = asyncio.run(of_sqlite(suite.store / "scheduler.db"))
        code = verdict(soak, history, options.seed)
        if code:
            print("the suite's last words:", left, sep="\n")
        return code


async def _of_postgres(url: str) -> History:
    store = PostgresStore(PostgresAddress.parse(url))
    await store.acquire()
    try:
        return await of_store(store)
    finally:
        await store.close()


if __name__ == "__main__":
    sys.exit(main())
