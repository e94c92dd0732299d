"""Ends of turns that share a call."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from conveyor.common.v1 import content_pb2
from conveyor.scheduler.v1 import run_pb2
from conveyor.scheduler.v1 import worker_service_pb2 as ws
from svckit.errors import Internal, StoreUnavailable, Unreachable
from svckit.testing import eventually
from svckit.turnends import TurnEnds


class Scheduler:
    """Answers each call when it is told to, naming the lease in the answer."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.held = asyncio.Semaphore(0)
        self.error: Exception | None = None
        self.short = False
        self.soon: asyncio.Task[Any] | None = None

    async def __call__(self, request: ws.CompleteRunsRequest) -> ws.CompleteRunsResponse:
        leases = [completion.lease_id for completion in request.completions]
        self.calls.append(leases)
        await self.held.acquire()
        if self.soon is not None:  # before anything that this answer sets going
            asyncio.get_running_loop().call_soon(self.soon.cancel)
        if self.error is not None:
            raise self.error
        results = [ws.CompletionResult(run=run_pb2.Run(run_id=lease)) for lease in leases]
        return ws.CompleteRunsResponse(results=results[: -1 if self.short else None])


def send(ends: TurnEnds, name: str, text: str = "") -> asyncio.Task[ws.CompletionResult]:
    result = run_pb2.RunResult(
        reply=content_pb2.Message(parts=[content_pb2.ContentPart(text=text)])
    )
    completion = ws.RunCompletion(lease_id=name, result=result)
    return asyncio.create_task(ends.send(completion))


async def test_one_goes_at_once_and_the_next_call_takes_all_that_ended_meanwhile() -> None:
    scheduler = Scheduler()
    ends = TurnEnds(scheduler)
    tasks = [send(ends, "a")]
    await eventually(lambda: scheduler.calls == [["a"]])
    tasks += [send(ends, name) for name in ("b", "c", "d")]
    scheduler.held.release()
    await eventually(lambda: scheduler.calls == [["a"], ["b", "c", "d"]])
    assert tasks[0].done()
    scheduler.held.release()
    assert [(await task).run.run_id for task in tasks] == ["a", "b", "c", "d"]
    scheduler.held.release()
    assert (await send(ends, "e")).run.run_id == "e"


async def test_a_failed_call_is_told_to_all_of_it_and_to_nobody_else() -> None:
    scheduler = Scheduler()
    ends = TurnEnds(scheduler)
    tasks = [send(ends, "a")]
    await eventually(lambda: scheduler.calls)
    tasks += [send(ends, "b"), send(ends, "c")]
    scheduler.held.release()
    await tasks[0]
    await eventually(lambda: len(scheduler.calls) == 2)
    last = send(ends, "d")
    scheduler.error = StoreUnavailable("full")
    scheduler.held.release()
    for task in tasks[1:]:
        with pytest.raises(StoreUnavailable):
            await task
    await eventually(lambda: scheduler.calls[2:] == [["d"]])
    scheduler.error = None
    scheduler.held.release()
    assert (await last).run.run_id == "d"


async def test_a_short_answer_is_no_answer() -> None:
    scheduler = Scheduler()
    scheduler.short = True
    scheduler.held.release()
    with pytest.raises(Internal):
        await send(TurnEnds(scheduler), "a")


@pytest.mark.parametrize("told", [False, True])
async def test_a_turn_that_is_stopped_holds_nobody_up(told: bool) -> None:
    """Also not when it had been told to send for the others, and was stopped before it could."""
    scheduler = Scheduler()
    ends = TurnEnds(scheduler)
    first = send(ends, "a")
    await eventually(lambda: scheduler.calls)
    second, third = send(ends, "b"), send(ends, "c")
    await asyncio.sleep(0)
    if told:
        scheduler.soon = second
    else:
        second.cancel()
    scheduler.held.release()
    await first
    await eventually(lambda: len(scheduler.calls) == 2)
    assert scheduler.calls[1] == ["c"]
    scheduler.held.release()
    assert (await third).run.run_id == "c"


async def test_a_sender_that_is_stopped_tells_the_others_to_send_again() -> None:
    scheduler = Scheduler()
    ends = TurnEnds(scheduler)
    first = send(ends, "a")
    await eventually(lambda: scheduler.calls)
    second, third = send(ends, "b"), send(ends, "c")
    scheduler.held.release()
    await first
    await eventually(lambda: len(scheduler.calls) == 2)
    second.cancel()
    with pytest.raises(Unreachable):
        await third


async def test_calls_stay_below_what_a_message_may_hold() -> None:
    scheduler = Scheduler()
    ends = TurnEnds(scheduler)
    tasks = [send(ends, "a")]
    await eventually(lambda: scheduler.calls)
    tasks += [send(ends, name, "x" * 1_200_000) for name in ("b", "c", "d")]
    for _ in range(3):
        scheduler.held.release()
    await asyncio.gather(*tasks)
    assert scheduler.calls == [["a"], ["b", "c"], ["d"]]
