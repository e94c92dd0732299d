"""Writes a turn's events under its lease, and shows text while it is written.

Text is merged for 50 ms. Pieces and events go out one request at a time, in order. A lost piece
does no harm, since the complete message replaces all pieces; an event is repeated until it is
stored or the lease is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from conveyor.events.v1 import event_log_service_pb2 as log_pb
from conveyor.events.v1 import event_pb2
from svckit.backoff import full_jitter
from svckit.clock import Clock
from svckit.errors import PASSING, LeaseLost, ServiceError
from svckit.grpc.client import call
from svckit.logging import get_logger

if TYPE_CHECKING:
    from conveyor.events.v1.event_log_service_pb2_grpc import EventLogServiceAsyncStub

MERGE_SECONDS = 0.05
# Well below what one request may hold: 256 events, 2 MiB with the text beside them.
BATCH_EVENTS = 200
BATCH_BYTES = 1024 * 1024
# Of text beside a batch: a character has at most four bytes.
DELTA_CHARS = 64 * 1024

_log = get_logger("svckit.events")


class EventWriter:
    """The events of one attempt. Leave it as a context manager: nothing is sent after that.

    `lease_id` may be a function, for a turn that keeps its lease over a wait and goes on under
    another one.
    """

    def __init__(
        self,
        stub: EventLogServiceAsyncStub,
        lease_id: str | Callable[[], str],
        message_id: str,
        clock: Clock,
    ) -> None:
        self._stub = stub
        self._lease = lease_id if callable(lease_id) else lambda: lease_id
        self._message_id = message_id
        self._clock = clock
        self._text = ""
        self._offset = 0
        self._lock = asyncio.Lock()
        self._merging: asyncio.Task[None] | None = None

    async def __aenter__(self) -> EventWriter:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._merging is not None:
            self._merging.cancel()
            await asyncio.gather(self._merging, return_exceptions=True)

    def text(self, piece: str) -> None:
        """Show a piece of the reply soon."""
        self._text += piece
        if self._merging is None or self._merging.done():
            self._merging = asyncio.create_task(self._merge(), name="deltas")

    async def new_message(self) -> None:
        """Begin the text anew: the pieces that follow replace what was shown."""
        await self.flush()
        self._offset = 0

    async def flush(self) -> None:
        """Show now what was said."""
        async with self._lock:
            while (delta := self._take()) is not None:
                await self._show(delta)

    async def write(self, *events: event_pb2.Event) -> None:
        """Store events, after the text so far was shown. Raises `LeaseLost`."""
        if not events:
            return
        async with self._lock:
            while len(self._text) > DELTA_CHARS and (piece := self._take()) is not None:
                await self._show(piece)
            delta = self._take()
            for batch in _batches(events):
                request = log_pb.AppendEventsRequest(lease_id=self._lease(), events=batch)
                if delta is not None:
                    request.deltas.append(delta)
                    delta = None
                await self._append(request)

    async def _append(self, request: log_pb.AppendEventsRequest) -> None:
        pauses = full_jitter(0.1, 2.0)
        while True:
            try:
                await call(self._stub.AppendEvents(request), service="scheduler")
                return
            except LeaseLost:
                if request.lease_id == (newest := self._lease()):
                    raise
                request.lease_id = newest  # the next turn began while the call was on its way
            except PASSING:
                # The worker cancels the turn when its lease runs out meanwhile.
                await self._clock.sleep(next(pauses))

    async def _merge(self) -> None:
        while self._text:
            await self._clock.sleep(MERGE_SECONDS)
            await self.flush()

    def _take(self) -> event_pb2.MessageDelta | None:
        if not self._text:
            return None
        text, self._text = self._text[:DELTA_CHARS], self._text[DELTA_CHARS:]
        delta = event_pb2.MessageDelta(message_id=self._message_id, text=text, offset=self._offset)
        self._offset += len(text)
        return delta

    async def _show(self, delta: event_pb2.MessageDelta) -> None:
        request = log_pb.AppendEventsRequest(lease_id=self._lease(), deltas=[delta])
        try:
            await call(self._stub.AppendEvents(request), service="scheduler")
        except ServiceError as err:
            _log.debug("text was not shown", reason=err.reason)


def _batches(events: Sequence[event_pb2.Event]) -> Iterator[list[event_pb2.Event]]:
    """Split events into requests of a size that the log takes, in order."""
    batch: list[event_pb2.Event] = []
    size = 0
    for event in events:
        bytes_ = event.ByteSize()
        if batch and (len(batch) == BATCH_EVENTS or size + bytes_ > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(event)
        size += bytes_
    yield batch
