"""A worker that answers at once, as a process: `python -m bench.worker ADDRESS FILE [ENDPOINT]`.

It traces when it is told of a collector.

The message to answer is `PHASE NANOSECONDS`, the sender's monotonic clock. When it is told to
stop, it writes as JSON, by phase, when each run was sent and was here, and how many calls it made.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import uvloop
from grpc import aio
from opentelemetry import trace

from conveyor.common.v1 import content_pb2
from conveyor.scheduler.v1 import run_pb2
from svckit.grpc.channel import make_channel
from svckit.logging import setup as setup_logging
from svckit.settings import load
from svckit.telemetry import setup as telemetry_of
from svckit.worker import Complete, LeasedTurn, Outcome, Worker

SLOTS = 64


async def _work(address: str, tracer: trace.Tracer) -> str:
    here: dict[str, list[tuple[int, int]]] = defaultdict(list)

    async def answer(turn: LeasedTurn) -> Outcome:
        now = time.monotonic_ns()
        phase, sent = turn.run.inputs[0].message.parts[0].text.split()
        here[phase].append((int(sent), now))
        return Complete(
            run_pb2.RunResult(
                reply=content_pb2.Message(
                    message_id=f"{turn.run.run_id}-1",
                    role=content_pb2.ROLE_AGENT,
                    parts=[content_pb2.ContentPart(text="done")],
                )
            )
        )

    channel = make_channel(address, tracer=tracer)
    calls = _counted(channel)
    worker = Worker(
        channel, queue="agent", name="bench-0", slots=SLOTS, handler=answer, tracer=tracer
    )
    working = asyncio.create_task(worker.run())
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if working.done():
        working.result()
    await worker.drain()
    working.cancel()
    await channel.close()
    return json.dumps({"here": here, "calls": calls})


def _counted(channel: aio.Channel) -> Counter[str]:
    """Counts the calls over a channel, by method. An interceptor would cost more than it counts."""
    calls: Counter[str] = Counter()
    make: Any = channel.unary_unary

    def unary_unary(method: str, *values: Any, **named: Any) -> Any:
        inner = make(method, *values, **named)
        name = method.rpartition("/")[2]

        def call(*given: Any, **options: Any) -> Any:
            calls[name] += 1
            return inner(*given, **options)

        return call

    channel.unary_unary = unary_unary  # type: ignore[method-assign]
    return calls


if __name__ == "__main__":
    endpoint = sys.argv[3] if len(sys.argv) > 3 else ""
    settings = load(
        environ={"CONVEYOR_LOG__LEVEL": "error", "CONVEYOR_TELEMETRY__OTLP_ENDPOINT": endpoint}
    )
    setup_logging("bench-worker", settings)
    telemetry = telemetry_of("bench-worker", settings)
    Path(sys.argv[2]).write_text(uvloop.run(_work(sys.argv[1], telemetry.tracer)))
    telemetry.shutdown()
