"""`WatchSession`: everything that happens in a session and, when asked, below it.

The session itself is one stream. What its runs spawned lives in other sessions, so for each spawn
tree with children a second stream follows the tree, from the first word of a child until its root
has ended. Questions that runs of a tree ask are for the people of this session, and come always.
ACP sessions that people spawned from this session have lanes of their own, which are followed too.
A token holds the sequence of the session and the position of each tree and lane that is followed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace

from conveyor.events.v1 import event_log_service_pb2 as ev
from conveyor.events.v1 import event_pb2
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from conveyor.scheduler.v1 import flow_service_pb2 as fs
from gateway_svc.auth import Principal, Scope
from gateway_svc.conversations import Conversations
from gateway_svc.domain import asking
from gateway_svc.domain.redaction import clear_event
from gateway_svc.domain.sessions import LIVE_STATES, ended_run
from gateway_svc.domain.tokens import Positions, decode_token, encode_token, session_subject
from gateway_svc.upstream import Upstream
from gateway_svc.watching.lanes import PAYLOADS as LANE_PAYLOADS
from gateway_svc.watching.lanes import SpawnedLanes, is_heard
from gateway_svc.watching.log import FROM_NOW, OLDEST, EventLog, Start, passed, start_after
from gateway_svc.watching.merge import HEARTBEAT_SECONDS, Draining, Ended, Idle, Merge
from svckit.errors import EventsCompacted, FlowNotFound, InvalidField, invalid_field
from svckit.grpc.client import call

_SESSION = "session"
_NEW_LANES = "new lanes"
_TREE_PAYLOADS = ("child_spawned", "child_announced", "run_state_changed")
_QUESTIONS = frozenset(asking.PAYLOADS)
_LIVE_PAYLOADS = ("delta", "lane_position")
PAYLOADS = frozenset(
    field.name for field in event_pb2.Event.DESCRIPTOR.oneofs_by_name["payload"].fields
) | frozenset(_LIVE_PAYLOADS)
# Trees that have ended but whose events are still being read: beyond this the session waits, so
# that replaying a long history does not open a stream for every tree it ever had.
_MAX_ENDED_TREES = 8
# By how much clocks of machines may differ.
_SLACK_SECONDS = 60.0


# Of a stream of events; of the stream of new lanes, the key of one.
_Heard = ev.WatchEventsResponse | str


class SessionWatcher:
    """Opens session watches. One per process."""

    def __init__(
        self,
        log: EventLog,
        upstream: Upstream,
        conversations: Conversations,
        lanes: SpawnedLanes,
        draining: asyncio.Event,
        heartbeat: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._log = log
        self._upstream = upstream
        self._conversations = conversations
        self._lanes = lanes
        self._draining = draining
        self._heartbeat = heartbeat

    async def watch(
        self, request: gw.WatchSessionRequest, principal: Principal
    ) -> AsyncGenerator[gw.WatchSessionResponse, None]:
        """Stream a session; ends when the gateway drains."""
        principal.require(Scope.READ)
        check_payloads(request.payloads)
        row = await self._conversations.require(request.session_key, principal)
        subject = session_subject(row.session_key)
        positions = decode_token(subject, request.resume_token)
        if not principal.is_admin:
            positions = await self._own_trees(positions, principal)
        async with Merge[_Heard](self._draining, self._heartbeat) as merge:
            view = _View(self._log, merge, row.session_key, positions, request)
            await view.open(await self._live_trees(row.session_key, request))
            if follows_lanes(request):
                lanes = await self._lanes.of(row.session_key)
                view.open_lanes(lanes, self._lanes.new(row.session_key, lanes))
            async with aclosing(view.responses()) as responses:
                async for response in responses:
                    merge.said()
                    yield response

    async def _own_trees(self, positions: Positions, principal: Principal) -> Positions:
        """Leave other customers' trees out of a token: anybody can write one."""
        flows = {}
        for flow_id, at in positions.flows.items():
            if _is_lane(flow_id):
                flows[flow_id] = at  # only those of this session are followed, whatever is written
                continue
            request = fs.GetFlowRequest(flow_id=flow_id, page_size=1)
            try:
                found = await call(self._upstream.flows.GetFlow(request), service="scheduler")
            except (FlowNotFound, InvalidField):
                continue
            if principal.may_see(found.flow.customer_key):
                flows[flow_id] = at
        return replace(positions, flows=flows)

    async def _live_trees(self, session_key: str, request: gw.WatchSessionRequest) -> list[str]:
        if not follows_trees(request):
            return []
        filters = fs.FlowFilter(session_key=session_key, states=LIVE_STATES, with_children=True)
        answer = await call(
            self._upstream.flows.ListFlows(fs.ListFlowsRequest(filter=filters, page_size=500)),
            service="scheduler",
        )
        return [flow.flow_id for flow in answer.flows]


class _View:
    """One watch: which streams are open, and how far each is."""

    def __init__(
        self,
        log: EventLog,
        merge: Merge[_Heard],
        session_key: str,
        positions: Positions,
        request: gw.WatchSessionRequest,
    ) -> None:
        self._log = log
        self._merge = merge
        self._key = session_key
        self._request = request
        self._wanted = frozenset(request.payloads)
        self._follows_trees = follows_trees(request)
        self._at = Positions(sequence=positions.sequence, position=positions.position)
        self._trees: dict[str, int | None] = {}
        self._lanes: dict[str, int | None] = {}
        for name, position in positions.flows.items():
            (self._lanes if _is_lane(name) else self._trees)[name] = position
        self._ended_trees: set[str] = set()
        self._closed_trees: set[str] = set()
        self._room = asyncio.Event()
        self._room.set()
        self._live = False
        self._opened = time.time()

    async def open(self, live_trees: list[str]) -> None:
        """Start the streams."""
        from_now = self._request.from_now and not self._at.begun
        start = start_after(self._at, from_now=from_now)
        extra = _TREE_PAYLOADS if self._follows_trees else ()
        payloads = sorted(self._wanted.union(extra)) if self._wanted else []
        self._tree_payloads = payloads
        if not self._request.include_descendants:
            self._tree_payloads = sorted(_QUESTIONS.union(_TREE_PAYLOADS))
        self._merge.add(_SESSION, self._gated(self._log.session(self._key, start, payloads)))
        if not self._follows_trees:
            self._trees.clear()
            return
        for flow_id, position in list(self._trees.items()):
            self._open_tree(flow_id, Start(position=position))
        for flow_id in live_trees:
            if flow_id not in self._trees:
                self._open_tree(flow_id, FROM_NOW if from_now else OLDEST)

    def open_lanes(self, lanes: Sequence[str], new: AsyncGenerator[str, None]) -> None:
        """Start the streams of ACP sessions beside this session."""
        before, self._lanes = self._lanes, {}
        from_now = self._request.from_now and not self._at.begun
        for lane in lanes:
            position = before.get(lane)
            start = FROM_NOW if from_now else Start(position=position)
            self._open_lane(lane, start)
        self._merge.add(_NEW_LANES, new)

    def _open_lane(self, lane: str, start: Start) -> None:
        self._lanes[lane] = start.position
        payloads = self._wanted or LANE_PAYLOADS
        if self._request.include_descendants:
            payloads = self._wanted
        elif self._wanted:
            payloads = self._wanted & LANE_PAYLOADS
        self._merge.add(lane, self._log.session(lane, start, sorted(payloads)))

    async def responses(self) -> AsyncGenerator[gw.WatchSessionResponse, None]:
        """Yield what the client gets."""
        while True:
            got = await self._merge.next()
            if isinstance(got, Draining):
                yield self._response(progress=gw.WatchProgress(live=self._live))
                return
            if isinstance(got, Idle):
                yield self._response(progress=gw.WatchProgress(live=self._live))
            elif isinstance(got, Ended):
                if got.source in self._lanes and (
                    got.error is None or isinstance(got.error, EventsCompacted)
                ):
                    del self._lanes[got.source]
                elif got.source not in (_SESSION, _NEW_LANES) and (
                    got.error is None or isinstance(got.error, FlowNotFound)
                ):
                    await self._close_tree(got.source)
                elif got.error is not None:
                    raise got.error
                else:
                    return
            elif isinstance(got.value, str):
                if got.value not in self._lanes:
                    self._open_lane(got.value, OLDEST)
            elif got.source == _SESSION:
                response = self._from_session(got.value)
                if response is not None:
                    yield response
            elif got.source in self._trees:
                response = await self._from_tree(got.source, got.value)
                if response is not None:
                    yield response
            elif got.source in self._lanes:
                response = self._from_lane(got.source, got.value)
                if response is not None:
                    yield response

    def _from_session(self, message: ev.WatchEventsResponse) -> gw.WatchSessionResponse | None:
        self._at = passed(self._at, message)
        kind = message.WhichOneof("message")
        if kind == "progress":
            self._live = message.progress.live
            return self._response(progress=gw.WatchProgress(live=self._live))
        if kind == "event":
            self._note_tree(message.event)
        return self._passed_on(message)

    async def _from_tree(
        self, flow_id: str, message: ev.WatchEventsResponse
    ) -> gw.WatchSessionResponse | None:
        kind = message.WhichOneof("message")
        if kind == "progress":
            self._trees[flow_id] = max(message.progress.position, self._trees[flow_id] or 0)
            return None
        if kind == "event":
            self._trees[flow_id] = message.event.position
            if ended_run(message.event) and message.event.run_id == flow_id:
                await self._close_tree(flow_id)
                return None
        # The root's own session is the first stream.
        own = getattr(message, kind).session_key == self._key if kind else True
        asks = kind == "event" and message.event.WhichOneof("payload") in _QUESTIONS
        if own or not (asks or self._request.include_descendants):
            return None
        return self._passed_on(message)

    def _from_lane(
        self, lane: str, message: ev.WatchEventsResponse
    ) -> gw.WatchSessionResponse | None:
        kind = message.WhichOneof("message")
        if kind == "progress":
            self._lanes[lane] = max(message.progress.position, self._lanes[lane] or 0)
            return None
        if kind == "event":
            self._lanes[lane] = message.event.position
            if not (self._request.include_descendants or is_heard(message.event)):
                return None
        elif kind == "lane_position" and not self._request.include_descendants:
            return None
        return self._passed_on(message)

    def _note_tree(self, event: event_pb2.Event) -> None:
        if not self._follows_trees:
            return
        flow_id = event.flow_id
        if event.WhichOneof("payload") in ("child_spawned", "child_announced"):
            known = flow_id in self._trees or flow_id in self._closed_trees
            if not known and (self._request.include_descendants or self._is_news(event)):
                self._open_tree(flow_id, OLDEST)
        elif ended_run(event) and event.run_id == flow_id:
            # The last that is said of the tree here: it will not be asked for again.
            self._closed_trees.discard(flow_id)
            if flow_id in self._trees:
                self._ended_trees.add(flow_id)
                if len(self._ended_trees) >= _MAX_ENDED_TREES:
                    self._room.clear()

    def _is_news(self, event: event_pb2.Event) -> bool:
        """Tell whether an event may come after the list of live trees was made.

        Of trees that ended before, nobody wants to know what they once asked.
        """
        return (
            self._live or event.create_time.ToMicroseconds() / 1e6 > self._opened - _SLACK_SECONDS
        )

    def _open_tree(self, flow_id: str, start: Start) -> None:
        self._trees[flow_id] = start.position
        self._merge.add(flow_id, self._log.flow(flow_id, start, self._tree_payloads))

    async def _close_tree(self, flow_id: str) -> None:
        self._trees.pop(flow_id, None)
        if flow_id in self._ended_trees:
            self._ended_trees.discard(flow_id)
        else:
            self._closed_trees.add(flow_id)
        if len(self._ended_trees) < _MAX_ENDED_TREES:
            self._room.set()
        await self._merge.remove(flow_id)

    async def _gated(
        self, stream: AsyncGenerator[ev.WatchEventsResponse, None]
    ) -> AsyncGenerator[ev.WatchEventsResponse, None]:
        async with aclosing(stream) as messages:
            async for message in messages:
                await self._room.wait()
                yield message

    def _passed_on(self, message: ev.WatchEventsResponse) -> gw.WatchSessionResponse | None:
        kind = message.WhichOneof("message")
        if kind == "event":
            if self._wanted and message.event.WhichOneof("payload") not in self._wanted:
                return None
            return self._response(event=clear_event(message.event))
        if kind == "delta" and (not self._wanted or "delta" in self._wanted):
            return self._response(delta=message.delta)
        if kind == "lane_position" and (not self._wanted or "lane_position" in self._wanted):
            return self._response(lane_position=message.lane_position)
        return None

    def _response(
        self,
        *,
        event: event_pb2.Event | None = None,
        progress: gw.WatchProgress | None = None,
        delta: event_pb2.MessageDelta | None = None,
        lane_position: event_pb2.LanePositionUpdated | None = None,
    ) -> gw.WatchSessionResponse:
        positions = Positions(
            sequence=self._at.sequence,
            position=self._at.position,
            flows={
                name: at
                for name, at in (*self._trees.items(), *self._lanes.items())
                if at is not None
            },
        )
        return gw.WatchSessionResponse(
            event=event,
            progress=progress,
            delta=delta,
            lane_position=lane_position,
            resume_token=encode_token(session_subject(self._key), positions),
        )


def follows_trees(request: gw.WatchSessionRequest) -> bool:
    """Return whether a watcher hears of other sessions than its own: at least of questions."""
    if request.include_descendants or not request.payloads:
        return True
    return not _QUESTIONS.isdisjoint(request.payloads)


def _is_lane(name: str) -> bool:
    """Tell lanes from trees: a session key has colons, the id of a tree has none."""
    return ":" in name


def follows_lanes(request: gw.WatchSessionRequest) -> bool:
    """Return whether a watcher hears of ACP sessions beside its own session."""
    if request.include_descendants or not request.payloads:
        return True
    return not LANE_PAYLOADS.isdisjoint(request.payloads)


def check_payloads(names: Iterable[str]) -> None:
    """Refuse payload names that no event has."""
    for name in names:
        if name not in PAYLOADS:
            raise invalid_field("payloads", f"knows no {name[:64]!r}")
