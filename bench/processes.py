"""Real processes for a measurement: started from a configuration of their own, ended for sure."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from grpc_health.v1 import health_pb2, health_pb2_grpc

from conveyor_client.supervision.addresses import accepts_connections, free_addresses
from svckit.grpc.channel import make_channel

ROOT = Path(__file__).resolve().parents[1]
PYTHON = (sys.executable, "-m")
CONVEYOR = str(Path(sys.executable).with_name("conveyor"))
START_SECONDS = 90
STOP_SECONDS = 15


@dataclass(frozen=True)
class Workspace:
    """A configuration with a data directory and addresses that nobody else uses."""

    directory: Path
    config: Path
    scheduler: str
    agent: str
    acp: str
    gateway: str
    http: str


@contextlib.contextmanager
def workspace(*, main_limit: int = 4, store: str = "") -> Iterator[Workspace]:
    """Makes a workspace on the disk of the repository (not in memory), removed at the end.

    `store` is an address of PostgreSQL; left out, the store is in the workspace.
    """
    (ROOT / "build").mkdir(exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir=ROOT / "build"))
    scheduler, agent, acp, gateway, http = free_addresses(5)
    config = directory / "conveyor.toml"
    local = f"sqlite:///{directory / 'data'}"
    config.write_text(
        f'store.url = "{store or local}"\n'
        f"lanes.main.limit = {main_limit}\n"
        f'services = {{ scheduler = "{scheduler}", agent = "{agent}", acp = "{acp}" }}\n'
        f'gateway = {{ grpc = "{gateway}", http = "{http}" }}\n'
        'log = { level = "error", format = "json" }\n'
    )
    try:
        yield Workspace(directory, config, scheduler, agent, acp, gateway, http)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.asynccontextmanager
async def process(
    *command: str, output: int | None = None, input: int = subprocess.DEVNULL
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Runs a command; at the end asks it to stop, and ends it if it does not.

    What it prints goes to our standard error unless `output` says otherwise; `input` gives it one.
    """
    child = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        stdin=input,
        stdout=sys.stderr if output is None else output,
        start_new_session=True,
    )
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await child.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            await child.wait()


async def serving(address: str, child: asyncio.subprocess.Process) -> None:
    """Waits until the service at `address` says `SERVING`. Fails when its process ends."""
    channel = make_channel(address)
    stub = health_pb2_grpc.HealthStub(channel)

    async def answered() -> None:
        while True:
            with contextlib.suppress(Exception):
                reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=1)
                if reply.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            await asyncio.sleep(0.02)

    waiting = asyncio.create_task(answered())
    ended = asyncio.create_task(child.wait())
    try:
        done, _ = await asyncio.wait(
            {waiting, ended}, timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        if waiting not in done:
            raise RuntimeError(f"nothing serves at {address}")
    finally:
        waiting.cancel()
        ended.cancel()
        await channel.close()


async def listening(address: str, child: asyncio.subprocess.Process) -> None:
    """Waits until something listens at `address`. Fails when its process ends."""
    while not accepts_connections(address):
        if child.returncode is not None:
            raise RuntimeError(f"nothing listens at {address}")
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def up(place: Workspace) -> AsyncIterator[int]:
    """Runs `conveyor up` in a workspace; gives its process id when everything serves."""
    async with process(
        CONVEYOR, "--config", str(place.config), "up", output=subprocess.DEVNULL
    ) as child:
        for address in (place.scheduler, place.agent, place.acp, place.gateway):
            await serving(address, child)
        yield child.pid


def descendants(pid: int) -> dict[int, str]:
    """Process id and command line of everything below `pid`."""
    listed = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid=,args="], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    children: dict[int, list[tuple[int, str]]] = {}
    for line in listed.splitlines():
        child, parent, command = line.split(None, 2)
        children.setdefault(int(parent), []).append((int(child), command))
    found: dict[int, str] = {}
    below = [pid]
    while below:
        for child_pid, command in children.get(below.pop(), []):
            found[child_pid] = command
            below.append(child_pid)
    return found
