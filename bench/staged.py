"""The scheduler as it is, with a stamp at every border that a message crosses on its way.

`python -m bench.staged FILE --config PATH`: as `python -m scheduler_svc`, and when it ends it
writes what passed which border when.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench import report

# (border, what ends there)
STAGES = (
    ("enqueue", "client, network and gRPC: the handler of `EnqueueRuns` begins"),
    ("turn", "checked and queued; the engine takes it"),
    ("known", "looked up: request id, session"),
    ("decided", "decided, leased, turned into rows and events; the commit begins"),
    ("stored", "statements, and the disk"),
    ("leased", "answers written; the handler of `LeaseRuns` ends"),
    ("here", "gRPC, network and the worker's client: its handler begins"),
)


def table(stamps: dict[str, list[int]], messages: Sequence[tuple[int, int]]) -> str:
    """How long each stage took, for messages (sent, here) that were alone on their way."""
    spent: dict[str, list[float]] = {border: [] for border, _ in STAGES}
    for sent, here in messages:
        before = sent
        for border, _ in STAGES:
            times = stamps.get(border, [])
            at = bisect_left(times, before)
            now = here if border == "here" else times[at] if at < len(times) else here
            now = min(now, here)
            spent[border].append((now - before) / 1e6)
            before = now
    lines = [[text, report.number(median(spent[border]))] for border, text in STAGES]
    whole = median((here - sent) / 1e6 for sent, here in messages)
    return report.grid([["until", "p50 ms"], *lines, ["whole way", report.number(whole)]])


def _stamped(owner: Any, name: str, before: str = "", after: str = "") -> Callable[[], None]:
    """Replaces a coroutine method by one that stamps before and after."""
    inner = getattr(owner, name)

    @functools.wraps(inner)
    async def stamped(*values: Any, **named: Any) -> Any:
        if before:
            STAMPS.setdefault(before, []).append(time.monotonic_ns())
        try:
            return await inner(*values, **named)
        finally:
            if after:
                STAMPS.setdefault(after, []).append(time.monotonic_ns())

    return functools.partial(setattr, owner, name, stamped)


STAMPS: dict[str, list[int]] = {}


def main() -> None:
    """Runs the service, stamped."""
    from scheduler_svc import __main__ as service
    from scheduler_svc.engine import Engine
    from scheduler_svc.rpc.scheduler import SchedulerServicer
    from scheduler_svc.rpc.worker import WorkerServicer
    from scheduler_svc.store.postgres import PostgresStore
    from scheduler_svc.store.sqlite import SqliteStore

    file = Path(sys.argv.pop(1))
    for replace in (
        _stamped(SchedulerServicer, "EnqueueRuns", before="enqueue"),
        _stamped(Engine, "_turn", before="turn"),
        _stamped(SqliteStore, "lookup", after="known"),
        _stamped(SqliteStore, "commit", before="decided", after="stored"),
        _stamped(PostgresStore, "lookup", after="known"),
        _stamped(PostgresStore, "commit", before="decided", after="stored"),
        _stamped(WorkerServicer, "LeaseRuns", after="leased"),
    ):
        replace()
    try:
        service.main()
    finally:
        file.write_text(json.dumps(STAMPS))


if __name__ == "__main__":
    main()
