"""DBOS: `python dbos_peer.py worker URL FILE CAP` or `… driver URL FILE`.

A queue partitioned by key with one workflow a partition keeps the order within the key; its global
concurrency is the cap. Polling is tuned down to 10 ms from the default of a second.
"""

from __future__ import annotations

import asyncio
import signal
from typing import Any

from dbos import DBOS, DBOSClient

from bench.peers.protocol import Seen, drive, run_role, say

QUEUE = "bench"
WORKFLOW = "turn"
POLLING_SECONDS = 0.01


async def work(url: str, file: str, cap: int) -> None:
    seen = Seen()
    DBOS(
        config={
            "name": "bench",
            "system_database_url": url,
            "run_admin_server": False,
            "log_level": "ERROR",
            "application_version": "1",
        }
    )

    @DBOS.workflow(name=WORKFLOW)
    async def turn(job: dict[str, Any]) -> None:
        seen.begin(job)
        await asyncio.sleep(0)
        seen.end(job)

    DBOS.launch()
    await DBOS.register_queue_async(
        QUEUE,
        global_concurrency=cap,
        partition_concurrency=1,
        polling_interval_sec=POLLING_SECONDS,
    )
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    say("ready")
    await stop.wait()
    seen.write(file)
    DBOS.destroy()


async def send(url: str, file: str) -> None:
    client = DBOSClient(system_database_url=url)

    async def enqueue(items: list[dict[str, Any]]) -> None:
        for item in items:
            await client.enqueue_async(
                {
                    "queue_name": QUEUE,
                    "workflow_name": WORKFLOW,
                    "queue_partition_key": item["key"],
                    "app_version": "1",
                },
                item,
            )

    await drive(file, enqueue)
    client.destroy()


if __name__ == "__main__":
    run_role(work, send)
