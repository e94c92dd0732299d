"""Conveyor: `python -m bench.peers.conveyor_peer worker|driver ADDRESS FILE [CAP]`.

The scheduler is a third process; every message and every turn is a call to it over gRPC.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
from typing import Any

import uvloop

from bench.peers.protocol import Seen, drive, run_role, say
from conveyor.common.v1 import content_pb2
from conveyor.scheduler.v1 import run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from conveyor.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceStub
from svckit.grpc.channel import make_channel
from svckit.logging import setup as setup_logging
from svckit.settings import load
from svckit.worker import Complete, LeasedTurn, Outcome, Worker


async def work(address: str, file: str, cap: int) -> None:
    seen = Seen()

    async def turn(leased: LeasedTurn) -> Outcome:
        job = json.loads(leased.run.inputs[0].message.parts[0].text)
        seen.begin(job)
        await asyncio.sleep(0)
        seen.end(job)
        return Complete(
            run_pb2.RunResult(
                reply=content_pb2.Message(
                    message_id=f"{leased.run.run_id}-1",
                    role=content_pb2.ROLE_AGENT,
                    parts=[content_pb2.ContentPart(text="done")],
                )
            )
        )

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with make_channel(address) as channel:
        worker = Worker(channel, queue="agent", name="bench-0", slots=cap, handler=turn)
        working = asyncio.create_task(worker.run())
        say("ready")
        await stop.wait()
        await worker.drain()
        await working
    seen.write(file)


async def send(address: str, file: str) -> None:
    ids = itertools.count()
    async with make_channel(address) as channel:
        stub = SchedulerServiceStub(channel)

        async def enqueue(jobs: list[dict[str, Any]]) -> None:
            items = [
                ss.EnqueueItem(
                    spec=run_pb2.RunSpec(
                        session_key=f"agent:main:bench:direct:{job['key']}",
                        customer_key=job["key"],
                        queue="agent",
                    ),
                    message=content_pb2.Message(
                        message_id=f"m{next(ids)}",
                        role=content_pb2.ROLE_USER,
                        parts=[content_pb2.ContentPart(text=json.dumps(job))],
                    ),
                    request_id=f"{job['phase']}-{job['number']}",
                )
                for job in jobs
            ]
            reply = await stub.EnqueueRuns(ss.EnqueueRunsRequest(items=items), timeout=30)
            for result in reply.results:
                if result.HasField("error"):
                    raise RuntimeError(result.error.message)

        await drive(file, enqueue)


if __name__ == "__main__":
    setup_logging("bench", load(environ={"CONVEYOR_LOG__LEVEL": "error"}))
    run_role(work, send, uvloop.run)
