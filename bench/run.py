"""Measures this release on this machine, and writes the reference of its performance.

`python -m bench.run [--write] [--quick] [--only idle,throughput]`. Everything runs as real
processes here, with stores in `build/` and a PostgreSQL server of its own; nothing else should run
meanwhile. With `--only`, `--write` replaces just these sections.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from bench import growth, harnesses, idle, postgres, report, suite, throughput, tracing, trees

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "reference" / "performance.md"

HEAD = """# Performance

Made by `make bench ARGS=--write`; a part of it by, for example, `make bench ARGS="--only idle
--write"`. Figures of different machines, and of the same machine at other times, say little beside
each other: look at the ratios, which are taken within one run. All processes share the cores, those
that measure included.

What was found out on the way, for whoever looks for more:

- Most of what is left is gRPC and the loop: an echo through grpc.aio costs a server 0.2 to 0.3 ms
  of CPU, and a turn makes two or three calls. So calls that carry several runs help more than
  anything else; a worker ends turns together that end at the same time (`svckit.turnends`).
- grpc.aio waits anew for all registered methods with every call; servers have generic handlers only
  (`svckit.grpc.server`).
- Statements of SQLite in a thread beside a busy loop each wait for the interpreter; they run on the
  loop, and only `COMMIT` has a thread. `COMMIT` on the loop as well was half as fast: nothing
  gathers for the next group meanwhile.
- A message of protobuf that is given to the constructor of another is copied; answers are filled in
  place (`scheduler_svc.rpc.convert`).
- A recording span costs half as much as checking a message; without a collector spans are ids only.
- What is missed, on a quiet machine: half of the echo with one message per call, twice
  Procrastinate, fifty times DBOS. All three are bounded by the processor, which driver, scheduler
  and worker share: py-spy of the scheduler under load shows 41% gRPC and the loop, 24% deciding
  and storing, 17% checking what comes in, 5% the estimate that every message is told.
  Procrastinate and DBOS are called as libraries, without any of the first and third. DBOS reaches
  three times here what was known of it (18 a second), so fifty times it would be 3,200 turns a
  second.
"""


class Section:
    """A part of the document; `measure` gets the share of the full load to run."""

    def __init__(self, title: str, measure: Callable[[int], Coroutine[Any, Any, str]]) -> None:
        self.title = title
        self.measure = measure


async def _suite(few: int) -> str:
    rows = await suite.measure_suite(400 // few, 10 // few or 1)
    return report.latencies([*rows, *await suite.measure_restart(5 // few or 1)])


SECTIONS = {
    "idle": Section("Idle latency", lambda few: idle.measure(300 // few)),
    "throughput": Section(
        "Throughput", lambda few: throughput.measure(1920 // few // 64 * 64, 5 if few == 1 else 2)
    ),
    "growth": Section(
        "Growth",
        lambda few: growth.measure(
            tuple(size // few or 1 for size in growth.SIZES),
            growth.SESSIONS_EVER // few,
            10 // few or 2,
        ),
    ),
    "postgres": Section(
        "On PostgreSQL, beside Procrastinate and DBOS",
        lambda few: postgres.measure(1024 if few == 1 else 256),
    ),
    "suite": Section("The whole suite, with the `demo` model", _suite),
    "harnesses": Section("Coding agents", lambda few: harnesses.measure(100 // few, 5 // few or 1)),
    "tracing": Section("Tracing", lambda few: tracing.measure(40 // few, 8 if few == 1 else 2)),
    "trees": Section("Spawn trees", lambda few: trees.measure(20 // few or 1, 3 // few or 1)),
}


def _merged(document: str, measured: dict[str, str]) -> str:
    """The document with some sections replaced, in the order of `SECTIONS`."""
    parts = re.split(r"^## ", document, flags=re.MULTILINE)[1:]
    known = {part.partition("\n")[0]: part.partition("\n")[2].strip() + "\n" for part in parts}
    known |= {SECTIONS[name].title: text for name, text in measured.items()}
    titles = [section.title for section in SECTIONS.values() if section.title in known]
    return HEAD + "".join(f"\n## {title}\n\n{known[title]}" for title in titles)


def main() -> None:
    """Entry point; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"also write {DOCUMENT.name}")
    parser.add_argument("--quick", action="store_true", help="a tenth of the load, to try it")
    parser.add_argument("--only", default=",".join(SECTIONS), help="which, between commas")
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    if unknown := set(names) - set(SECTIONS):
        parser.error(f"no such section: {', '.join(sorted(unknown))}; {', '.join(SECTIONS)}")
    measured = {}
    for name in names:
        machine = report.machine()
        text = asyncio.run(SECTIONS[name].measure(10 if arguments.quick else 1))
        measured[name] = f"{text}\nMeasured on {machine}.\n"
        sys.stdout.write(f"## {SECTIONS[name].title}\n\n{measured[name]}\n")
        sys.stdout.flush()
        if arguments.write:
            before = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else ""
            DOCUMENT.write_text(_merged(before, measured), encoding="utf-8")


if __name__ == "__main__":
    main()
