"""Growth: what a turn, memory and a start cost with much unfinished work, and with many sessions.

Each size is a process of its own with engine, servicers and a SQLite file, but without gRPC, so
that what might grow is not hidden behind what does not. They are measured in turn, group by group.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import Any, cast

import msgspec

from bench import report
from bench.peers.protocol import say
from bench.processes import PYTHON, process, workspace
from conveyor.common.v1 import content_pb2
from conveyor.scheduler.v1 import run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from conveyor.scheduler.v1 import worker_service_pb2 as ws
from scheduler_svc import app
from scheduler_svc.domain.records import PreviousRun, Run, RunState
from scheduler_svc.engine import Engine
from scheduler_svc.forecast.desk import Desk
from scheduler_svc.rpc.scheduler import SchedulerServicer
from scheduler_svc.rpc.worker import WorkerServicer
from scheduler_svc.store.base import Batch
from scheduler_svc.store.sqlite import SqliteStore
from svckit.clock import SystemClock
from svckit.service import calm_collector
from svckit.settings import load

SIZES = (10, 100, 10_000, 100_000)
SESSIONS_EVER = 1_000_000
# Every unfinished run in a session of its own: all of them stand in the ready queue.
CUSTOMERS = 1000
ROWS = 5000
GROUP = 50
START_SECONDS = 300.0


async def measure(sizes: tuple[int, ...], sessions_ever: int, rounds: int) -> str:
    """The text of this section."""
    async with AsyncExitStack() as stack:
        sized = []
        for unfinished, ever in [*((size, 0) for size in sizes), (100, sessions_ever)]:
            sized.append(await stack.enter_async_context(_Sized(unfinished, ever)))
        for _ in range(rounds):
            for one in sized:
                await one.group()
    base = median(next(one for one in sized if one.unfinished == 100).turns)
    head = ["unfinished runs", "sessions ever", "ms a turn", "to 100", "kB a run", "start s", "MB"]
    lines = [
        [
            f"{one.unfinished:,}",
            f"{one.unfinished + one.ever:,}",
            report.number(median(one.turns)),
            f"{median(one.turns) / base:.2f} x",
            report.number(one.found["run_kb"]) if one.unfinished >= 10_000 else "",
            report.number(one.found["start_s"]),
            report.number(one.found["rss_mb"]),
        ]
        for one in sized
    ]
    notes = """
*ms a turn*: CPU time of the process for one message, its lease and its end, each answered before
the next begins; medians of groups in turn. Marks: at most 1.5 x at 100,000, 4 kB a run, and the
last line as the second. *kB a run*: what the resident size grew by when they were loaded, the page
cache of SQLite included, which is at most 32 MB. *start s*: from opening the store to taking
commands, *MB*: the resident size then. The sessions ever seen have one ended run each.
"""
    return report.grid([head, *lines], words=()) + notes


class _Sized:
    """A process of one size."""

    def __init__(self, unfinished: int, ever: int) -> None:
        self.unfinished, self.ever = unfinished, ever
        self.turns: list[float] = []
        self.found: dict[str, float] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> _Sized:
        place = self._stack.enter_context(workspace())
        for what in ("fill", "measure"):
            # Another process than the one that filled the store: memory comes from it alone.
            child = process(
                *PYTHON,
                "bench.growth",
                what,
                str(place.directory / "scheduler.db"),
                str(self.unfinished),
                str(self.ever),
                output=asyncio.subprocess.PIPE,
                input=asyncio.subprocess.PIPE,
            )
            self._child = await self._stack.enter_async_context(child)
            async with asyncio.timeout(START_SECONDS):
                self.found = await self._answer()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def group(self) -> None:
        """One more group of turns."""
        assert self._child.stdin is not None
        self._child.stdin.write(b"go\n")
        self.turns.append((await self._answer())["turn_ms"])

    async def _answer(self) -> dict[str, float]:
        assert self._child.stdout is not None
        line = await self._child.stdout.readline()
        if not line:
            raise RuntimeError("the measurement of growth failed")
        found: dict[str, float] = json.loads(line)
        return found


class _Scheduler:
    """A scheduler in this process, and one who sends and works."""

    def __init__(self, path: str) -> None:
        settings = load(environ={"CONVEYOR_LOG__LEVEL": "error"})
        clock = SystemClock()
        self.store = SqliteStore(Path(path))
        self.engine = Engine(self.store, app.config(settings), clock)
        self._scheduler = SchedulerServicer(self.engine, app.defaults(settings), Desk(clock))
        self._worker = WorkerServicer(self.engine)
        self._sent = 0

    async def start(self) -> None:
        await self.engine.start()
        self._running = asyncio.create_task(self.engine.run())

    async def stop(self) -> None:
        self._running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._running
        await self.engine.close()

    async def send(self) -> None:
        self._sent += 1
        name = f"{os.getpid()}-{self._sent}"
        item = ss.EnqueueItem(
            spec=run_pb2.RunSpec(
                session_key=f"agent:main:bench:direct:{name}",
                customer_key=f"c{self._sent % CUSTOMERS}",
                queue="agent",
            ),
            message=content_pb2.Message(
                message_id=f"m{name}",
                role=content_pb2.ROLE_USER,
                parts=[content_pb2.ContentPart(text="hello")],
            ),
            request_id=name,
        )
        request = ss.EnqueueRunsRequest(items=[item])
        answer = await self._scheduler.EnqueueRuns(request, _NO_DEADLINE)
        assert answer.results[0].HasField("accepted"), answer

    async def turn(self) -> None:
        await self.send()
        request = ws.LeaseRunsRequest(queue="agent", max_runs=1)
        request.worker.name, request.worker.incarnation = "w", 1
        [leased] = (await self._worker.LeaseRuns(request, _NO_DEADLINE)).leased_runs
        completion = ws.RunCompletion(lease_id=leased.lease.lease_id)
        completion.result.reply.CopyFrom(leased.run.inputs[0].message)
        completion.result.reply.role = content_pb2.ROLE_AGENT
        done = await self._worker.CompleteRuns(
            ws.CompleteRunsRequest(completions=[completion]), _NO_DEADLINE
        )
        assert done.results[0].HasField("run"), done


class _NoDeadline:
    def time_remaining(self) -> None:
        return None


_NO_DEADLINE = cast(Any, _NoDeadline())


async def _fill(path: str, unfinished: int, ever: int) -> None:
    scheduler = _Scheduler(path)
    await scheduler.start()
    await scheduler.send()
    [first] = scheduler.engine._kernel.runs.values()
    payload = await scheduler.engine.payload(first.run_id)
    run, kept = msgspec.structs.replace(first), payload or b""
    await scheduler.stop()
    store = SqliteStore(Path(path))
    await store.acquire()
    number = 1
    for count, state in ((unfinished - 1, RunState.QUEUED), (ever, RunState.SUCCEEDED)):
        for start in range(0, count, ROWS):
            numbers = range(number + 1, number + 1 + min(ROWS, count - start))
            number = numbers[-1]
            runs = [_copy(run, i, state) for i in numbers]
            await store.commit(
                Batch(
                    time=run.create_time,
                    runs=runs,
                    payloads={r.run_id: kept for r in runs},
                    sessions=[(r.session_key, 2, _told(r)) for r in runs],
                )
            )
    await store.close()


def _copy(run: Run, number: int, state: RunState) -> Run:
    run_id = f"{run.run_id[:-8]}{number:08d}"
    return msgspec.structs.replace(
        run,
        run_id=run_id,
        flow_id=run_id,
        order=number,
        session_key=f"agent:main:bench:direct:old-{number}",
        customer_key=f"c{number % CUSTOMERS}",
        state=state,
        ready_since=0,
    )


def _told(run: Run) -> list[PreviousRun]:
    return [PreviousRun(run.run_id, run.state, 1)] if run.terminal else []


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def _measured(path: str, unfinished: int) -> None:
    scheduler = _Scheduler(path)
    gc.collect()
    before, begin = _resident(), time.perf_counter()
    await scheduler.start()
    started = time.perf_counter() - begin
    calm_collector()
    after = _resident()
    for _ in range(GROUP):
        await scheduler.turn()
    say(
        json.dumps(
            {
                "start_s": started,
                "run_kb": (after - before) / unfinished / 1000,
                "rss_mb": after / 1e6,
            }
        )
    )
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        spent = time.process_time()
        for _ in range(GROUP):
            await scheduler.turn()
        say(json.dumps({"turn_ms": (time.process_time() - spent) / GROUP * 1000}))
    await scheduler.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what")
    parser.add_argument("path")
    parser.add_argument("unfinished", type=int)
    parser.add_argument("ever", type=int)
    told = parser.parse_args()
    if told.what == "fill":
        asyncio.run(_fill(told.path, told.unfinished, told.ever))
        say("{}")
    else:
        asyncio.run(_measured(told.path, told.unfinished))
