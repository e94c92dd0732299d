"""The event log of the scheduler as streams that reconnect by themselves."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import cast

from conveyor.events.v1 import event_log_service_pb2 as ev
from gateway_svc.upstream import Upstream
from svckit.errors import Unreachable
from svckit.grpc import methods
from svckit.grpc.client import mapped_errors
from svckit.grpc.watch import follow


@dataclass(frozen=True, slots=True)
class Start:
    """Where a stream starts: after a number, or with what comes next, or with the oldest kept."""

    after: int | None = None
    from_now: bool = False


OLDEST = Start()
FROM_NOW = Start(from_now=True)


class EventLog:
    """Opens streams of events. Each ends only with an error that repeating cannot cure."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    def session(
        self, session_key: str, start: Start, payloads: Sequence[str] = ()
    ) -> AsyncGenerator[ev.WatchEventsResponse, None]:
        """Follow one session; `start` counts sequences."""

        def request(at: Start) -> ev.WatchEventsRequest:
            built = ev.WatchEventsRequest(session_key=session_key, payloads=payloads)
            if at.after is not None:
                built.after_sequence = at.after
            elif at.from_now:
                built.from_now = True
            return built

        return _closable(
            follow(
                lambda at: self._upstream.events.WatchEvents(request(at)),
                _sequence_of,
                start,
                service="scheduler",
            )
        )

    def flow(
        self, flow_id: str, start: Start, payloads: Sequence[str] = ()
    ) -> AsyncGenerator[ev.WatchEventsResponse, None]:
        """Follow one spawn tree; `start` counts positions."""
        return self._by_position(ev.WatchEventsRequest(flow_id=flow_id, payloads=payloads), start)

    def everything(
        self, start: Start, payloads: Sequence[str] = ()
    ) -> AsyncGenerator[ev.WatchEventsResponse, None]:
        """Follow all sessions; `start` counts positions."""
        return self._by_position(ev.WatchEventsRequest(all_sessions=True, payloads=payloads), start)

    async def newest_sequence(self, session_key: str) -> int:
        """Return the sequence of a session's newest event; 0 when it has none."""
        request = ev.WatchEventsRequest(session_key=session_key, from_now=True)
        stream = self._upstream.events.WatchEvents(request, timeout=methods.DEFAULT_TIMEOUT)
        try:
            async with mapped_errors(service="scheduler"):
                async for message in stream:
                    kind = message.WhichOneof("message")
                    if kind == "progress":
                        return message.progress.sequence
                    if kind == "event":
                        # Appended just after the stream began: what is before it is older.
                        return message.event.sequence - 1
        finally:
            stream.cancel()
        raise Unreachable("the scheduler did not say how far the session is")

    def _by_position(
        self, base: ev.WatchEventsRequest, start: Start
    ) -> AsyncGenerator[ev.WatchEventsResponse, None]:
        def request(at: Start) -> ev.WatchEventsRequest:
            built = ev.WatchEventsRequest()
            built.CopyFrom(base)
            if at.after is not None:
                built.after_position = at.after
            elif at.from_now:
                built.from_now = True
            return built

        return _closable(
            follow(
                lambda at: self._upstream.events.WatchEvents(request(at)),
                _position_of,
                start,
                service="scheduler",
            )
        )


def _closable(
    stream: AsyncIterator[ev.WatchEventsResponse],
) -> AsyncGenerator[ev.WatchEventsResponse, None]:
    # What `follow` returns is a generator, although it promises less.
    return cast("AsyncGenerator[ev.WatchEventsResponse, None]", stream)


def _sequence_of(message: ev.WatchEventsResponse) -> Start | None:
    kind = message.WhichOneof("message")
    if kind == "event":
        return Start(after=message.event.sequence)
    if kind == "progress":
        return Start(after=message.progress.sequence)
    return None


def _position_of(message: ev.WatchEventsResponse) -> Start | None:
    kind = message.WhichOneof("message")
    if kind == "event":
        return Start(after=message.event.position)
    if kind == "progress":
        return Start(after=message.progress.position)
    return None
