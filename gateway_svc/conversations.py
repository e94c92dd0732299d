"""Sessions as clients see them: what is stored here, joined with what the scheduler knows now."""

from __future__ import annotations

from collections.abc import Mapping

from conveyor.agent.v1 import agent_service_pb2 as ag
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from conveyor.gateway.v1 import session_pb2
from conveyor.scheduler.v1 import run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from gateway_svc.auth import Principal, Scope
from gateway_svc.bindings import Bindings
from gateway_svc.domain.keys import parse_key
from gateway_svc.domain.routing import RoutingRules, check_request_id, queue_mode_of
from gateway_svc.domain.sessions import LIVE_STATES, LaneUse, lane_use
from gateway_svc.domain.tokens import encode_token, session_subject
from gateway_svc.refusals import session_not_found
from gateway_svc.store import sessions as store
from gateway_svc.upstream import Upstream
from gateway_svc.watching.log import EventLog
from svckit import paging
from svckit.clock import Clock
from svckit.database import Database
from svckit.errors import SessionNotFound, invalid_field
from svckit.grpc.client import call

DEFAULT_PAGE = 50
MAX_PAGE = 500
# Enough for what a list shows; beyond it, use figures of the rest are missing, not wrong.
_MAX_LIVE_PAGES = 4


class Conversations:
    """Shows and resets sessions. One per process."""

    def __init__(
        self,
        database: Database,
        upstream: Upstream,
        log: EventLog,
        bindings: Bindings,
        rules: RoutingRules,
        clock: Clock,
    ) -> None:
        self._clock = clock
        self._database = database
        self._upstream = upstream
        self._log = log
        self._bindings = bindings
        self._rules = rules

    async def require(self, session_key: str, principal: Principal) -> store.SessionRow:
        """Return a stored session; raises `SessionNotFound` when there is none for the caller."""
        key = parse_key(session_key)
        row = await self._database.run(lambda connection: store.find_active(connection, key.text))
        if row is None or not principal.may_see(row.customer_key):
            raise session_not_found(session_key)
        return row

    async def get(self, session_key: str, principal: Principal) -> gw.GetSessionResponse:
        """Return a session and the position after its newest event."""
        principal.require(Scope.READ)
        row = await self.require(session_key, principal)
        newest = await self._log.newest(row.session_key)
        use = await self._use(run_pb2.RunFilter(session_key=row.session_key))
        token = encode_token(session_subject(row.session_key), newest)
        return gw.GetSessionResponse(session=self._shown(row, use), resume_token=token)

    async def list(
        self, request: gw.ListSessionsRequest, principal: Principal
    ) -> gw.ListSessionsResponse:
        """Return a page of sessions, last used first."""
        principal.require(Scope.READ)
        if request.page_size < 0:
            raise invalid_field("page_size", "must not be negative")
        size = min(request.page_size or DEFAULT_PAGE, MAX_PAGE)
        filters = request.filter
        customer = filters.customer_key if principal.is_admin else principal.customer_key
        if not principal.is_admin and not customer:
            return gw.ListSessionsResponse()
        scope = {"filter": filters.SerializeToString(deterministic=True).hex()}
        after = paging.decode(request.page_token, scope)
        query = store.SessionQuery(
            kinds=tuple(filters.kinds),
            customer_key=customer,
            agent_id=filters.agent_id,
            channel=filters.channel,
            after=_after(after),
            limit=size + 1,
            not_archived_at=None if filters.include_archived else self._clock.now_us(),
        )
        rows = await self._database.run(lambda connection: store.list_active(connection, query))
        use = await self._use(run_pb2.RunFilter(customer_key=customer)) if rows else {}
        response = gw.ListSessionsResponse(sessions=[self._shown(row, use) for row in rows[:size]])
        if len(rows) > size:
            last = rows[size - 1]
            response.next_page_token = paging.encode([last.active_us or 0, last.session_key], scope)
        return response

    async def reset(
        self, request: ag.ResetSessionRequest, principal: Principal
    ) -> ag.ResetSessionResponse:
        """Begin a session's next epoch, and remember it for the messages that follow.

        The ACP session that answers it, if one does, forgets too: it stays, with a new session
        inside its harness.
        """
        principal.require(Scope.SEND)
        check_request_id(request.request_id)
        row = await self.require(request.session_key, principal)
        try:
            answer = await call(self._upstream.agents.ResetSession(request), service="agent")
        except SessionNotFound:
            # No turn of it has begun: there is no transcript to forget.
            await self._bindings.renew(row)
            return ag.ResetSessionResponse(epoch=row.epoch)
        if answer.epoch > row.epoch:
            # Else it is a request that comes again: what was said since is not for it to forget.
            await self._bindings.renew(row)
        await self._database.run(
            lambda connection: store.raise_epoch(connection, row.session_key, answer.epoch)
        )
        return answer

    async def messages(
        self, request: ag.ListMessagesRequest, principal: Principal
    ) -> ag.ListMessagesResponse:
        """List messages of a session, oldest first."""
        principal.require(Scope.READ)
        await self.require(request.session_key, principal)
        try:
            return await call(self._upstream.agents.ListMessages(request), service="agent")
        except SessionNotFound:
            return ag.ListMessagesResponse()  # as above: known here, not yet begun there

    async def _use(self, filters: run_pb2.RunFilter) -> Mapping[str, LaneUse]:
        filters.states.extend(LIVE_STATES)
        live: list[run_pb2.Run] = []
        request = ss.ListRunsRequest(filter=filters, page_size=MAX_PAGE)
        for _ in range(_MAX_LIVE_PAGES):
            answer = await call(self._upstream.scheduler.ListRuns(request), service="scheduler")
            live.extend(answer.runs)
            if not answer.next_page_token:
                break
            request.page_token = answer.next_page_token
        return lane_use(live)

    def _shown(self, row: store.SessionRow, use: Mapping[str, LaneUse]) -> session_pb2.Session:
        lane = use.get(row.session_key, LaneUse())
        session = session_pb2.Session(
            session_key=row.session_key,
            kind=session_pb2.SessionKind.ValueType(row.kind),
            agent_id=row.agent_id,
            customer_key=row.customer_key,
            channel=row.channel,
            parent_session_key=row.parent_session_key,
            label=row.label,
            epoch=row.epoch,
            run_id=lane.run_id,
            waiting=lane.waiting,
            model=row.model,
            bound_acp_session_id=row.bound_acp_session_id,
        )
        if row.kind == session_pb2.SESSION_KIND_CONVERSATION:
            session.queue_mode = row.known.queue_mode or queue_mode_of(
                parse_key(row.session_key), row.agent_id, self._rules
            )
        session.create_time.FromMicroseconds(row.create_us)
        if row.active_us is not None:
            session.active_time.FromMicroseconds(row.active_us)
        if row.archive_us is not None:
            session.archive_time.FromMicroseconds(row.archive_us)
        return session


def _after(last_key: tuple[paging.Scalar, ...] | None) -> tuple[int, str] | None:
    if last_key is None:
        return None
    match last_key:
        case (int(active_us), str(session_key)):
            return active_us, session_key
    raise invalid_field("page_token", "is not a token of this list")
