"""What is old goes soon after a start and then every hour, whatever goes wrong meanwhile."""

from __future__ import annotations

import asyncio

from svckit.clock import FakeClock
from svckit.errors import StoreUnavailable
from svckit.housekeeping import EVERY_SECONDS, FIRST_SECONDS, keep_tidy
from svckit.testing import eventually


async def test_it_goes_on_after_a_store_that_was_away() -> None:
    clock, asked = FakeClock(), []

    async def remove_old(now_us: int) -> int:
        asked.append(now_us)
        if len(asked) == 1:
            raise StoreUnavailable("full")
        return 0

    task = asyncio.create_task(keep_tidy(remove_old, clock))
    for expected, seconds in ((1, FIRST_SECONDS), (2, EVERY_SECONDS), (3, EVERY_SECONDS)):

        async def done(expected: int = expected) -> bool:
            return len(asked) == expected

        await asyncio.sleep(0)
        clock.advance(seconds)
        await eventually(done)
    assert asked == sorted(asked)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
