"""How long two schedulers on PostgreSQL stand still when the one that leads is lost.

`python -m bench.failover [--runs 5] [--lease 5]`. Everything runs as real processes on this machine
under a load of delegated requests. The leader is killed (`kill -9`), frozen (`SIGSTOP`, woken
later) or asked to stop (`SIGTERM`), several times each. Measured from that moment: until a run is
leased, which some worker then works on; and until a message that is sent at that very moment is
answered. At the end every run must have succeeded, at its first attempt.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from bench.processes import PYTHON, ROOT, process, serving
from bench.report import machine
from conveyor.events.v1 import event_log_service_pb2 as els
from conveyor.events.v1.event_log_service_pb2_grpc import EventLogServiceStub
from conveyor.scheduler.v1 import run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from conveyor.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceStub
from conveyor_client import ConveyorClient, Patience
from conveyor_client.supervision.addresses import free_addresses
from svckit.grpc.channel import make_channel
from svckit.logging import setup as setup_logging
from svckit.settings import load
from svckit.testing.postgres import PostgresServer, postgres_server

CUSTOMERS = 4
DELEGATED = "[[spawn: [[sleep: 600ms]] [[reply: one]]]] [[spawn: [[sleep: 300ms]] [[reply: two]]]]"
FAULTS = {
    "killed (SIGKILL)": signal.SIGKILL,
    "frozen (SIGSTOP), woken later": signal.SIGSTOP,
    "asked to stop (SIGTERM)": signal.SIGTERM,
}


class Cluster:
    """Two schedulers, an agent service and a gateway. Use `running`."""

    def __init__(self, directory: Path, server: PostgresServer, lease: float) -> None:
        self._directory = directory
        self._server = server
        self._url = server.create_database()
        self._lives: dict[str, contextlib.AsyncExitStack] = {}
        self._pids: dict[str, int] = {}
        one, two, self.agent, self.gateway, http = free_addresses(5)
        self.schedulers = [one, two]
        self._config = directory / "conveyor.toml"
        self._config.write_text(
            f'store = {{ url = "{self._url}", leader_lease_seconds = {lease} }}\n'
            f'services = {{ scheduler = ["{one}", "{two}"], agent = "{self.agent}" }}\n'
            f'gateway = {{ grpc = "{self.gateway}", http = "{http}" }}\n'
            'log = { level = "error", format = "json" }\n'
        )

    async def start(self, name: str) -> None:
        """Start a scheduler, by its address, `agent` or `gateway`, and wait until it is up."""
        if name in self.schedulers:
            module, extra = "scheduler_svc", f"CONVEYOR_SCHEDULER__LISTEN={name}"
        else:
            # What these keep is not measured here.
            module = f"{name}_svc"
            extra = f"CONVEYOR_STORE__URL=sqlite:///{self._directory / 'data'}"
        life = self._lives[name] = contextlib.AsyncExitStack()
        child = await life.enter_async_context(
            process("env", extra, *PYTHON, module, "--config", str(self._config))
        )
        self._pids[name] = child.pid
        await serving({"agent": self.agent, "gateway": self.gateway}.get(name, name), child)

    async def end(self, name: str) -> None:
        """Wait for the end of a process that was killed, or end it."""
        await self._lives.pop(name).aclose()

    def signal(self, name: str, number: int) -> None:
        """Send a signal to a process."""
        os.kill(self._pids[name], number)

    async def close(self) -> None:
        """End everything, the schedulers last."""
        for name in ("gateway", "agent", *self.schedulers):
            if name in self._lives:
                await self.end(name)

    def leader(self) -> str:
        """Address of the scheduler that leads, as the database says."""
        [(address,)] = self._server.execute("SELECT address FROM scheduler.leader", self._url)
        return str(address)


@contextlib.asynccontextmanager
async def running(lease: float) -> AsyncIterator[Cluster]:
    """A cluster on a PostgreSQL server of its own, which writes to the disk as it should."""
    (ROOT / "build").mkdir(exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir=ROOT / "build"))
    with postgres_server(fsync="on", full_page_writes="on") as server:
        cluster = Cluster(directory, server, lease)
        try:
            for name in (*cluster.schedulers, "agent", "gateway"):
                await cluster.start(name)
            yield cluster
        finally:
            await cluster.close()
            shutil.rmtree(directory, ignore_errors=True)


async def measure(runs: int, lease: float) -> dict[str, list[tuple[float, float]]]:
    """Seconds until the next lease and until the next answer, for each fault."""
    found: dict[str, list[tuple[float, float]]] = {fault: [] for fault in FAULTS}
    patience = Patience(first=60.0, later=60.0)
    async with (
        running(lease) as cluster,
        ConveyorClient(cluster.gateway, patience=patience) as client,
        make_channel(",".join(cluster.schedulers), own_connection=True) as schedulers,
    ):
        await _ask(client, "warm")
        stop = asyncio.Event()

        async def customer(number: int) -> None:
            while not stop.is_set():
                await _ask(client, f"customer-{number}")

        customers = [asyncio.create_task(customer(number)) for number in range(CUSTOMERS)]
        for fault, number in FAULTS.items():
            for _ in range(runs):
                await asyncio.sleep(1.0)  # the load is under way again
                leader = cluster.leader()
                began, at_us = time.perf_counter(), time.time_ns() // 1000
                cluster.signal(leader, number)
                leased = asyncio.create_task(_next_lease(schedulers, at_us))
                answered = asyncio.create_task(_ask(client, "at-that-moment"))
                times = []
                for event in (leased, answered):
                    await event
                    times.append(time.perf_counter() - began)
                found[fault].append((times[0], times[1]))
                if number == signal.SIGSTOP:
                    cluster.signal(leader, signal.SIGCONT)
                else:
                    await cluster.end(leader)
                    await cluster.start(leader)
                for task in customers:
                    if task.done():
                        task.result()
        stop.set()
        await asyncio.gather(*customers)
        await _check(schedulers)
    return found


async def _ask(client: ConveyorClient, customer: str) -> None:
    """Sends a message that is delegated, and follows it to its end."""
    key = f"agent:main:grpc:direct:{customer}"
    chat = client.chat(DELEGATED, session_key=key, customer_key=key)
    async with contextlib.aclosing(chat) as items:
        async for item in items:
            if item.HasField("ended") and item.ended.state != run_pb2.RUN_STATE_SUCCEEDED:
                raise RuntimeError(f"a run did not succeed: {item.ended.error.message}")


async def _next_lease(schedulers: Any, after_us: int) -> None:
    """Returns when a run was leased later than `after_us` (wall clock), whoever leads."""
    request = els.WatchEventsRequest(all_sessions=True, payloads=["run_state_changed"])
    stub = EventLogServiceStub(schedulers)
    while True:
        call = stub.WatchEvents(request)
        with contextlib.suppress(Exception):  # nobody leads yet
            async for response in call:
                event = response.event
                if (
                    event.run_state_changed.state == run_pb2.RUN_STATE_RUNNING
                    and event.create_time.ToMicroseconds() > after_us
                ):
                    call.cancel()
                    return
        await asyncio.sleep(0.01)


async def _check(schedulers: Any) -> None:
    """Nothing failed, and no turn was tried twice because of a takeover."""
    stub = SchedulerServiceStub(schedulers)
    token = ""
    while True:
        page = await stub.ListRuns(ss.ListRunsRequest(page_size=500, page_token=token))
        for run in page.runs:
            if run.state != run_pb2.RUN_STATE_SUCCEEDED or run.attempt > 1:
                state = run_pb2.RunState.Name(run.state)
                raise RuntimeError(f"run {run.run_id}: {state}, attempt {run.attempt}")
        token = page.next_page_token
        if not token:
            return


def table(found: dict[str, list[tuple[float, float]]], lease: float) -> str:
    """The figures as a Markdown table, in seconds."""
    lines = [
        f"| The leader is … (leader lease {lease:g} s) | until the next lease | median | worst "
        "| until a message sent then is answered | median | worst |",
        "|---|---|---:|---:|---|---:|---:|",
    ]
    for fault, times in found.items():
        cells = [fault]
        for each in zip(*times, strict=True):
            cells += [
                " ".join(f"{seconds:.1f}" for seconds in each),
                f"{statistics.median(each):.1f}",
                f"{max(each):.1f}",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Entry point; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--lease", type=float, default=5.0)
    arguments = parser.parse_args()
    setup_logging("bench", load(environ={"CONVEYOR_LOG__LEVEL": "error"}))
    here = machine()
    found = asyncio.run(measure(arguments.runs, arguments.lease))
    print(here)
    print(table(found, arguments.lease))


if __name__ == "__main__":
    main()
