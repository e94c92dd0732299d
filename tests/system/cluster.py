"""Several schedulers on one PostgreSQL database, an agent service and a gateway, as processes.

Nobody starts them again when they end: a test says what dies, freezes and comes back.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

from conveyor_client import ConveyorClient
from scheduler_svc.store.postgres import PostgresStore
from svckit.postgres import PostgresAddress
from svckit.testing.postgres import PostgresServer
from tests.history import History, of_store
from tests.system.harness import (
    PATIENCE,
    START_BOUND,
    STOP_BOUND,
    clean_environment,
    free_addresses,
)
from tests.system.processes import Forked, start_service


class Cluster:
    """Its processes. `lease`: the leader lease in seconds."""

    def __init__(
        self, directory: Path, postgres: PostgresServer, url: str, *, lease: float
    ) -> None:
        self.directory = directory
        self.config = directory / "conveyor.toml"
        self.url = url
        self.lease = lease
        self._postgres = postgres
        self._processes: dict[str, subprocess.Popen[bytes] | Forked] = {}
        self._frozen: set[str] = set()
        one, two, self.agent, self.gateway, http = free_addresses(5)
        self.schedulers = [one, two]
        self.config.write_text(
            f"""\
[store]
url = "{url}"
leader_lease_seconds = {lease}
[gateway]
http = "{http}"
grpc = "{self.gateway}"
[services]
scheduler = ["{one}", "{two}"]
agent = "{self.agent}"
acp = "127.0.0.1:1"
"""
        )

    @property
    def both(self) -> str:
        """The addresses of the schedulers, as channels take them."""
        return ",".join(self.schedulers)

    # Its processes

    def start(self) -> None:
        """Start everything and wait until it listens."""
        for address in self.schedulers:
            self.start_scheduler(address)
        # A database of their own each: theirs is not what is tested here.
        own = {"CONVEYOR_STORE__URL": f"sqlite:///{self.directory / 'data'}"}
        self._start("agent", "agent_svc", self.agent, **own)
        self._start("gateway", "gateway_svc", self.gateway, **own)
        for name in list(self._processes):
            self.wait_listening(name)

    def start_scheduler(self, address: str) -> None:
        """Start a scheduler, also again."""
        self._start(address, "scheduler_svc", address, CONVEYOR_SCHEDULER__LISTEN=address)

    def _start(self, name: str, module: str, address: str, **environment: str) -> None:
        with self.log(name).open("ab") as log:
            self._processes[name] = start_service(
                [sys.executable, "-m", module, "--config", str(self.config)],
                env=clean_environment(GRPC_VERBOSITY="NONE", **environment),
                cwd=self.directory,
                log=log,
            )

    def wait_listening(self, name: str) -> None:
        """Wait until a process that was started takes connections."""
        host, _, port = {"agent": self.agent, "gateway": self.gateway}.get(name, name).rpartition(
            ":"
        )
        end = time.monotonic() + START_BOUND
        while time.monotonic() < end:
            assert self._processes[name].poll() is None, f"{name} ended:\n{self.said(name)}"
            with contextlib.suppress(OSError), closing(socket.create_connection((host, int(port)))):
                return
            time.sleep(0.05)
        raise AssertionError(f"{name} does not listen:\n{self.said(name)}")

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to a process; wait for it to end if it is one that ends it."""
        process = self._processes[name]
        process.send_signal(number)
        if number is signal.SIGSTOP:
            self._frozen.add(name)
        elif number is signal.SIGCONT:
            self._frozen.discard(name)
        else:
            process.wait(STOP_BOUND)

    def stop(self) -> None:
        """End everything; fails when something does not drain, or ended by itself."""
        left = dict(self._processes)
        for name in list(self._frozen):
            self.signal(name, signal.SIGCONT)
        with contextlib.ExitStack() as at_the_end:
            for process in left.values():
                at_the_end.callback(_end, process)
            for names in (["gateway", "agent"], self.schedulers):
                asked = [name for name in names if left[name].poll() is None]
                for name in asked:
                    left[name].send_signal(signal.SIGTERM)
                for name in asked:
                    assert left[name].wait(STOP_BOUND) == 0, self.said(name)

    def abandon(self) -> None:
        """End everything at once."""
        for process in self._processes.values():
            _end(process)

    def log(self, name: str) -> Path:
        """What a process printed goes here."""
        return self.directory / f"{name.replace(':', '-')}.log"

    def said(self, name: str) -> str:
        """What a process printed."""
        return self.log(name).read_text("utf-8", "replace")

    # What is known of it

    def leader(self) -> tuple[str, int]:
        """Address and epoch of the leader; an empty address when nobody's lease lasts."""
        [(address, epoch, lasts)] = self._postgres.execute(
            "SELECT address, epoch, expire_time > clock_timestamp() FROM scheduler.leader", self.url
        )
        return (address if lasts else "", epoch)

    def standby(self) -> str:
        """Address of the scheduler that does not lead."""
        leader, _ = self.leader()
        [other] = [address for address in self.schedulers if address != leader]
        return other

    def client(self) -> ConveyorClient:
        """Return a client of the gateway. Use it as an async context manager."""
        return ConveyorClient(self.gateway, patience=PATIENCE)

    async def history(self) -> History:
        """Everything that the database holds."""
        async with _reading(self.url) as store:
            return await of_store(store)


@asynccontextmanager
async def _reading(url: str) -> AsyncIterator[Any]:
    store = PostgresStore(PostgresAddress.parse(url))
    await store.acquire()
    try:
        yield store
    finally:
        await store.close()


@contextmanager
def running_cluster(
    directory: Path, postgres: PostgresServer, url: str, *, lease: float
) -> Iterator[Cluster]:
    """Run a cluster inside the block."""
    cluster = Cluster(directory, postgres, url, lease=lease)
    try:
        cluster.start()
        yield cluster
    except BaseException:
        cluster.abandon()
        raise
    cluster.stop()


def _end(process: subprocess.Popen[bytes] | Forked) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.wait(5)
