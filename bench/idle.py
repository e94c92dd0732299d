"""Idle: from sending a message to the worker that holds it, beside what that must cost at least.

The yardstick is two round trips of a bare echo and one write that reaches the disk. All are taken
in turn in the same run, each after the same pause, so that they meet the same noise.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench import echo, report, staged
from bench.driver import Driver
from bench.processes import PYTHON, process, serving, workspace
from svckit.grpc.channel import make_channel

PAUSE_SECONDS = 0.01
WARM_UP = 100
MARK = 2.0


@dataclass
class _Spent:
    """Milliseconds."""

    echoes: list[float] = field(default_factory=list)
    hot: list[float] = field(default_factory=list)
    disk: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)


async def measure(rounds: int) -> str:
    """The text of this section."""
    async with echo.called() as echoed:
        spent, leased, _ = await _one(rounds, echoed, stages=False)
        _, messages, stamps = await _one(rounds // 2, echoed, stages=True)
    way = [(here - sent) / 1e6 for sent, here in leased]
    floor = median(spent.echoes) + median(spent.disk)
    hot = median(spent.hot) + median(spent.disk)
    rows = [
        ("bare echo, twice", spent.echoes, ""),
        ("bare echo, twice, without a pause before", spent.hot, ""),
        ("4 KiB write and fsync", spent.disk, ""),
        ("EnqueueRuns answered", spent.answered, "durable before the answer"),
        (
            "enqueue to lease",
            way,
            f"{median(way) / floor:.2f} x (two echoes + fsync), mark {MARK:g} x; "
            f"{median(way) / hot:.2f} x with echoes that had no pause",
        ),
    ]
    lines = [
        [name, report.number(median(ms)), report.number(report.percentile(ms, 0.99)), note]
        for name, ms, note in rows
    ]
    return (
        report.grid([["", "p50 ms", "p99 ms", ""], *lines], words=(0, 3))
        + "\nWhere the time goes, in a run of its own with stamps at the borders:\n\n"
        + staged.table(stamps, messages)
    )


async def _one(
    rounds: int, echoed: echo.Call, *, stages: bool
) -> tuple[_Spent, list[tuple[int, int]], dict[str, list[int]]]:
    with workspace(main_limit=4) as place:
        file, stamps = place.directory / "worker.json", place.directory / "stamps.json"
        service = ("bench.staged", str(stamps)) if stages else ("scheduler_svc",)
        async with process(*PYTHON, *service, "--config", str(place.config)) as scheduler:
            await serving(place.scheduler, scheduler)
            async with (
                make_channel(place.scheduler) as channel,
                process(*PYTHON, "bench.worker", place.scheduler, str(file)),
            ):
                spent = await _rounds(Driver(channel), echoed, place.directory, rounds)
        leased = [(sent, here) for sent, here in json.loads(file.read_text())["here"]["idle"]]
        return spent, leased, json.loads(stamps.read_text()) if stages else {}


async def _rounds(driver: Driver, echoed: echo.Call, directory: Path, rounds: int) -> _Spent:
    spent, unheeded = _Spent(), _Spent()
    body = b"x" * 500
    with (directory / "probe").open("wb", buffering=0) as file:
        for number in range(-WARM_UP, rounds):
            into = spent if number >= 0 else unheeded
            async with _timed(into.echoes):
                await echoed(body)
                await echoed(body)
            async with _timed(into.hot, pause=0.0):
                await echoed(body)
                await echoed(body)
            async with _timed(into.disk, pause=0.0):
                file.write(b"x" * 4096)
                os.fsync(file.fileno())
            async with _timed(into.answered):
                await driver.send("idle" if number >= 0 else "warm")
        await driver.idle()
    return spent


@asynccontextmanager
async def _timed(into: list[float], *, pause: float = PAUSE_SECONDS) -> AsyncIterator[None]:
    if pause:
        await asyncio.sleep(pause)
    begin = time.perf_counter()
    yield
    into.append((time.perf_counter() - begin) * 1000)
