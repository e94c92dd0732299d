"""`EventLogService`: the ordered, resumable record of what happens in sessions."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterable

from conveyor.events.v1 import event_log_service_pb2 as pb
from conveyor.events.v1 import event_log_service_pb2_grpc as pb_grpc
from conveyor.events.v1 import event_pb2
from scheduler_svc.domain import emits, leasing, turns
from scheduler_svc.domain.kernel import Kernel
from scheduler_svc.domain.records import GuardStep
from scheduler_svc.engine import Engine
from scheduler_svc.hub import Watcher
from scheduler_svc.rpc import CallContext, answers, questions, validate
from scheduler_svc.rpc.pages import position, token_after
from scheduler_svc.store.base import EventQuery, EventRow
from svckit.errors import EventsCompacted, invalid_field

PROGRESS_SECONDS = 15.0
READ_EVENTS = 200

_PAYLOADS = frozenset(field.name for field in event_pb2.Event.DESCRIPTOR.oneofs[0].fields)
_LIVE = frozenset({"delta", "lane_position"})
# What the scheduler alone writes, in the commit that makes it true.
_BY_WORKERS = frozenset(
    {
        "message_completed",
        "tool_call_started",
        "tool_call_ended",
        "question_asked",
        "guard_intervened",
        "harness_updated",
        "permission_decided",
        "note_added",
    }
)


class EventLogServicer(pb_grpc.EventLogServiceServicer):
    """Translates, and follows the log for watchers."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def AppendEvents(
        self, request: pb.AppendEventsRequest, context: CallContext
    ) -> pb.AppendEventsResponse:
        """See the contract."""
        run_id, token = validate.lease_id(request.lease_id)
        if len(request.events) > 256 or len(request.deltas) > 256:
            raise invalid_field("events", "at most 256 events and 256 deltas")
        validate.size(request, "events", 2 * validate.MIB)
        events = [_checked(event, index) for index, event in enumerate(request.events)]
        pieces = [_piece(delta, index) for index, delta in enumerate(request.deltas)]
        hub = self._engine.hub

        def check(k: Kernel, now: int) -> str:
            run = leasing.held_run(k, run_id, token)
            hub.write(run_id, run.session_key, run.flow_id, pieces)
            return run.session_key

        def append(k: Kernel, now: int) -> int:
            return turns.append(k, run_id, token, events, now)

        if pieces or not events:
            session_key = await self._engine.submit(check, runs=[run_id])
        else:
            session_key = await self._engine.submit(
                lambda k, now: leasing.held_run(k, run_id, token).session_key, runs=[run_id]
            )
        last = 0
        if events:
            ids = [(session_key, event.event_id) for event in events]
            asked = [e.question.question_id for e in events if isinstance(e, emits.Asked)]
            last = await self._engine.submit(append, runs=[run_id], event_ids=ids, questions=asked)
        return pb.AppendEventsResponse(last_sequence=last)

    async def ListEvents(
        self, request: pb.ListEventsRequest, context: CallContext
    ) -> pb.ListEventsResponse:
        """See the contract."""
        validate.text(request.session_key, "session_key", validate.CHILD_KEY_LENGTH)
        size = validate.page_size(request.page_size, 100, 1000)
        filters = pb.ListEventsRequest()
        filters.CopyFrom(request)
        filters.ClearField("page_token")
        filters.ClearField("page_size")
        after = request.after_sequence
        if request.page_token:
            after = position(request.page_token, filters)
        await self._check_kept(request.session_key, after)
        query = EventQuery(
            session_key=request.session_key,
            run_id=request.run_id,
            kinds=_kinds(request.payloads, frozenset()),
            after_sequence=after,
        )
        rows = await self._engine.store.events(query, size + 1)
        page, more = rows[:size], len(rows) > size
        return pb.ListEventsResponse(
            events=[event_pb2.Event.FromString(row.data) for row in page],
            next_page_token=token_after(page[-1].sequence, filters) if more else "",
        )

    async def WatchEvents(
        self, request: pb.WatchEventsRequest, context: CallContext
    ) -> AsyncIterator[pb.WatchEventsResponse]:
        """See the contract."""
        query, start = await self._start(request)
        wants_deltas = not request.payloads or "delta" in request.payloads
        wants_places = not request.payloads or "lane_position" in request.payloads
        only_live = bool(request.payloads) and not query.kinds
        watcher = self._engine.hub.watch(query, pieces=wants_deltas, places=wants_places)
        try:
            async for response in self._follow(watcher, start, only_live):
                yield response
        finally:
            self._engine.hub.leave(watcher)

    async def _start(self, request: pb.WatchEventsRequest) -> tuple[EventQuery, _Position]:
        scope = request.WhichOneof("scope")
        if scope is None or (scope == "all_sessions" and not request.all_sessions):
            raise invalid_field("scope", "needs session_key, flow_id or all_sessions = true")
        if scope == "session_key":
            validate.text(request.session_key, "session_key", validate.CHILD_KEY_LENGTH)
        elif scope == "flow_id":
            validate.text(request.flow_id, "flow_id", 64)
        start = request.WhichOneof("start")
        if start == "after_sequence" and scope != "session_key":
            raise invalid_field("after_sequence", "goes with session_key; use after_position")
        query = EventQuery(
            session_key=request.session_key,
            flow_id=request.flow_id,
            kinds=_kinds(request.payloads, _LIVE),
        )
        position = _Position()
        if start == "after_sequence":
            position.sequence = request.after_sequence
            await self._check_kept(request.session_key, request.after_sequence)
        elif start == "after_position":
            position.position = request.after_position
            if request.after_position:
                await self._check_kept("", request.after_position)
        elif start == "from_now" and request.from_now:
            position.position = await self._engine.submit(lambda k, now: k.next_position - 1)
        return query, position

    async def _check_kept(self, session_key: str, after: int) -> None:
        if after < 0:
            raise invalid_field("after_sequence", "must not be negative")
        oldest = await self._engine.store.oldest(session_key)
        if 0 < after < oldest - 1:
            key = "oldestSequence" if session_key else "oldestPosition"
            raise EventsCompacted(
                "retention removed what follows this position; list, then watch",
                metadata={key: str(oldest)},
            )

    async def _follow(
        self, watcher: Watcher, start: _Position, only_live: bool
    ) -> AsyncIterator[pb.WatchEventsResponse]:
        """Stored events after the start, then live ones, without a gap: the watcher's inbox fills
        from before the first read, and what was read already is left out of it."""
        hub, at = self._engine.hub, start
        live = False
        behind = True
        while True:
            watcher.wake.clear()
            while behind:
                rows = [] if only_live else await self._read(watcher, at)
                for row in rows:
                    at.pass_by(row)
                    yield _event(row)
                behind = len(rows) == READ_EVENTS
                if not behind and watcher.overflowed:
                    # Too slow for the inbox: the store has what it lost.
                    watcher.overflowed, behind = False, True
            if not live:
                live = True
                yield self._progress(watcher, at)
            while watcher.inbox:
                row = watcher.inbox.popleft()
                if row.position > at.position and not only_live:
                    at.pass_by(row)
                    yield _event(row)
            behind = watcher.overflowed
            if behind:
                watcher.overflowed = False
                continue
            if watcher.wants_pieces:
                for message, text, offset in watcher.sent.pieces(hub.live.seen_by(watcher.query)):
                    yield pb.WatchEventsResponse(
                        delta=event_pb2.MessageDelta(
                            message_id=message.message_id,
                            text=text,
                            offset=offset,
                            run_id=message.run_id,
                            session_key=message.session_key,
                        )
                    )
            if watcher.wants_places:
                for place in watcher.sent.places(hub.places.seen_by(watcher.query)):
                    yield pb.WatchEventsResponse(
                        lane_position=event_pb2.LanePositionUpdated(
                            run_id=place.run_id,
                            session_key=place.session_key,
                            estimate=answers.queue_estimate(place.estimate, place.time),
                        )
                    )
            if self._engine.draining or not self._engine.leading:
                yield self._progress(watcher, at)
                return
            try:
                # Not `wait_for`, which loses a cancellation that comes together with an event.
                async with asyncio.timeout(PROGRESS_SECONDS):
                    await watcher.wake.wait()
            except TimeoutError:
                yield self._progress(watcher, at)

    def _progress(self, watcher: Watcher, at: _Position) -> pb.WatchEventsResponse:
        if not watcher.inbox and not watcher.overflowed:
            # What was filtered out is behind the watcher too.
            at.position = max(at.position, self._engine.hub.position)
            at.sequence = max(at.sequence, watcher.sequence)
        sequence = at.sequence if watcher.query.session_key else 0
        return pb.WatchEventsResponse(
            progress=pb.WatchProgress(sequence=sequence, position=at.position, live=True)
        )

    async def _read(self, watcher: Watcher, at: _Position) -> list[EventRow]:
        query = watcher.query
        return await self._engine.store.events(
            EventQuery(
                session_key=query.session_key,
                flow_id=query.flow_id,
                kinds=query.kinds,
                after_sequence=at.sequence,
                after_position=at.position,
            ),
            READ_EVENTS,
        )


class _Position:
    """How far a watcher is."""

    def __init__(self) -> None:
        self.sequence = 0
        self.position = 0

    def pass_by(self, row: EventRow) -> None:
        self.sequence, self.position = row.sequence, row.position


def _event(row: EventRow) -> pb.WatchEventsResponse:
    response = pb.WatchEventsResponse()
    response.event.ParseFromString(row.data)
    return response


def _kinds(names: Iterable[str], also: frozenset[str]) -> frozenset[str]:
    kinds = set()
    for name in names:
        if name in _PAYLOADS:
            kinds.add(name)
        elif name not in also:
            raise invalid_field("payloads", f"{name!r} is no payload of an event")
    return frozenset(kinds)


def _checked(event: event_pb2.Event, index: int) -> emits.Appended:
    where = f"events[{index}]"
    validate.text(event.event_id, f"{where}.event_id", 64)
    kind = event.WhichOneof("payload")
    if kind not in _BY_WORKERS:
        raise invalid_field(f"{where}.payload", "is written by the scheduler, or is missing")
    if (
        kind == "message_completed"
        and event.message_completed.kind != event_pb2.MESSAGE_KIND_INTERNAL
    ):
        raise invalid_field(f"{where}.message_completed.kind", "must be INTERNAL for a worker")
    if event.event_id.startswith("s-"):
        raise invalid_field(f"{where}.event_id", "must not start with s-, which the scheduler uses")
    if kind == "question_asked":
        return questions.asked(event, where)
    if kind == "guard_intervened":
        return _intervened(event, where)
    return emits.Appended(event.event_id, event.SerializeToString())


_TRIGGERS = frozenset(event_pb2.GuardTrigger.values())
_STEPS = frozenset(event_pb2.GuardStep.values())


def _intervened(event: event_pb2.Event, where: str) -> emits.Intervened:
    did = event.guard_intervened
    if len(did.model) > 256:
        raise invalid_field(f"{where}.guard_intervened.model", "must be at most 256 characters")
    named = did.trigger in _TRIGGERS and did.step in _STEPS
    if not named or not did.trigger or not did.step:
        raise invalid_field(
            f"{where}.guard_intervened", "needs a trigger and a step of the contract"
        )
    step = GuardStep(
        # One string per word and model, however many runs use it.
        sys.intern(_word(event_pb2.GuardTrigger.Name(did.trigger), "GUARD_TRIGGER_")),
        sys.intern(_word(event_pb2.GuardStep.Name(did.step), "GUARD_STEP_")),
        sys.intern(did.model),
        did.resolved,
    )
    return emits.Intervened(event.event_id, event.SerializeToString(), step)


def _word(name: str, prefix: str) -> str:
    return name.removeprefix(prefix).lower()


def _piece(delta: event_pb2.MessageDelta, index: int) -> tuple[str, str, int]:
    validate.text(delta.message_id, f"deltas[{index}].message_id", 64)
    if delta.offset < 0:
        raise invalid_field(f"deltas[{index}].offset", "must not be negative")
    return delta.message_id, delta.text, delta.offset
