"""`Chat`: one message in, and everything that answers it out, until its spawn tree is done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from conveyor.events.v1 import event_log_service_pb2 as ev
from conveyor.events.v1 import event_pb2
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from gateway_svc.auth import Principal, Scope
from gateway_svc.domain import asking
from gateway_svc.domain.redaction import clear_ended, clear_event
from gateway_svc.domain.sessions import TERMINAL_STATES, ended_run
from gateway_svc.domain.tokens import Positions, decode_token, encode_token
from gateway_svc.inbox import Accepted, Inbox
from gateway_svc.upstream import Upstream, patiently
from gateway_svc.watching.log import OLDEST, EventLog, Start
from gateway_svc.watching.merge import HEARTBEAT_SECONDS, Draining, Ended, Idle, Merge
from svckit.errors import EventsCompacted


def chat_subject(request_id: str) -> str:
    """Name what the tokens of one `Chat` are for: the message, under whichever run it is."""
    return f"chat {request_id}"


class ChatService:
    """Runs chats. One per process."""

    def __init__(
        self,
        inbox: Inbox,
        log: EventLog,
        upstream: Upstream,
        draining: asyncio.Event,
        heartbeat: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._inbox = inbox
        self._log = log
        self._upstream = upstream
        self._draining = draining
        self._heartbeat = heartbeat

    async def chat(
        self, request: gw.ChatRequest, principal: Principal
    ) -> AsyncGenerator[gw.ChatResponse, None]:
        """Store the message, then stream; the last response is the run that answered, terminal.

        Ends without it only when the gateway drains or the client leaves.
        """
        principal.require(Scope.SEND)
        # Before anything is stored: a client with a broken token should not have sent a message.
        positions = decode_token(chat_subject(request.request_id), request.resume_token)
        accepted = await self._inbox.accept(request.inbound, request.request_id, principal)
        run = accepted.accepted.run
        clear_ended(run, for_admin=principal.is_admin)
        if accepted.answered:
            token = encode_token(chat_subject(request.request_id), positions)
            yield gw.ChatResponse(accepted=accepted.accepted, resume_token=token)
            yield gw.ChatResponse(ended=run, resume_token=token)
            return
        async with Merge[ev.WatchEventsResponse](self._draining, self._heartbeat) as merge:
            answer = _Answer(
                self._log,
                merge,
                accepted,
                positions,
                request,
                principal.request_id(request.request_id),
            )
            answer.open()
            yield answer.first()
            while True:
                async with aclosing(answer.responses()) as responses:
                    async for response in responses:
                        merge.said()
                        yield response
                if not answer.finished:
                    return  # draining
                # The end of a run is several events, in no promised order: take what is left.
                for event in await self._rest(answer):
                    late = await answer.take_event(event)
                    if late is not None:
                        yield late
                if answer.finished:
                    break  # else the message moved on to another run
        found = await patiently(
            lambda: self._upstream.scheduler.GetRun(ss.GetRunRequest(run_id=answer.run_id)),
            service="scheduler",
        )
        run = clear_ended(found.run, for_admin=principal.is_admin)
        yield gw.ChatResponse(ended=run, resume_token=answer.token())

    async def _rest(self, answer: _Answer) -> list[event_pb2.Event]:
        """Return the events of the ended run that the stream had not sent yet."""
        rest: list[event_pb2.Event] = []
        if not answer.last_sequence:
            return rest
        listing = ev.ListEventsRequest(
            session_key=answer.session_key,
            run_id=answer.run_id,
            after_sequence=answer.last_sequence,
            page_size=1000,
        )
        while True:
            page = await patiently(
                lambda: self._upstream.events.ListEvents(listing), service="scheduler"
            )
            rest.extend(page.events)
            if not page.next_page_token:
                return rest
            listing.page_token = page.next_page_token


class _Answer:
    """One chat: which run answers, and how far its events have been sent."""

    def __init__(
        self,
        log: EventLog,
        merge: Merge[ev.WatchEventsResponse],
        accepted: Accepted,
        positions: Positions,
        request: gw.ChatRequest,
        known_as: str,
    ) -> None:
        self._known_as = known_as
        self._log = log
        self._merge = merge
        self._accepted = accepted.accepted
        self._request = request
        self.session_key = accepted.session_key
        run = accepted.accepted.run
        self.run_id = run.run_id
        self._flow_id = run.spawn.flow_id or run.run_id
        self._position = positions.flows.get(self._flow_id)
        # A message that joins a run that has said things already begins after those.
        fresh = self._position is None and not accepted.accepted.deduplicated
        self._skip_to = accepted.accepted.last_sequence if fresh else 0
        self.last_sequence = 0
        self._was_terminal = run.state in TERMINAL_STATES
        self._live = False
        self.finished = False

    def open(self) -> None:
        """Follow the spawn tree of the run."""
        start = OLDEST if self._position is None else Start(position=self._position)
        self._merge.add(self._flow_id, self._log.flow(self._flow_id, start))

    def first(self) -> gw.ChatResponse:
        """Return the response that says how the message was accepted."""
        return gw.ChatResponse(accepted=self._accepted, resume_token=self.token())

    def token(self) -> str:
        """Return the token of what was sent so far."""
        flows = {} if self._position is None else {self._flow_id: self._position}
        return encode_token(chat_subject(self._request.request_id), Positions(flows=flows))

    async def responses(self) -> AsyncGenerator[gw.ChatResponse, None]:
        """Yield until the run is terminal (then `finished`) or the gateway drains."""
        while not self.finished:
            got = await self._merge.next()
            if isinstance(got, Draining | Idle):
                yield self._progress()
                if isinstance(got, Draining):
                    return
            elif isinstance(got, Ended):
                if got.source != self._flow_id:
                    continue
                # Events of an ended run go after a while; the run itself is kept longer.
                if isinstance(got.error, EventsCompacted) and self._was_terminal:
                    self.finished = True
                elif got.error is not None:
                    raise got.error
                return
            elif got.source == self._flow_id:
                response = await self._take(got.value)
                if response is not None:
                    yield response

    async def _take(self, message: ev.WatchEventsResponse) -> gw.ChatResponse | None:
        kind = message.WhichOneof("message")
        if kind == "event":
            return await self.take_event(message.event)
        if kind == "progress":
            self._position = max(message.progress.position, self._position or 0)
            self._live = message.progress.live
            # Ended before this call: everything stored was sent, and nothing more will come.
            self.finished = self._live and self._was_terminal
            return self._progress()
        if kind == "delta" and self._wants(message.delta.run_id):
            return gw.ChatResponse(delta=message.delta, resume_token=self.token())
        if kind == "lane_position" and self._wants(message.lane_position.run_id):
            return gw.ChatResponse(lane_position=message.lane_position, resume_token=self.token())
        return None

    async def take_event(self, event: event_pb2.Event) -> gw.ChatResponse | None:
        """Note an event, and return the response for it unless the client does not want it."""
        self._position = event.position
        mine = event.run_id == self.run_id
        if event.session_key == self.session_key:
            if event.sequence <= self._skip_to:
                return None
            if mine:
                self.last_sequence = event.sequence
        if mine and ended_run(event):
            self.finished = True
        moved = self._moved_to(event)
        if moved:
            await self._follow(moved)
        # What a run of the tree asks is for the people of this conversation.
        asks = event.WhichOneof("payload") in asking.PAYLOADS
        if not (mine or moved or asks or self._wants(event.run_id)):
            return None
        return gw.ChatResponse(event=clear_event(event), resume_token=self.token())

    def _moved_to(self, event: event_pb2.Event) -> str:
        """Return the run that answers instead, when the steered message was not taken."""
        if event.WhichOneof("payload") != "steer_missed":
            return ""
        missed = event.steer_missed
        return missed.fallback_run_id if missed.request_id == self._known_as else ""

    async def _follow(self, run_id: str) -> None:
        await self._merge.remove(self._flow_id)
        self.run_id = self._flow_id = run_id
        self._position = None
        self.last_sequence = 0
        self._was_terminal = self.finished = False
        self.open()

    def _wants(self, run_id: str) -> bool:
        return self._request.include_descendants or run_id == self.run_id

    def _progress(self) -> gw.ChatResponse:
        return gw.ChatResponse(
            progress=gw.WatchProgress(live=self._live), resume_token=self.token()
        )
