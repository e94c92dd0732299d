"""What the rules keep in memory: at most 4 kB for an unfinished run, nothing for what has ended."""

from __future__ import annotations

import gc
import tracemalloc

from scheduler_svc.domain import admission, leasing, turns
from scheduler_svc.domain.kernel import Config, Kernel
from scheduler_svc.domain.records import SECOND, AnnounceMode, Caps, NewRun, RetryPolicy
from svckit.ids import new_ulid

RUNS = 1000


def new(n: int) -> NewRun:
    return NewRun(
        run_id=new_ulid(),
        request_id=f"request-{n}",
        body_hash=bytes(32),
        session_key=f"agent:main:http:direct:somebody-with-a-name-{n}",
        customer_key=f"http:somebody-with-a-name-{n}",
        queue="agent",
        lane="main",
        label=f"label {n}",
        labels={"channel": f"http-{n}", "agent": "main"},
        queue_timeout=60 * SECOND,
        run_timeout=900 * SECOND,
        wall_timeout=3600 * SECOND,
        retry=RetryPolicy(max_attempts=4),
        caps=Caps(max_depth=1),
        payload=bytes(1000),
        message=bytes(1000),
    )


def used() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def wave(k: Kernel, empty: int) -> None:
    """Takes runs in, leases and completes them."""
    for n in range(RUNS):
        admission.enqueue(k, new(n), 1, parent_lease=None)
        k.take_changes()
    assert (used() - empty) / RUNS < 4096
    for item in leasing.lease_ready(k, "agent", "w", 1, RUNS, 2):
        k.take_changes()
        turns.complete(
            k,
            item.run.run_id,
            item.lease.token,
            "d",
            result=b"r",
            reply=None,
            mode=AnnounceMode.ALL,
            taken=[],
            steered_is_next_prompt=False,
            now=3,
        )
        k.take_changes()
    assert not k.runs
    assert not k.sessions


def test_an_unfinished_run_costs_at_most_4_kb_and_an_ended_one_nothing() -> None:
    k = Kernel(Config(lanes={"main": RUNS}, lease_ttl=15 * SECOND))
    gc.freeze()  # what other tests left is not looked through again and again
    tracemalloc.start()
    try:
        wave(k, used())
        after_one = used()  # what tables keep of their greatest size
        for _ in range(2):
            wave(k, after_one)
        k._drop_stale_timers()
        assert used() - after_one < RUNS * 10
    finally:
        tracemalloc.stop()
