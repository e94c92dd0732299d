"""Procrastinate: `python procrastinate_peer.py worker URL FILE CAP` or `… driver URL FILE`.

The lock of a job is its key, which keeps the order within the key; one worker with a concurrency is
the global cap; LISTEN/NOTIFY is on, as by default.
"""

from __future__ import annotations

import asyncio
from typing import Any

import procrastinate
from procrastinate import jobs

from bench.peers.protocol import Seen, drive, run_role, say

QUEUE = "bench"
TASK = "turn"


def _app(url: str, pool: int) -> procrastinate.App:
    return procrastinate.App(
        connector=procrastinate.PsycopgConnector(conninfo=url, min_size=pool, max_size=pool)
    )


async def work(url: str, file: str, cap: int) -> None:
    app, seen = _app(url, min(cap, 20)), Seen()

    @app.task(queue=QUEUE, name=TASK)
    async def turn(**job: Any) -> None:
        seen.begin(job)
        await asyncio.sleep(0)
        seen.end(job)

    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        working = asyncio.create_task(
            app.run_worker_async(queues=[QUEUE], concurrency=cap, listen_notify=True)
        )
        say("ready")
        await working  # it ends with SIGTERM
    seen.write(file)


async def send(url: str, file: str) -> None:
    app = _app(url, 16)
    async with app.open_async():

        async def defer(items: list[dict[str, Any]]) -> None:
            new = [
                jobs.Job(
                    queue=QUEUE,
                    lock=item["key"],
                    queueing_lock=None,
                    task_name=TASK,
                    task_kwargs=item,
                )
                for item in items
            ]
            await app.job_manager.batch_defer_jobs_async(new)

        await drive(file, defer)


if __name__ == "__main__":
    run_role(work, send)
