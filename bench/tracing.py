"""What tracing costs: turns per second with and without, in one run.

`python -m bench.tracing [--turns 100] [--pairs 12] [--ways 4]` starts two suites side by side, one
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
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench import load, report
from bench.processes import PYTHON, Workspace, descendants, listening, process, up, workspace
from bench.suite import ask
from conveyor_client import ConveyorClient
from conveyor_client.supervision.addresses import free_addresses

WIDTH = 8
CUSTOMERS = 32
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
    """A suite that runs, and its client."""

    def __init__(self, pid: int, client: ConveyorClient) -> None:
        self.client = client
        self._pids = list(descendants(pid))
        self.measured = Measured()

    async def burst(self, turns: int) -> None:
        """Send messages side by side and note how long they took."""

        async def turn(i: int) -> None:
            await ask(self.client, "[[reply: done]]", i % CUSTOMERS)

        loop = asyncio.get_running_loop()
        before, began = self._cpu(), loop.time()
        await load.side_by_side(turn, turns, WIDTH)
        self.measured.rates.append(turns / (loop.time() - began))
        self.measured.seconds.append((self._cpu() - before) / turns)

    def _cpu(self) -> float:
        ticks = 0
        for pid in self._pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / TICKS


async def measure(turns: int, pairs: int, ways: int = len(VARIANTS)) -> str:
    """The table: the first `ways` to trace, each beside a suite that does not."""
    lines = [["", "turns/s", "without", "cost", "CPU ms a turn", "without"]]
    async with _suite("") as plain:
        for variant in VARIANTS[:ways]:
            traced, cost = await _compared(plain, variant, turns, pairs)
            lines.append(
                [
                    variant.name,
                    report.number(median(traced.rates)),
                    report.number(median(plain.measured.rates)),
                    f"{cost:+.1%}",
                    report.number(median(traced.seconds) * 1000),
                    report.number(median(plain.measured.seconds) * 1000),
                ]
            )
    return (
        report.grid(lines)
        + f"""
*Cost*: the share of turns per second that tracing takes, the median over {pairs} pairs of bursts of
{turns} messages; mark {MARK:.0%}. Message to reply through all four services with {WIDTH} customers
at a time. Everything shares the cores, the collector included, which throws away what it gets.
*CPU ms a turn*: of all processes of the suite, exporting included.
"""
    )


async def _compared(
    plain: Loaded, variant: Variant, turns: int, pairs: int
) -> tuple[Measured, float]:
    plain.measured = Measured()
    async with _collector(variant) as endpoint:
        toml = f'[telemetry]\notlp_endpoint = "{endpoint}"\nsample_ratio = {variant.ratio}\n'
        async with _suite(toml) as traced:
            for suite in (plain, traced):
                await suite.burst(turns)  # warm
                suite.measured = Measured()
            for pair in range(pairs):
                # Whoever is second meets what the first left behind: both are it equally often.
                for suite in (plain, traced) if pair % 2 else (traced, plain):
                    await suite.burst(turns)
            both = zip(traced.measured.rates, plain.measured.rates, strict=True)
            return traced.measured, 1 - median(rate / without for rate, without in both)


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
            yield Loaded(pid, client)


def _configure(place: Workspace, toml: str) -> None:
    with place.config.open("a") as config:
        config.write(toml)


def main() -> None:
    """Entry point; see the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m bench.tracing")
    parser.add_argument("--turns", type=int, default=100, help="messages in a burst")
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--ways", type=int, default=len(VARIANTS), help="the first so many")
    options = parser.parse_args()
    here = report.machine()
    table = asyncio.run(measure(options.turns, options.pairs, options.ways))
    sys.stdout.write(f"{table}\nMeasured on {here}.\n")


if __name__ == "__main__":
    main()
