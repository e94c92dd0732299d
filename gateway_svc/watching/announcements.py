"""`WatchAnnouncements`: the ends of child runs, of one session, one spawn tree, or all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from conveyor.events.v1 import event_log_service_pb2 as ev
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from conveyor.scheduler.v1 import announcement_pb2
from conveyor.scheduler.v1 import flow_service_pb2 as fs
from gateway_svc.auth import Principal, Scope
from gateway_svc.conversations import Conversations
from gateway_svc.domain.tokens import (
    ALL_SESSIONS_SUBJECT,
    decode_token,
    encode_token,
    flow_subject,
    session_subject,
)
from gateway_svc.refusals import flow_not_found
from gateway_svc.upstream import Upstream
from gateway_svc.watching.log import EventLog, passed, start_after
from gateway_svc.watching.merge import HEARTBEAT_SECONDS, Draining, Ended, Idle, Merge
from svckit.errors import FlowNotFound, invalid_field
from svckit.grpc.client import call

_PAYLOADS = ("child_announced",)
_ONLY = "announcements"


class AnnouncementWatcher:
    """Opens announcement watches. One per process."""

    def __init__(
        self,
        log: EventLog,
        upstream: Upstream,
        conversations: Conversations,
        draining: asyncio.Event,
        heartbeat: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._log = log
        self._upstream = upstream
        self._conversations = conversations
        self._draining = draining
        self._heartbeat = heartbeat

    async def watch(
        self, request: gw.WatchAnnouncementsRequest, principal: Principal
    ) -> AsyncGenerator[gw.WatchAnnouncementsResponse, None]:
        """Stream announcements; ends when the gateway drains."""
        principal.require(Scope.READ)
        scope = request.WhichOneof("scope")
        if scope == "session_key":
            row = await self._conversations.require(request.session_key, principal)
            subject = session_subject(row.session_key)
        elif scope == "flow_id":
            await self._require_flow(request.flow_id, principal)
            subject = flow_subject(request.flow_id)
        elif scope == "all_sessions" and request.all_sessions:
            principal.require(Scope.ADMIN)
            subject = ALL_SESSIONS_SUBJECT
        else:
            raise invalid_field("scope", "must be session_key, flow_id, or all_sessions = true")
        positions = decode_token(subject, request.resume_token)
        start = start_after(positions, from_now=request.from_now)
        if scope == "session_key":
            stream = self._log.session(request.session_key, start, _PAYLOADS)
        elif scope == "flow_id":
            stream = self._log.flow(request.flow_id, start, _PAYLOADS)
        else:
            stream = self._log.everything(start, _PAYLOADS)

        live = False
        async with Merge[ev.WatchEventsResponse](self._draining, self._heartbeat) as merge:
            merge.add(_ONLY, stream)
            while True:
                got = await merge.next()
                announcement: announcement_pb2.Announcement | None = None
                if isinstance(got, Ended):
                    if got.error is not None:
                        raise got.error
                    return
                if not isinstance(got, Draining | Idle):
                    message = got.value
                    kind = message.WhichOneof("message")
                    positions = passed(positions, message)
                    if kind == "event":
                        announcement = message.event.child_announced.announcement
                    elif kind == "progress":
                        live = message.progress.live
                    else:
                        continue
                merge.said()
                token = encode_token(subject, positions)
                if announcement is not None:
                    yield gw.WatchAnnouncementsResponse(
                        announcement=announcement, resume_token=token
                    )
                else:
                    yield gw.WatchAnnouncementsResponse(
                        progress=gw.WatchProgress(live=live), resume_token=token
                    )
                if isinstance(got, Draining):
                    return

    async def _require_flow(self, flow_id: str, principal: Principal) -> None:
        try:
            answer = await call(
                self._upstream.flows.GetFlow(fs.GetFlowRequest(flow_id=flow_id, page_size=1)),
                service="scheduler",
            )
        except FlowNotFound:
            raise flow_not_found(flow_id) from None
        if not principal.may_see(answer.flow.customer_key):
            raise flow_not_found(flow_id)
