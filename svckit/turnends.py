"""Ends of turns, sent together: what ends while a call is under way goes with the next one.

A worker with many short turns would spend more on calls than on turns. One that ends alone is sent
at once and alone, so nothing ever waits for company.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from conveyor.scheduler.v1 import worker_service_pb2 as ws
from svckit.errors import Internal, Unreachable

MOST_COMPLETIONS = 256
MOST_BYTES = 3_000_000
"""What the contract allows in one call, and what fits into one message with room to spare."""

Call = Callable[[ws.CompleteRunsRequest], Awaitable[ws.CompleteRunsResponse]]


class _Waiting:
    __slots__ = ("answer", "completion")

    def __init__(self, completion: ws.RunCompletion) -> None:
        self.completion = completion
        # `None` says: nobody sends it, do it yourself.
        self.answer: asyncio.Future[ws.CompletionResult | None] = (
            asyncio.get_running_loop().create_future()
        )


class TurnEnds:
    """Sends completions through `call`, one call at a time."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._waiting: deque[_Waiting] = deque()
        self._under_way = False

    async def send(self, completion: ws.RunCompletion) -> ws.CompletionResult:
        """Return what the scheduler says of this one. Raises what the call raised."""
        mine = _Waiting(completion)
        self._waiting.append(mine)
        if self._under_way:
            try:
                answer = await mine.answer
            except asyncio.CancelledError:
                if mine in self._waiting and not mine.answer.cancelled():
                    self._pass_on()  # it was told to send, and does not any more
                raise
            if answer is not None:
                return answer
        # The call belongs to the turn that sends it, its trace included; the others come along.
        self._under_way = True
        batch = self._batch()
        try:
            request = ws.CompleteRunsRequest(completions=[each.completion for each in batch])
            response = await self._call(request)
            if len(response.results) != len(batch):
                raise Internal("an answer for every completion was expected")
        except Exception as err:
            _tell(batch, mine, err)
            raise
        except BaseException:
            _tell(batch, mine, Unreachable("the call was cut off"))
            raise
        finally:
            self._pass_on()
        for each, result in zip(batch, response.results, strict=False):
            if not each.answer.done():
                each.answer.set_result(result)
        return response.results[0]

    def _batch(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        room = MOST_BYTES
        while self._waiting and len(batch) < MOST_COMPLETIONS:
            room -= self._waiting[0].completion.ByteSize()
            if batch and room < 0:
                break
            batch.append(self._waiting.popleft())
        return batch

    def _pass_on(self) -> None:
        self._under_way = False
        while self._waiting:
            if self._waiting[0].answer.done():  # cancelled: its turn is over
                self._waiting.popleft()
                continue
            self._under_way = True
            self._waiting[0].answer.set_result(None)
            return


def _tell(batch: list[_Waiting], sender: _Waiting, err: Exception) -> None:
    for each in batch:
        if each is not sender and not each.answer.done():
            each.answer.set_exception(err)
