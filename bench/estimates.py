"""What telling a sender its place and start costs, per accepted message, as the line grows.

`python -m bench.estimates`. Processor time of one estimate, the rules alone: no server, no store.
"""

from __future__ import annotations

import time

from bench.report import machine
from scheduler_svc.domain import admission, leasing
from scheduler_svc.domain.estimates import estimate
from scheduler_svc.domain.kernel import Config, Kernel
from scheduler_svc.domain.records import SECOND, NewRun, Run
from scheduler_svc.domain.turntimes import TurnKind

NOW = 1_000_000 * SECOND


def line(waiting: int, limit: int, *, free: bool = False) -> tuple[Kernel, Run]:
    """A lane with every slot taken and a line of customers; the last one in it."""
    k = Kernel(Config(lanes={"main": limit}, lease_ttl=10**12))
    for _ in range(20):
        k.turn_times.ended(TurnKind("agent", "main/demo", False, False), 5 * SECOND, waits=False)
    run_id = ""
    for n in range(waiting + (0 if free else limit)):
        run_id = f"r{n:07}"
        new = NewRun(
            run_id=run_id,
            request_id=run_id,
            body_hash=b"",
            session_key=f"s{n}",
            customer_key=f"s{n}",
            queue="agent",
            lane="main",
            estimate_key="main/demo",
        )
        admission.enqueue(k, new, NOW, parent_lease=None)
        if not free and n == limit - 1:
            leasing.greet(k, "agent", "w", 1, NOW)
            leasing.lease_ready(k, "agent", "w", 1, limit, NOW)
        if n % 1000 == 0:
            k.take_changes()
    return k, k.runs[run_id]


def cost(k: Kernel, run: Run) -> float:
    """Processor time of one estimate in microseconds: the best of some rounds."""
    best = float("inf")
    for _ in range(7):
        begin = time.thread_time()
        for _ in range(100):
            estimate(k, run, NOW + SECOND)
        best = min(best, (time.thread_time() - begin) / 100 * 1e6)
    return best


def main() -> None:
    """The command."""
    print(machine())
    k, run = line(1, 4, free=True)
    print(f"a slot is free                {cost(k, run):7.1f} µs")
    for limit in (4, 64, 1000):
        for waiting in (1, 10, 40, 100, 1_000, 100_000):
            k, run = line(waiting, limit)
            print(f"{limit:5} slots, {waiting:7,} wait  {cost(k, run):7.1f} µs")


if __name__ == "__main__":
    main()
