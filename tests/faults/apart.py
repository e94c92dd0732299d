"""Scheduler, agent and gateway as processes of a test, the agent one that lives many lives."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from conveyor.events.v1 import event_pb2
from conveyor_client import ConveyorClient
from tests.system.harness import (
    PATIENCE,
    START_BOUND,
    STOP_BOUND,
    clean_environment,
    free_addresses,
    log_of,
)
from tests.system.processes import Forked, start_service


class Apart:
    """Its processes, in a directory of its own. `toml` is added to the configuration.

    `worker_to`: where the agent finds the scheduler, when something stands between them.
    """

    def __init__(
        self, directory: Path, toml: str, environ: Mapping[str, str], *, worker_to: str = ""
    ) -> None:
        self.directory = directory
        self.store = directory / "data"
        self.config = directory / "conveyor.toml"
        self._environ = dict(environ)
        self._worker_to = {"CONVEYOR_SERVICES__SCHEDULER": worker_to} if worker_to else {}
        self._processes: dict[str, subprocess.Popen[bytes] | Forked] = {}
        self.scheduler, self.agent, self.gateway, http = free_addresses(4)
        self.config.write_text(
            f"""\
[store]
url = "sqlite:///{self.store}"
[gateway]
http = "{http}"
grpc = "{self.gateway}"
[services]
scheduler = "{self.scheduler}"
agent = "{self.agent}"
acp = "127.0.0.1:1"
{toml}
"""
        )

    def start(self) -> None:
        """Start everything and wait until it listens."""
        self._start("scheduler", "scheduler_svc")
        self._start("gateway", "gateway_svc")
        self._start("agent", "tests.faults.reborn", **self._worker_to)
        for name in ("scheduler", "gateway", "agent"):
            self._wait_listening(name)

    def client(self) -> ConveyorClient:
        """Return a client of the gateway. Use it as an async context manager."""
        return ConveyorClient(self.gateway, patience=PATIENCE)

    async def events(self, session_key: str) -> list[event_pb2.Event]:
        """Return the log of one session, checked for gaps."""
        return await log_of(self.scheduler, session_key)

    def said(self, name: str) -> str:
        """What a process printed."""
        return self._log(name).read_text("utf-8", "replace")

    def stop(self) -> None:
        """End everything; fails when something does not drain, or ended by itself."""
        with contextlib.ExitStack() as at_the_end:
            for process in self._processes.values():
                at_the_end.callback(_end, process)
            for name in ("gateway", "agent", "scheduler"):
                process = self._processes[name]
                assert process.poll() is None, self.said(name)
                process.send_signal(signal.SIGTERM)
                assert process.wait(STOP_BOUND) == 0, self.said(name)

    def abandon(self) -> None:
        """End everything at once."""
        for process in self._processes.values():
            _end(process)

    def _start(self, name: str, module: str, **environ: str) -> None:
        with self._log(name).open("ab") as log:
            self._processes[name] = start_service(
                [sys.executable, "-m", module, "--config", str(self.config)],
                env=clean_environment(GRPC_VERBOSITY="NONE", **self._environ, **environ),
                cwd=self.directory,
                log=log,
            )

    def _wait_listening(self, name: str) -> None:
        addresses = {"scheduler": self.scheduler, "agent": self.agent, "gateway": self.gateway}
        host, _, port = addresses[name].rpartition(":")
        end = time.monotonic() + START_BOUND
        while time.monotonic() < end:
            assert self._processes[name].poll() is None, f"{name} ended:\n{self.said(name)}"
            with contextlib.suppress(OSError), closing(socket.create_connection((host, int(port)))):
                return
            time.sleep(0.05)
        raise AssertionError(f"{name} does not listen:\n{self.said(name)}")

    def _log(self, name: str) -> Path:
        return self.directory / f"{name}.log"


@contextmanager
def running_apart(
    directory: Path, toml: str, environ: Mapping[str, str] | None = None
) -> Iterator[Apart]:
    """Run the processes inside the block."""
    with started(Apart(directory, toml, environ or {})) as apart:
        yield apart


@contextmanager
def started(apart: Apart) -> Iterator[Apart]:
    """Run what was prepared inside the block."""
    try:
        apart.start()
        yield apart
    except BaseException:
        apart.abandon()
        raise
    apart.stop()


def _end(process: subprocess.Popen[bytes] | Forked) -> None:
    # The whole group: an agent's lives are children of its process.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(5)
