"""Turns per second, enqueue-to-lease latency and recovery, beside a bare grpc.aio echo.

`python -m bench.first [--write] [--quick] [--parts core,suite,restart]`. Everything runs as real
processes on this machine, with SQLite in `build/`; nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from bench import core, report, suite

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "reference" / "performance.md"
PARTS = ("core", "suite", "restart")


async def _measure(parts: list[str], *, quick: bool) -> str:
    few = 10 if quick else 1
    rows = await core.measure_echo(20_000 // few)
    if "core" in parts:
        rows += await core.measure_scheduler(6400 // few)
    if "suite" in parts:
        rows += await suite.measure_suite(400 // few, 10 // few or 1)
    if "restart" in parts:
        rows += await suite.measure_restart(5 // few or 1)
    return report.table(rows)


def _document(machine: str, table: str) -> str:
    return f"""# Performance

Made by `make bench ARGS=--write` on {machine}.

The first row is the yardstick: a server that does nothing but answer, called by the same client on
the same machine in the same run. *Rate to echo* is how many echo calls fit into the time of one,
*p50 to echo* how many times an echo's round trip it takes. Rates are with {core.WIDTH} calls at the
same time ({suite.WIDTH} for the whole suite), latencies with one, unless the row says otherwise. A
turn is four things that the scheduler has to store: the message, the lease, the reply and the end.

{table}
All processes share the cores, the one that measures included. *Enqueue to lease* is from just
before the message is sent to the moment the worker has it.
"""


def main() -> None:
    """Entry point; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"also write {DOCUMENT.name}")
    parser.add_argument("--quick", action="store_true", help="a tenth of the load, to try it")
    parser.add_argument("--parts", default=",".join(PARTS), help="which, between commas")
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    machine = report.machine()
    table = asyncio.run(_measure(parts, quick=arguments.quick))
    print(machine)
    print(table, end="")
    if arguments.write:
        DOCUMENT.write_text(_document(machine, table), encoding="utf-8")


if __name__ == "__main__":
    main()
