"""How late the event loop comes to what is due: what holds it up holds everybody up."""

from __future__ import annotations

import asyncio

from svckit.metrics import definitions
from svckit.metrics.instruments import Metrics

LOOK_SECONDS = 0.25


async def watch_loop(metrics: Metrics) -> None:
    """Look again and again, until cancelled."""
    loop = asyncio.get_running_loop()
    lag = metrics.histogram(definitions.LOOP_LAG)
    while True:
        due = loop.time() + LOOK_SECONDS
        await asyncio.sleep(LOOK_SECONDS)
        lag.observe(max(0.0, loop.time() - due))
