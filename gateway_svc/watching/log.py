"""The event log of the scheduler as streams that reconnect by themselves."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import cast

from conveyor.events.v1 import event_log_service_pb2 as ev
from gateway_svc.domain.tokens import Positions
from gateway_svc.upstream import Upstream
from svckit.errors import Unreachable
from svckit.grpc import methods
from svckit.grpc.client import call, mapped_errors
from svckit.grpc.watch import follow


@dataclass(frozen=True, slots=True)
class Start:
    """Where a stream starts: after a number, or with what comes next, or with the oldest kept.

    A position beats a sequence. Positions say where something is among all events, sequences where
    it is in one session; a stream of one session can start after either.
    """

    sequence: int | None = None
    position: int | None = None
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
        """Follow one session."""
        return self._follow(
            ev.WatchEventsRequest(session_key=session_key, payloads=payloads), start
        )

    def flow(
        self, flow_id: str, start: Start, payloads: Sequence[str] = ()
    ) -> AsyncGenerator[ev.WatchEventsResponse, None]:
        """Follow one spawn tree."""
        return self._follow(ev.WatchEventsRequest(flow_id=flow_id, payloads=payloads), start)

    def everything(
        self, start: Start, payloads: Sequence[str] = ()
    ) -> AsyncGenerator[ev.WatchEventsResponse, None]:
        """Follow all sessions."""
        return self._follow(ev.WatchEventsRequest(all_sessions=True, payloads=payloads), start)

    async def list(self, request: ev.ListEventsRequest) -> ev.ListEventsResponse:
        """Return a page of a session's events."""
        return await call(self._upstream.events.ListEvents(request), service="scheduler")

    async def newest(self, session_key: str) -> Positions:
        """Return the place after a session's newest event."""
        request = ev.WatchEventsRequest(session_key=session_key, from_now=True)
        stream = self._upstream.events.WatchEvents(request, timeout=methods.DEFAULT_TIMEOUT)
        try:
            async with mapped_errors(service="scheduler"):
                async for message in stream:
                    kind = message.WhichOneof("message")
                    if kind == "progress":
                        return passed(Positions(), message)
                    if kind == "event":
                        # Appended just after the stream began: everything before it is older.
                        return Positions(sequence=message.event.sequence - 1)
        finally:
            stream.cancel()
        raise Unreachable("the scheduler did not say how far the session is")

    def _follow(
        self, base: ev.WatchEventsRequest, start: Start
    ) -> AsyncGenerator[ev.WatchEventsResponse, None]:
        def request(at: Start) -> ev.WatchEventsRequest:
            built = ev.WatchEventsRequest()
            built.CopyFrom(base)
            if at.position is not None:
                built.after_position = at.position
            elif at.sequence is not None:
                built.after_sequence = at.sequence
            elif at.from_now:
                built.from_now = True
            return built

        stream = follow(
            lambda at: self._upstream.events.WatchEvents(request(at)),
            _reached,
            start,
            service="scheduler",
        )
        # What `follow` returns is a generator, although it promises less.
        return cast("AsyncGenerator[ev.WatchEventsResponse, None]", stream)


def start_after(positions: Positions, *, from_now: bool) -> Start:
    """Return where the main stream of a watcher starts again."""
    if positions.begun:
        return Start(sequence=positions.sequence, position=positions.position)
    return FROM_NOW if from_now else OLDEST


def passed(positions: Positions, message: ev.WatchEventsResponse) -> Positions:
    """Return where a watcher is that has read a message."""
    kind = message.WhichOneof("message")
    if kind == "event":
        return positions.advanced(sequence=message.event.sequence, position=message.event.position)
    if kind == "progress":
        return positions.advanced(
            sequence=message.progress.sequence, position=message.progress.position
        )
    return positions


def _reached(message: ev.WatchEventsResponse) -> Start | None:
    at = passed(Positions(), message)
    return Start(sequence=at.sequence, position=at.position) if at.begun else None
