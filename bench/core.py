"""The scheduler alone: real process, real SQLite, a worker process that answers at once."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import time
from pathlib import Path

from grpc import aio

from bench import echo, load
from bench.processes import PYTHON, Workspace, process, serving, workspace
from bench.report import Row
from conveyor.common.v1 import content_pb2
from conveyor.scheduler.v1 import lane_pb2, run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from conveyor.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceStub
from conveyor_client.supervision.addresses import free_addresses
from svckit.grpc.channel import make_channel

WIDTH = 64
SESSIONS = 500


async def measure_echo(calls: int) -> list[Row]:
    """A bare grpc.aio echo, and one with our interceptors on both sides."""
    rows = []
    for name, ours in (("bare grpc.aio echo", False), ("echo with our interceptors", True)):
        address = free_addresses(1)[0]
        async with process(*PYTHON, "bench.echo", address, *(["--svckit"] if ours else [])):
            channel = make_channel(address) if ours else aio.insecure_channel(address)
            async with channel:
                call: aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(echo.METHOD)
                body = b"x" * 500

                async def one(_: int) -> None:
                    await call(body, timeout=10, wait_for_ready=True)  # noqa: B023

                await load.one_by_one(one, calls // 20)
                single = await load.one_by_one(one, calls // 5)
                begin = time.perf_counter()
                await load.side_by_side(one, calls, WIDTH)
                rows.append(Row(name, calls / (time.perf_counter() - begin), single))
    return rows


def measure_disk(directory: Path, count: int) -> Row:
    """One write that reaches the disk: what every commit waits for."""
    spent = []
    with (directory / "probe").open("wb", buffering=0) as file:
        for _ in range(count):
            begin = time.perf_counter()
            file.write(b"x" * 4096)
            os.fsync(file.fileno())
            spent.append((time.perf_counter() - begin) * 1000)
    return Row("4 KiB write and fsync", count / (sum(spent) / 1000), spent, compare=False)


class _Driver:
    """Sends messages to the scheduler, as the gateway would."""

    def __init__(self, channel: aio.Channel) -> None:
        self._stub = SchedulerServiceStub(channel)
        self._ids = itertools.count()

    async def send(self, phase: str, batch: int = 1) -> None:
        """Enqueues `batch` messages in one call, each for another session."""
        items = []
        for _ in range(batch):
            i = next(self._ids)
            key = f"agent:main:bench:direct:{i % SESSIONS}"
            message = content_pb2.Message(
                message_id=f"m{i}",
                role=content_pb2.ROLE_USER,
                parts=[content_pb2.ContentPart(text=f"{phase} {time.monotonic_ns()}")],
            )
            spec = run_pb2.RunSpec(session_key=key, customer_key=key, queue="agent")
            items.append(ss.EnqueueItem(spec=spec, message=message, request_id=f"bench-{i}"))
        reply = await self._stub.EnqueueRuns(ss.EnqueueRunsRequest(items=items), timeout=30)
        for result in reply.results:
            if result.HasField("error"):
                raise RuntimeError(result.error.message)

    async def idle(self) -> None:
        """Returns when nothing is left to do."""
        request = ss.ListLanesRequest(kind=lane_pb2.LANE_KIND_GLOBAL)
        while True:
            lanes = (await self._stub.ListLanes(request)).lanes
            if not any(lane.waiting or lane.running for lane in lanes):
                return
            await asyncio.sleep(0.02)


async def measure_scheduler(runs: int) -> list[Row]:
    """Turns per second, and the time from sending a message to the worker that has it."""
    with workspace(main_limit=WIDTH) as place:
        disk = measure_disk(place.directory, 200)
        async with process(*PYTHON, "scheduler_svc", "--config", str(place.config)) as service:
            await serving(place.scheduler, service)
            return [disk, *await _phases(place, runs)]


async def _phases(place: Workspace, runs: int) -> list[Row]:
    file = place.directory / "latencies.json"
    async with (
        make_channel(place.scheduler) as channel,
        process(*PYTHON, "bench.worker", place.scheduler, str(file)),
    ):
        driver = _Driver(channel)
        await load.one_by_one(lambda _: driver.send("warm"), 50)
        await driver.idle()

        quiet = await load.at_rate(lambda _: driver.send("quiet"), 200, per_second=20)
        await driver.idle()

        begin = time.perf_counter()
        await load.side_by_side(lambda _: driver.send("single"), runs, WIDTH)
        await driver.idle()
        single = runs / (time.perf_counter() - begin)

        begin = time.perf_counter()
        await load.side_by_side(lambda _: driver.send("batch", 64), runs // 64, 4)
        await driver.idle()
        batch = runs // 64 * 64 / (time.perf_counter() - begin)

        half = await load.at_rate(lambda _: driver.send("half"), runs // 2, per_second=single / 2)
        await driver.idle()
    latencies = json.loads(file.read_text())

    def milliseconds(phase: str) -> list[float]:
        return [nanoseconds / 1e6 for nanoseconds in latencies[phase]]

    return [
        Row("EnqueueRuns answered, idle", None, quiet, "durable before the answer"),
        Row("enqueue to lease, idle", None, milliseconds("quiet")),
        Row("EnqueueRuns answered, half load", None, half),
        Row(
            "enqueue to lease, half load", None, milliseconds("half"), f"{single / 2:,.0f} turns/s"
        ),
        Row("turns, one message per call", single, note="enqueue, lease, reply, end"),
        Row("turns, 64 messages per call", batch),
    ]
