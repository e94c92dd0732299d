"""What tracing costs: turns per second with and without, in one run.

`python -m bench.tracing [--turns 40] [--pairs 8] [--ways 4]` starts two suites side by side, one
of which traces, and loads them in turn, so that both meet the same noise. The `demo` model answers
at once, so a turn is nothing but what the suite itself does. It prints the median of the ratios of
all pairs, and the CPU time of a turn, which other processes disturb less.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench import load, report
from bench.driver import Driver
from bench.processes import (
    PYTHON,
    Workspace,
    descendants,
    listening,
    process,
    serving,
    up,
    workspace,
)
from bench.suite import ask
from conveyor_client import ConveyorClient
from conveyor_client.supervision.addresses import free_addresses
from svckit.grpc.channel import make_channel

WIDTH = 8
CUSTOMERS = 32
BATCH = 64
MARK = 0.10
"""Most turns per second that tracing may cost."""
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Variant:
    """A way to trace. `collector`: what stands there, None for nothing at all."""

    name: str
    collector: str | None
    ratio: float = 1.0


VARIANTS = (
    Variant("every flow", "answers"),
    Variant("one flow in ten", "answers", ratio=0.1),
    Variant("every flow, the collector hangs", "hang"),
    Variant("every flow, no collector there", None),
)


@dataclass
class Measured:
    """Bursts of one suite."""

    rates: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """CPU time of all its processes for a turn."""


class Loaded:
    """Something that runs, and what a turn of it is."""

    def __init__(self, pids: Iterable[int], turns: Callable[[int], Awaitable[object]]) -> None:
        self._pids = list(pids)
        self._turns = turns
        self.measured = Measured()

    async def burst(self, turns: int) -> None:
        """Do so many turns side by side and note how long they took."""
        loop = asyncio.get_running_loop()
        before, began = self._cpu(), loop.time()
        await self._turns(turns)
        self.measured.rates.append(turns / (loop.time() - began))
        self.measured.seconds.append((self._cpu() - before) / turns)

    def _cpu(self) -> float:
        ticks = 0
        for pid in self._pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / TICKS


async def measure(turns: int, pairs: int, ways: int = len(VARIANTS)) -> str:
    """The table: the first `ways` to trace, each beside the same without."""
    lines = [["", "turns/s", "without", "cost", "CPU ms a turn", "without"]]

    def line(name: str, traced: Loaded, plain: Loaded) -> None:
        rates = zip(traced.measured.rates, plain.measured.rates, strict=True)
        cost = 1 - median(rate / without for rate, without in rates)
        both = (traced.measured, plain.measured)
        lines.append(
            [
                name,
                *(report.number(median(one.rates)) for one in both),
                f"{cost:+.1%}",
                *(report.number(median(one.seconds) * 1000) for one in both),
            ]
        )

    async with _suite("") as plain:
        for variant in VARIANTS[:ways]:
            async with _collector(variant) as endpoint:
                toml = f'otlp_endpoint = "{endpoint}"\nsample_ratio = {variant.ratio}\n'
                async with _suite(f"[telemetry]\n{toml}") as traced:
                    await _in_turn(traced, plain, turns, pairs)
                    line(variant.name, traced, plain)
    async with (
        _collector(VARIANTS[0]) as endpoint,
        _scheduler("") as plain,
        _scheduler(endpoint) as traced,
    ):
        await _in_turn(traced, plain, BATCH * (turns // 10 or 1), pairs)
        line("scheduler and worker alone, every flow", traced, plain)
    return (
        report.grid(lines)
        + f"""
*Cost*: the share of turns per second that tracing takes, the median over {pairs} pairs of bursts of
{turns} messages; mark {MARK:.0%}. Message to reply through all four services with {WIDTH} customers
at a time. Everything shares the cores, the collector included, which throws away what it gets.
*CPU ms a turn*: of all processes of the suite, exporting included. Last line: turns that do
nothing, sent {BATCH} a call to a scheduler with one worker: as much tracing for as little work as
there is.
"""
    )


async def _in_turn(traced: Loaded, plain: Loaded, turns: int, pairs: int) -> None:
    for loaded in (plain, traced):
        await loaded.burst(turns)  # warm
        loaded.measured = Measured()
    for pair in range(pairs):
        # Whoever is second meets what the first left behind: both are it equally often.
        for loaded in (plain, traced) if pair % 2 else (traced, plain):
            await loaded.burst(turns)


@contextlib.asynccontextmanager
async def _collector(variant: Variant) -> AsyncIterator[str]:
    (address,) = free_addresses(1)
    if variant.collector is None:
        yield f"http://{address}"
        return
    port = address.rpartition(":")[2]
    async with process(*PYTHON, "bench.collector", port, variant.collector) as child:
        await listening(address, child)
        yield f"http://{address}"


@contextlib.asynccontextmanager
async def _suite(toml: str) -> AsyncIterator[Loaded]:
    with workspace(main_limit=WIDTH) as place:
        _configure(place, toml)
        async with up(place) as pid, ConveyorClient(place.gateway) as client:

            async def turn(i: int) -> None:
                await ask(client, "[[reply: done]]", i % CUSTOMERS)

            yield Loaded(descendants(pid), lambda turns: load.side_by_side(turn, turns, WIDTH))


@contextlib.asynccontextmanager
async def _scheduler(endpoint: str) -> AsyncIterator[Loaded]:
    """A scheduler and a worker that ends every turn at once."""
    with workspace(main_limit=BATCH) as place:
        _configure(place, f'[telemetry]\notlp_endpoint = "{endpoint}"\n')
        service = process(*PYTHON, "scheduler_svc", "--config", str(place.config))
        found = str(place.directory / "worker.json")
        async with service as scheduler, make_channel(place.scheduler) as channel:
            await serving(place.scheduler, scheduler)
            async with process(*PYTHON, "bench.worker", place.scheduler, found, endpoint) as worker:
                driver = Driver(channel)

                async def turns(count: int) -> None:
                    await load.side_by_side(lambda _: driver.send("x", BATCH), count // BATCH, 4)
                    await driver.idle()

                yield Loaded((scheduler.pid, worker.pid), turns)


def _configure(place: Workspace, toml: str) -> None:
    with place.config.open("a") as config:
        config.write(toml)


def main() -> None:
    """Entry point; see the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m bench.tracing")
    parser.add_argument("--turns", type=int, default=40, help="messages in a burst")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--ways", type=int, default=len(VARIANTS), help="the first so many")
    options = parser.parse_args()
    here = report.machine()
    table = asyncio.run(measure(options.turns, options.pairs, options.ways))
    sys.stdout.write(f"{table}\nMeasured on {here}.\n")


if __name__ == "__main__":
    main()
