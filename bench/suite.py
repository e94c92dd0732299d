"""The whole suite under `conveyor up`, with the `demo` model."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator

from grpc import aio

from bench import load
from bench.processes import Workspace, descendants, up, workspace
from bench.report import Row
from conveyor.events.v1 import event_log_service_pb2 as els
from conveyor.events.v1.event_log_service_pb2_grpc import EventLogServiceStub
from conveyor.scheduler.v1 import run_pb2
from conveyor_client import ConveyorClient
from svckit.grpc.channel import make_channel

CLASSIC = "Do three things: research a market trend, analyse competitors, draft a summary"
WIDTH = 8


async def ask(client: ConveyorClient, text: str, customer: int) -> None:
    """Sends a message and follows it to its end. Fails unless the run succeeded."""
    key = f"agent:main:grpc:direct:bench-{customer}"
    async with contextlib.aclosing(client.chat(text, session_key=key, customer_key=key)) as items:
        async for item in items:
            if item.HasField("ended") and item.ended.state != run_pb2.RUN_STATE_SUCCEEDED:
                state = run_pb2.RunState.Name(item.ended.state)
                raise RuntimeError(f"a run ended as {state}: {item.ended.error.message}")


@contextlib.asynccontextmanager
async def _suite() -> AsyncIterator[tuple[Workspace, int, float]]:
    with workspace(main_limit=WIDTH) as place:
        begin = time.perf_counter()
        async with up(place) as pid:
            yield place, pid, time.perf_counter() - begin


async def measure_suite(turns: int, requests: int) -> list[Row]:
    """Plain turns and delegated requests, as a client of the gateway sees them."""
    async with _suite() as (place, _, took), ConveyorClient(place.gateway) as client:

        async def turn(i: int) -> None:
            await ask(client, "[[reply: done]]", i % WIDTH)

        async def delegated(i: int) -> None:
            await ask(client, CLASSIC, i % WIDTH)

        await load.one_by_one(turn, 10)
        single = await load.one_by_one(turn, turns // 5)
        begin = time.perf_counter()
        await load.side_by_side(turn, turns, WIDTH)
        rate = turns / (time.perf_counter() - begin)
        classic = await load.one_by_one(delegated, requests)
    return [
        Row("conveyor up to all healthy", None, [took * 1000]),
        Row("message to reply, all four services", rate, single, "demo model"),
        Row("delegated request, three sub-agents", None, classic, "5 turns, 4 runs"),
    ]


async def measure_restart(times: int) -> list[Row]:
    """`kill -9` of the agent service under load: the time until its successor leases a run."""
    gaps = []
    async with (
        _suite() as (place, pid, _),
        ConveyorClient(place.gateway) as client,
        make_channel(place.scheduler, own_connection=True) as scheduler,
    ):
        stop = asyncio.Event()
        answered = [0] * WIDTH

        async def customer(i: int) -> None:
            while not stop.is_set():
                await ask(client, "[[sleep: 0.5s]]", i)
                answered[i] += 1

        async def everybody_is_answered() -> None:
            # Else a run could lose all its attempts to us, which no real trouble would do.
            before = list(answered)
            while any(now <= then for now, then in zip(answered, before, strict=True)):
                await asyncio.sleep(0.1)
                for task in customers:
                    if task.done():
                        task.result()

        customers = [asyncio.create_task(customer(i)) for i in range(WIDTH)]
        for _ in range(times):
            await _next_lease(scheduler, after_us=0)  # work is under way
            victim = next(p for p, args in descendants(pid).items() if "agent_svc" in args)
            begin, killed_us = time.perf_counter(), time.time_ns() // 1000
            os.kill(victim, signal.SIGKILL)
            await _next_lease(scheduler, after_us=killed_us)
            gaps.append((time.perf_counter() - begin) * 1000)
            await everybody_is_answered()
        stop.set()
        await asyncio.gather(*customers)
    return [
        Row(
            "agent killed, next lease",
            None,
            gaps,
            f"{times} times; every message was answered; a lease lasts 15 s",
        )
    ]


async def _next_lease(scheduler: aio.Channel, after_us: int) -> None:
    """Returns when a run begins an attempt later than `after_us` (wall clock)."""
    request = els.WatchEventsRequest(
        all_sessions=True, from_now=True, payloads=["run_state_changed"]
    )
    call = EventLogServiceStub(scheduler).WatchEvents(request)
    try:
        async for response in call:
            event = response.event
            if (
                event.run_state_changed.state == run_pb2.RUN_STATE_RUNNING
                and event.create_time.ToMicroseconds() > after_us
            ):
                return
    finally:
        call.cancel()
    raise RuntimeError("the watch ended")
