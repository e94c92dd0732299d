"""Conveyor, Procrastinate and DBOS on one PostgreSQL server, under the same load, in one run.

The peers are installed from PyPI into an environment of their own, `.venv-bench`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import report
from bench.peers.protocol import KEYS, Phase
from bench.processes import PYTHON, ROOT, process, serving, workspace
from svckit.testing.postgres import PostgresMissing, PostgresServer, postgres_server

ENVIRONMENT = ROOT / ".venv-bench"
PACKAGES = ("procrastinate>=3.10,<4", "psycopg[binary,pool]>=3.3", "dbos>=3.4,<4")
CAP = 16
WIDTH = 64
ROUNDS = 3
IDLE_PAUSE = 0.02
PHASE_SECONDS = 120.0
START_SECONDS = 60.0


@dataclass
class _System:
    """One running system: its worker, its driver, and how fast it was in each phase."""

    name: str
    file: Path
    accepted: Path
    worker: asyncio.subprocess.Process
    driver: asyncio.subprocess.Process
    rates: dict[str, list[float]]

    async def run(self, kind: str, number: int, phase: Phase) -> None:
        """Does one phase and waits for its end."""
        assert self.driver.stdin is not None
        self.driver.stdin.write(phase.line().encode())
        async with asyncio.timeout(PHASE_SECONDS):
            begin = await _line(self.driver, "sent")
            end = await _line(self.worker, "done")
        self.rates.setdefault(kind, []).append(phase.jobs / ((end - begin) / 1e9))

    async def all_phases(self, number: int, jobs: int, *, batches: bool) -> None:
        """The idle phase, the busy one, and the one with many messages a call."""
        await self.run("idle", number, Phase(f"idle-{number}", 50, pause=IDLE_PAUSE))
        await self.run("one", number, Phase(f"one-{number}", jobs, width=WIDTH))
        if batches:
            await self.run("batch", number, Phase(f"batch-{number}", jobs, batch=64, width=2))


async def measure(jobs: int) -> str:
    """The text of this section. `jobs` of each busy phase; a multiple of 128."""
    try:
        with postgres_server(fsync="on", full_page_writes="on", shared_buffers="256MB") as server:
            missing = await asyncio.to_thread(_install)
            return await _compared(server, jobs, missing)
    except PostgresMissing as err:
        return f"Not measured: {err}.\n"


def _install() -> str:
    """Makes the environment of the peers. Returns why it cannot be made, or nothing."""
    python = ENVIRONMENT / "bin" / "python"
    if not python.exists():
        venv.create(ENVIRONMENT, with_pip=True)
    command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *PACKAGES]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


async def _compared(server: PostgresServer, jobs: int, missing: str) -> str:
    with tempfile.TemporaryDirectory(prefix="conveyor-bench-") as name:
        directory = Path(name)
        async with AsyncExitStack() as stack:
            ours = await stack.enter_async_context(_conveyor(server, directory))
            both = [ours]
            if not missing:
                peer = _peer(server, directory, "procrastinate")
                both.append(await stack.enter_async_context(peer))
            for system in both:
                await system.run("warm", 0, Phase("warm", KEYS * 2, width=WIDTH))
            for number in range(ROUNDS):
                for system in both:
                    await system.all_phases(number, jobs, batches=True)
        systems = both
        if not missing:
            async with _peer(server, directory, "dbos") as dbos:
                few = max(KEYS, jobs // 16 // KEYS * KEYS)
                await dbos.run("warm", 0, Phase("warm", 16, width=4))
                await dbos.all_phases(0, few, batches=False)
            systems = [*both, dbos]
        return _text(systems, missing)


@asynccontextmanager
async def _conveyor(server: PostgresServer, directory: Path) -> AsyncIterator[_System]:
    url = server.create_database()
    with workspace(main_limit=CAP, store=url) as place:
        async with process(*PYTHON, "scheduler_svc", "--config", str(place.config)) as service:
            await serving(place.scheduler, service)
            command = (*PYTHON, "bench.peers.conveyor_peer")
            async with _pair("Conveyor", command, place.scheduler, directory) as system:
                yield system


@asynccontextmanager
async def _peer(server: PostgresServer, directory: Path, name: str) -> AsyncIterator[_System]:
    command = (str(ENVIRONMENT / "bin" / "python"), "-m", f"bench.peers.{name}_peer")
    titles = {"procrastinate": "Procrastinate", "dbos": "DBOS"}
    async with _pair(titles[name], command, server.create_database(), directory) as system:
        yield system


@asynccontextmanager
async def _pair(
    name: str, command: tuple[str, ...], address: str, directory: Path
) -> AsyncIterator[_System]:
    file, accepted = directory / f"{name}.json", directory / f"{name}-accepted.json"
    async with process(
        *command, "worker", address, str(file), str(CAP), output=subprocess.PIPE
    ) as worker:
        await _line(worker, "ready")
        async with process(
            *command,
            "driver",
            address,
            str(accepted),
            output=subprocess.PIPE,
            input=subprocess.PIPE,
        ) as driver:
            yield _System(name, file, accepted, worker, driver, {})
            assert driver.stdin is not None
            driver.stdin.close()
            await driver.wait()


async def _line(child: asyncio.subprocess.Process, word: str) -> int:
    """Waits for a line that begins with `word`. Returns the number at its end, if it has one."""
    assert child.stdout is not None
    while line := await child.stdout.readline():
        parts = line.decode().split()
        if parts and parts[0] == word:
            return int(parts[-1]) if parts[-1].isdigit() else 0
        sys.stderr.write(line.decode())
    raise RuntimeError(f"the process ended before it said {word!r}")


def _text(systems: list[_System], missing: str) -> str:
    ours = systems[0]
    head = ["", "turns/s", "ours to it", "64 a call", "ours to it", "sent", "accepted", "kept"]
    lines = []
    for system in systems:
        seen = json.loads(system.file.read_text())
        accepted = json.loads(system.accepted.read_text())
        idle = [
            ((begun - sent) / 1e6, (begun - accepted[phase][number]) / 1e6)
            for phase, jobs in seen["begun"].items()
            if phase.startswith("idle")
            for number, (sent, begun) in jobs.items()
        ]

        def cells(kind: str, system: _System = system) -> list[str]:
            if kind not in system.rates:
                return ["", ""]
            rate = median(system.rates[kind])
            return [report.number(rate), f"{median(ours.rates[kind]) / rate:.1f} x"]

        broken = seen["out_of_order"] or seen["most_running"] > CAP
        lines.append(
            [
                system.name,
                *cells("one"),
                *cells("batch"),
                report.number(median(whole for whole, _ in idle)),
                report.number(median(after for _, after in idle)),
                "NO" if broken else "yes",
            ]
        )
    notes = f"""
{CAP} jobs at a time over all, one at a time within each of {KEYS} keys and in the order sent
(*kept* says whether the workers saw that), an empty job body, `synchronous_commit` and `fsync` on.
Medians of {ROUNDS} rounds in turn; DBOS after them, because its polling takes a core. Conveyor: a
driver, the scheduler and a worker as three processes, every message and every turn over gRPC.
Procrastinate: lock per key, one worker with concurrency {CAP}, LISTEN/NOTIFY. DBOS: a queue
partitioned by key with global concurrency, polled every 10 ms. *Sent* and *accepted*: idle, p50 ms
from just before the message is sent, and from when the sender knows that it is stored, to the start
of its job; a job may start before its sender is told.
"""
    if missing:
        notes += f"\nNot measured: Procrastinate and DBOS could not be installed ({missing}).\n"
    return report.grid([head, *lines], words=(0,)) + notes


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.stdout.write(asyncio.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 1024)))
