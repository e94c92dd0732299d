"""Throughput: turns per second beside what a bare echo allows for the same number of calls.

A round is one burst of echoes, then one of turns; rounds alternate, so that both meet the same
noise. Clients call with the same width.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from bench import echo, load, report
from bench.driver import Driver
from bench.processes import PYTHON, Workspace, process, serving, workspace
from svckit.grpc.channel import make_channel

WIDTH = 64
BATCH = 64
# Message, lease and end in a call each: what a turn takes where nothing is shared.
CALLS = 3
MARK = 0.5


async def measure(runs: int, rounds: int) -> str:
    """The text of this section. `runs` in each burst, a multiple of 64."""
    with workspace(main_limit=WIDTH) as place:
        async with (
            echo.called() as bare,
            echo.called(ours=True) as ours,
            process(*PYTHON, "scheduler_svc", "--config", str(place.config)) as service,
        ):
            await serving(place.scheduler, service)
            found = [
                await _measured(place, batch, runs, rounds, (bare, ours)) for batch in (1, BATCH)
            ]
    return _text(found)


@dataclass(frozen=True)
class _Found:
    batch: int
    # How many calls a turn took.
    calls: float
    # Per second.
    bare: float
    ours: float
    turns: float


async def _measured(
    place: Workspace, batch: int, runs: int, rounds: int, echoes: tuple[echo.Call, echo.Call]
) -> _Found:
    rates: list[list[float]] = [[], [], []]
    file = place.directory / f"worker-{batch}.json"
    async with (
        make_channel(place.scheduler) as channel,
        process(*PYTHON, "bench.worker", place.scheduler, str(file)),
    ):
        driver = Driver(channel)

        async def burst() -> None:
            width = WIDTH if batch == 1 else 4
            await load.side_by_side(lambda _: driver.send("x", batch), runs // batch, width)
            await driver.idle()

        async def echoed(call: echo.Call) -> None:
            await load.side_by_side(lambda _: call(b"x" * 500), 2 * runs, WIDTH)

        await burst()
        for _ in range(rounds):
            for into, call in zip(rates, echoes, strict=False):
                into.append(await _rate(partial(echoed, call), 2 * runs))
            rates[2].append(await _rate(burst, runs))
    made = _calls(file)
    turns = (rounds + 1) * runs
    calls = 1 / batch + (made["LeaseRuns"] + made["CompleteRuns"]) / turns
    return _Found(batch, calls, *map(median, rates))


def _calls(file: Path) -> dict[str, int]:
    found: dict[str, int] = json.loads(file.read_text())["calls"]
    return found


async def _rate(work: Callable[[], Awaitable[object]], count: int) -> float:
    begin = time.perf_counter()
    await work()
    return count / (time.perf_counter() - begin)


def _text(found: list[_Found]) -> str:
    head = ["", "turns/s", "calls a turn", "bare echo/s", "of 3 calls each", "of as many calls"]
    lines = [
        [
            "one message per call" if one.batch == 1 else f"{one.batch} messages per call",
            report.number(one.turns),
            report.number(one.calls),
            report.number(one.bare),
            f"{one.turns * CALLS / one.bare:.0%}",
            f"{one.turns * one.calls / one.bare:.0%}",
        ]
        for one in found
    ]
    ours = median(one.ours / one.bare for one in found)
    return (
        report.grid([head, *lines])
        + f"""
*Of 3 calls each*: turns beside what the echo allows when message, lease and end of a turn are one
call each, mark {MARK:.0%}. *Of as many calls*: beside as many echoes as calls were really made; a
worker with much to do leases and ends several turns with one call, which is less work for the same
turns. A turn is four things that the scheduler stores: the message, the lease, the reply and the
end. An echo with our interceptors on both sides reaches {ours:.0%} of the bare one.
"""
    )
