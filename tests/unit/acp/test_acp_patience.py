"""How long a prompt is waited for, on a clock that jumps."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from acp_svc.harness.patience import Patience
from tests.simulation.loop import VirtualLoop


def run(work: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(work)


def test_it_ends_with_the_turn_or_with_the_quiet_whichever_comes_first() -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        assert await Patience(10, 4).over() == "it said nothing for 4 s"
        assert loop.time() == pytest.approx(4)
        assert await Patience(10, 20).over() == "it worked longer than 10 s"
        assert loop.time() == pytest.approx(14)

    run(work())


def test_a_word_now_and_then_keeps_it_going_to_the_end_of_the_turn() -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        patience = Patience(10, 4)
        over = asyncio.create_task(patience.over())
        for _ in range(3):
            await asyncio.sleep(3)
            patience.heard()
        assert await over == "it worked longer than 10 s"
        assert loop.time() == pytest.approx(10)

    run(work())


def test_waiting_for_people_is_not_counted_however_many_are_asked() -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        patience = Patience(10, 4)
        over = asyncio.create_task(patience.over())
        await asyncio.sleep(3)
        with patience.people():
            await asyncio.sleep(100)
            with patience.people():
                await asyncio.sleep(100)
            await asyncio.sleep(100)
        assert not over.done()
        # Quiet begins anew, and of the turn seven seconds are left.
        await asyncio.sleep(2)
        patience.heard()
        assert await over == "it said nothing for 4 s"
        assert loop.time() == pytest.approx(3 + 300 + 2 + 4)
        with patience.people():
            await asyncio.sleep(5)
        assert await patience.over() == "it worked longer than 10 s"

    run(work())
