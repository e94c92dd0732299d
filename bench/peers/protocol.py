"""What every measured system does alike. Standard library only: all environments import it.

A *worker* process executes jobs and prints `ready` once, and `done PHASE NANOSECONDS` when a phase
has executed all its jobs. A *driver* process reads one phase a line from its input and prints
`sent PHASE NANOSECONDS` with the time of its beginning. When the worker is told to stop it writes
what it saw. All times are of the one monotonic clock of the machine.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# A multiple of every width, so that each key belongs to one sender and its order is known.
KEYS = 128


@dataclass(frozen=True)
class Phase:
    """So many jobs, `batch` in one call, `width` senders, each pausing after a call."""

    name: str
    jobs: int
    batch: int = 1
    width: int = 1
    pause: float = 0.0

    def line(self) -> str:
        """For the driver's input."""
        return json.dumps(asdict(self)) + "\n"


class Seen:
    """What a worker saw."""

    def __init__(self) -> None:
        # Phase -> number of the job -> when it was sent, and when it began.
        self._begun: dict[str, dict[int, tuple[int, int]]] = {}
        self._newest: dict[tuple[str, str], int] = {}
        self._running: set[str] = set()
        self._ended: dict[str, int] = {}
        self.most_running = 0
        self.out_of_order = 0

    def begin(self, job: dict[str, Any]) -> None:
        """A job begins; it must be the next of its key, and alone."""
        now = time.monotonic_ns()
        key, phase = job["key"], job["phase"]
        if key in self._running or job["number"] <= self._newest.get((phase, key), -1):
            self.out_of_order += 1
        self._newest[phase, key] = job["number"]
        self._running.add(key)
        self.most_running = max(self.most_running, len(self._running))
        self._begun.setdefault(phase, {})[job["number"]] = (job["sent"], now)

    def end(self, job: dict[str, Any]) -> None:
        """A job ends."""
        phase = job["phase"]
        self._running.discard(job["key"])
        self._ended[phase] = self._ended.get(phase, 0) + 1
        if self._ended[phase] == job["of"]:
            say(f"done {phase} {time.monotonic_ns()}")

    def write(self, file: str) -> None:
        """Everything as JSON."""
        Path(file).write_text(
            json.dumps(
                {
                    "begun": self._begun,
                    "out_of_order": self.out_of_order,
                    "most_running": self.most_running,
                }
            )
        )


def say(line: str) -> None:
    """To the process that started this one."""
    print(line, flush=True)


def job(phase: Phase, number: int) -> dict[str, Any]:
    """The `number`-th job of a phase, sent now."""
    return {
        "phase": phase.name,
        "key": f"k{number % KEYS}",
        "number": number,
        "of": phase.jobs,
        "sent": time.monotonic_ns(),
    }


async def drive(file: str, send: Callable[[list[dict[str, Any]]], Awaitable[object]]) -> None:
    """Does the phases that the input names, until it ends; then writes when what was accepted."""
    loop = asyncio.get_running_loop()
    accepted: dict[str, dict[int, int]] = {}
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        phase = Phase(**json.loads(line))
        calls = phase.jobs // phase.batch
        begin = time.monotonic_ns()

        async def sender(first: int, phase: Phase = phase, calls: int = calls) -> None:
            for call in range(first, calls, phase.width):
                start = call * phase.batch
                numbers = range(start, start + phase.batch)
                await send([job(phase, n) for n in numbers])
                now = time.monotonic_ns()
                accepted.setdefault(phase.name, {}).update(dict.fromkeys(numbers, now))
                if phase.pause:
                    await asyncio.sleep(phase.pause)

        await asyncio.gather(*(sender(i) for i in range(phase.width)))
        say(f"sent {phase.name} {begin}")
    Path(file).write_text(json.dumps(accepted))  # noqa: ASYNC240


def run_role(
    work: Callable[[str, str, int], Coroutine[Any, Any, None]],
    send: Callable[[str, str], Coroutine[Any, Any, None]],
    run: Callable[[Coroutine[Any, Any, None]], None] = asyncio.run,
) -> None:
    """Be what the command line says: `worker ADDRESS FILE CAP` or `driver ADDRESS FILE`."""
    logging.disable(logging.INFO)
    role, address, *rest = sys.argv[1:]
    run(work(address, rest[0], int(rest[1])) if role == "worker" else send(address, rest[0]))
