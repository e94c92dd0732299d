"""Follows the log of all sessions: keeps the sessions table and fills the outboxes."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import sqlalchemy as sa

from conveyor.agent.v1 import task_pb2
from conveyor.events.v1 import event_log_service_pb2 as ev
from conveyor.events.v1 import event_pb2
from conveyor.gateway.v1 import session_pb2
from conveyor.scheduler.v1 import run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from gateway_svc.delivery.channel import Channel
from gateway_svc.domain import asking
from gateway_svc.domain.deliveries import (
    AnnounceStyle,
    is_failure,
    message_text,
    speaker,
    told,
)
from gateway_svc.domain.keys import default_customer, is_child_run, parse_key
from gateway_svc.domain.reply_route import ReplyAddress, decode_address
from gateway_svc.domain.sessions import created_run, ended_run, is_spoken
from gateway_svc.store import outbox
from gateway_svc.store import sessions as store
from gateway_svc.upstream import Upstream, patiently
from gateway_svc.watching.log import OLDEST, EventLog, Start
from svckit.database import Database
from svckit.errors import EventsCompacted, InvalidField, RunNotFound, ServiceError
from svckit.failpoints import failpoint
from svckit.logging import get_logger

PAYLOADS = (
    "message_completed",
    "run_state_changed",
    "child_spawned",
    "child_announced",
    "note_added",
    *asking.PAYLOADS,
)
MAX_BATCH = 200
_ROUTES_KEPT = 1000
_PAUSE_SECONDS = 2.0

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Fact:
    """What one event changes here, worked out before the transaction that stores it."""

    event: event_pb2.Event
    at_us: int
    child: store.SessionRow | None
    unknown: store.SessionRow | None
    entry: outbox.NewEntry | None


class Follower:
    """Runs for as long as the process. One per suite: it owns the delivery cursor.

    `styles` says per channel how much of the ends of children is told; left out, a line each.
    `archive_after` gives the microseconds after which ended children of an agent leave the lists,
    0 for never.
    """

    def __init__(
        self,
        database: Database,
        upstream: Upstream,
        event_log: EventLog,
        channels: Mapping[str, Channel],
        styles: Mapping[str, AnnounceStyle],
        archive_after: Callable[[str], int],
        filled: Callable[[], None],
    ) -> None:
        self._database = database
        self._upstream = upstream
        self._log = event_log
        self._channels = channels
        self._styles = styles
        self._archive_after = archive_after
        self._filled = filled
        self._routes: OrderedDict[str, tuple[ReplyAddress | None, str]] = OrderedDict()
        self._known: OrderedDict[str, None] = OrderedDict()
        self.position = 0

    async def run(self) -> None:
        """Follow the log, from where the last process stopped, until cancelled."""
        while True:
            try:
                cursor = await self._database.run(outbox.read_cursor)
                self.position = cursor or 0
                start = OLDEST if cursor is None else Start(position=cursor)
                await self._follow(start)
            except EventsCompacted as error:
                await self._skip_compacted(error)
            except ServiceError as error:
                # Nothing was stored, so nothing was skipped: begin again at the cursor.
                self._known.clear()
                log.warning("delivery waits", reason=error.reason)
                await asyncio.sleep(error.retry_after or _PAUSE_SECONDS)

    async def _follow(self, start: Start) -> None:
        async with (
            aclosing(self._log.everything(start, PAYLOADS)) as messages,
            aclosing(batches(messages)) as found,
        ):
            async for batch in found:
                await self._apply(batch)

    async def _apply(self, batch: Sequence[ev.WatchEventsResponse]) -> None:
        events = [message.event for message in batch if message.WhichOneof("message") == "event"]
        facts = [await self._fact(event) for event in events]
        position = self.position
        for message in batch:
            kind = message.WhichOneof("message")
            if kind == "event":
                position = max(position, message.event.position)
            elif kind == "progress":
                position = max(position, message.progress.position)
        if position == self.position and not facts:
            return

        def store_batch(connection: sa.Connection) -> bool:
            filled = False
            for fact in facts:
                filled |= _store(connection, fact)
                self._archive(connection, fact)
            outbox.move_cursor(connection, position)
            return filled

        failpoint("gateway.cursor.before")
        filled = await self._database.run(store_batch)
        failpoint("gateway.cursor.moved")
        self.position = position
        if filled:
            self._filled()

    def _archive(self, connection: sa.Connection, fact: _Fact) -> None:
        """Note when the session of a child that ended leaves the lists; a new run stops that."""
        ended = ended_run(fact.event)
        # The session of a child run ends with it. An ACP session with a lane of its own goes on.
        if not is_child_run(fact.event.session_key) or not (ended or created_run(fact.event)):
            return
        row = store.find(connection, fact.event.session_key)
        if row is None or not row.parent_session_key:
            return
        parent = store.find(connection, row.parent_session_key)
        after = self._archive_after(parent.agent_id if parent else row.agent_id) if ended else 0
        store.archive(connection, row.session_key, fact.at_us + after if after else None)

    async def _fact(self, event: event_pb2.Event) -> _Fact:
        at_us = event.create_time.ToMicroseconds()
        child: store.SessionRow | None = None
        unknown: store.SessionRow | None = None
        if event.WhichOneof("payload") == "child_spawned":
            spawned = event.child_spawned
            run = await self._find_run(spawned.child_run_id)
            child = _row_of(spawned.child_session_key, run, spawned.label, at_us)
            if child is not None and not child.parent_session_key:
                child = None
        if event.session_key not in self._known:
            unknown = await self._unknown_session(event, at_us)
            self._known[event.session_key] = None
            while len(self._known) > _ROUTES_KEPT:
                self._known.popitem(last=False)
        return _Fact(event, at_us, child, unknown, await self._entry(event, at_us))

    async def _unknown_session(self, event: event_pb2.Event, at_us: int) -> store.SessionRow | None:
        """Return a row for a session that did not come in through this gateway."""
        key = event.session_key
        if await self._database.run(lambda connection: store.find(connection, key)) is not None:
            return None
        return _row_of(key, await self._find_run(event.run_id), "", at_us)

    async def _entry(self, event: event_pb2.Event, at_us: int) -> outbox.NewEntry | None:
        if not self._channels:
            return None
        address, run_trace = await self._route(speaker(event))
        channel = self._channels.get(address.channel) if address else None
        if channel is None or address is None:
            return None
        about = await self._asked(event.run_id) if is_failure(event) else ""
        message = told(event, self._styles.get(channel.name, AnnounceStyle.STATUS), about)
        if message is None:
            return None
        return outbox.NewEntry(
            recipient=address.recipient,
            event_key=f"{event.session_key}#{event.sequence}@{event.run_id}",
            channel=channel.name,
            kind=message.kind,
            text=message.text,
            run_id=event.run_id,
            create_us=at_us,
            # What wrote it, where that is told; else what created the run.
            trace=_trace_of(event) or run_trace,
        )

    async def _asked(self, run_id: str) -> str:
        """Return the messages that a run was to answer, as text."""
        run = await self._find_run(run_id)
        return "\n".join(message_text(item.message) for item in run.inputs) if run else ""

    async def _route(self, run_id: str) -> tuple[ReplyAddress | None, str]:
        """Return the stored route of a run and its trace; what comes later does not change them."""
        if run_id in self._routes:
            self._routes.move_to_end(run_id)
            return self._routes[run_id]
        run = await self._find_run(run_id)
        address = decode_address(run.spec.reply_route.address) if run is not None else None
        found = self._routes[run_id] = address, run.trace.traceparent if run is not None else ""
        while len(self._routes) > _ROUTES_KEPT:
            self._routes.popitem(last=False)
        return found

    async def _find_run(self, run_id: str) -> run_pb2.Run | None:
        try:
            answer = await patiently(
                lambda: self._upstream.scheduler.GetRun(ss.GetRunRequest(run_id=run_id)),
                service="scheduler",
            )
        except (RunNotFound, InvalidField):
            return None  # removed by retention, or an event about no run
        return answer.run

    async def _skip_compacted(self, error: EventsCompacted) -> None:
        """Go on at the oldest event kept: what retention took cannot be delivered any more."""
        oldest = int(error.metadata.get("oldestPosition", "0") or "0")
        position = max(self.position + 1, oldest - 1)
        log.error("events were removed before their delivery", after=self.position, until=position)
        await self._database.run(lambda connection: outbox.move_cursor(connection, position))


def _trace_of(event: event_pb2.Event) -> str:
    told = event.child_announced.announcement.trace.traceparent
    return told or event.trace.traceparent


def _store(connection: sa.Connection, fact: _Fact) -> bool:
    """Store what an event changes; true when an outbox got an entry."""
    event = fact.event
    if fact.unknown is not None:
        store.create(connection, fact.unknown)
    if fact.child is not None:
        parent = store.find(connection, fact.child.parent_session_key)
        store.create(connection, _inheriting(fact.child, parent))
    if created_run(event) or is_spoken(event):
        store.touch(connection, event.session_key, fact.at_us)
    return fact.entry is not None and outbox.add(connection, fact.entry)


def _row_of(
    session_key: str, run: run_pb2.Run | None, label: str, at_us: int
) -> store.SessionRow | None:
    try:
        key = parse_key(session_key)
    except InvalidField:
        return None
    agent_id, customer = key.agent_id, ""
    if run is not None:
        customer, label = run.spec.customer_key, label or run.spec.label
        task = task_pb2.AgentTask()
        if run.spec.task.Is(task_pb2.AgentTask.DESCRIPTOR) and run.spec.task.Unpack(task):
            agent_id = task.agent_id or agent_id
    return store.SessionRow(
        session_key=session_key,
        kind=key.kind,
        agent_id=agent_id,
        customer_key=customer or (default_customer(key) if key.is_conversation else ""),
        channel=key.channel if key.kind == session_pb2.SESSION_KIND_CONVERSATION else "",
        parent_session_key=key.parent,
        label=label,
        epoch=run.spec.session_epoch if run is not None else 0,
        create_us=at_us,
        active_us=at_us,
    )


def _inheriting(child: store.SessionRow, parent: store.SessionRow | None) -> store.SessionRow:
    """A child belongs to its parent's customer, also when its run is gone."""
    if parent is None or child.customer_key:
        return child
    values = {name: getattr(child, name) for name in store.SessionRow.__slots__}
    return store.SessionRow(**{**values, "customer_key": parent.customer_key})


async def batches(
    messages: AsyncIterator[ev.WatchEventsResponse],
) -> AsyncGenerator[list[ev.WatchEventsResponse], None]:
    """Group what is there already, so that one commit takes it: replay is then fast."""
    queue: asyncio.Queue[ev.WatchEventsResponse | Exception | None] = asyncio.Queue(MAX_BATCH)

    async def pump() -> None:
        try:
            async for message in messages:
                await queue.put(message)
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    task = asyncio.create_task(pump(), name="delivery reader")
    try:
        while True:
            got = [await queue.get()]
            while not queue.empty() and len(got) < MAX_BATCH:
                got.append(queue.get_nowait())
            batch = [item for item in got if isinstance(item, ev.WatchEventsResponse)]
            if batch:
                yield batch
            for item in got:
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    return
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
