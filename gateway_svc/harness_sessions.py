"""ACP sessions for clients and for chat commands: opened, prompted, changed, closed.

The sessions themselves are kept by the ACP service. Here is decided whose they are, in which lane
their prompts go, and where what they say is delivered.
"""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

from conveyor.acp.v1 import acp_service_pb2 as acp
from conveyor.acp.v1 import session_pb2 as acp_session
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from conveyor.gateway.v1 import session_pb2
from conveyor.scheduler.v1 import lane_pb2
from gateway_svc.auth import Principal, Scope
from gateway_svc.bindings import Bindings
from gateway_svc.domain.binding import check_ready, is_over
from gateway_svc.domain.keys import parse_key
from gateway_svc.domain.redaction import clear_acp_session, clear_run
from gateway_svc.domain.routing import RoutingRules, check_request_id, checked_message
from gateway_svc.domain.tokens import Positions, encode_token, session_subject
from gateway_svc.harness_runs import HarnessRuns, Origin
from gateway_svc.harness_spawning import HarnessSpawning, check_permissions
from gateway_svc.refusals import acp_session_not_found, own_words, session_not_found
from gateway_svc.store import sessions as store
from gateway_svc.upstream import Upstream
from gateway_svc.watching.log import EventLog
from svckit.clock import Clock
from svckit.database import Database
from svckit.errors import AcpSessionNotFound, invalid_field
from svckit.grpc.client import call

__all__ = ["HarnessSessions", "Origin"]


class HarnessSessions:
    """What clients do with ACP sessions. One per process.

    Sessions of other customers do not exist for a caller, unless it is an administrator.
    """

    def __init__(
        self,
        database: Database,
        upstream: Upstream,
        runs: HarnessRuns,
        spawning: HarnessSpawning,
        bindings: Bindings,
        event_log: EventLog,
        rules: RoutingRules,
        archive_after: Callable[[str], int],
        clock: Clock,
    ) -> None:
        self._rules = rules
        self._database = database
        self._upstream = upstream
        self._runs = runs
        self._spawning = spawning
        self._bindings = bindings
        self._log = event_log
        self._archive_after = archive_after
        self._clock = clock

    async def spawn(
        self,
        request: gw.SpawnAcpSessionRequest,
        principal: Principal,
        origin: Origin | None = None,
    ) -> gw.SpawnAcpSessionResponse:
        """Open a session, idempotently per `request_id`, and bind a conversation to it if asked to.

        With an `origin` the session is of its conversation's customer, and what it says goes there.
        Raises what `SpawnAcpSession` is documented to fail with.
        """
        return await self._spawning.spawn(request, principal, origin)

    async def list(
        self, request: gw.ListAcpSessionsRequest, principal: Principal
    ) -> gw.ListAcpSessionsResponse:
        """List sessions, newest first; those that have not ended unless `filter.states` says so."""
        principal.require(Scope.READ)
        wanted = acp.ListSessionsRequest(
            filter=request.filter, page_size=request.page_size, page_token=request.page_token
        )
        if not principal.is_admin:
            if not principal.customer_key:
                return gw.ListAcpSessionsResponse()
            wanted.filter.customer_key = principal.customer_key
        found = await call(self._upstream.acp.ListSessions(wanted), service="acp")
        return gw.ListAcpSessionsResponse(
            sessions=[
                clear_acp_session(session, for_admin=principal.is_admin)
                for session in found.sessions
            ],
            next_page_token=found.next_page_token,
        )

    async def get(
        self, request: gw.GetAcpSessionRequest, principal: Principal
    ) -> gw.GetAcpSessionResponse:
        """Return a session, and the position after the newest event of its lane."""
        principal.require(Scope.READ)
        session = await self._require(request.acp_session_id, principal)
        lane = session.spec.session_key
        newest = await self._log.newest(lane)
        return gw.GetAcpSessionResponse(
            session=clear_acp_session(session, for_admin=principal.is_admin),
            resume_token=encode_token(session_subject(lane), newest),
        )

    async def prompt(
        self,
        request: gw.PromptAcpSessionRequest,
        principal: Principal,
        origin: Origin | None = None,
    ) -> gw.PromptAcpSessionResponse:
        """Queue a prompt, idempotently per `request_id`.

        Its answer and its questions go to `origin`, by default where the session was spawned from.
        """
        principal.require(Scope.SEND)
        check_request_id(request.request_id)
        if request.queue_mode not in lane_pb2.QueueMode.values():
            raise invalid_field(
                "queue_mode", "must be FOLLOWUP, COLLECT, STEER, INTERRUPT or unset"
            )
        message = checked_message(
            request.message, request_id=request.request_id, field_name="message"
        )
        session = await self._require(request.acp_session_id, principal)
        known_as = principal.request_id(request.request_id)
        # It may have ended with this very prompt.
        accepted = await self._runs.earlier(session, known_as) if is_over(session) else None
        if accepted is None:
            check_ready(session)
            with own_words():
                accepted = await self._runs.queue(
                    session,
                    message,
                    known_as,
                    address=origin.address if origin else None,
                    mode=request.queue_mode,
                )
        clear_run(accepted.run, for_admin=principal.is_admin)
        return gw.PromptAcpSessionResponse(
            accepted=accepted,
            resume_token=_token(session.spec.session_key, accepted.last_sequence),
        )

    async def configure(
        self, request: gw.ConfigureAcpSessionRequest, principal: Principal
    ) -> gw.ConfigureAcpSessionResponse:
        """Change settings of a session; takes effect with its next turn."""
        principal.require(Scope.CONTROL)
        check_permissions(request.settings.permission_mode, principal, self._rules.acp)
        await self._require(request.acp_session_id, principal)
        asked = acp.ConfigureSessionRequest(
            acp_session_id=request.acp_session_id, settings=request.settings
        )
        answer = await call(self._upstream.acp.ConfigureSession(asked), service="acp")
        return gw.ConfigureAcpSessionResponse(
            session=clear_acp_session(answer.session, for_admin=principal.is_admin)
        )

    async def cancel(
        self, request: gw.CancelAcpTurnRequest, principal: Principal
    ) -> gw.CancelAcpTurnResponse:
        """Stop the turn at work, if any. The session stays."""
        principal.require(Scope.CONTROL)
        await self._require(request.acp_session_id, principal)
        asked = acp.CancelTurnRequest(acp_session_id=request.acp_session_id, reason=request.reason)
        answer = await call(self._upstream.acp.CancelTurn(asked), service="acp")
        return gw.CancelAcpTurnResponse(run_id=answer.run_id)

    async def close(
        self,
        request: gw.CloseAcpSessionRequest,
        principal: Principal,
        origin: Origin | None = None,
    ) -> gw.CloseAcpSessionResponse:
        """Close a session with its process, and its bindings.

        Conversations that it answered are told with their next answer, except for `origin`.
        """
        principal.require(Scope.CONTROL)
        await self._require(request.acp_session_id, principal)
        asked = acp.CloseSessionRequest(acp_session_id=request.acp_session_id)
        answer = await call(self._upstream.acp.CloseSession(asked), service="acp")
        await self._bindings.closed(answer.session, origin.session_key if origin else "")
        await self._leave_lists(answer.session)
        return gw.CloseAcpSessionResponse(
            session=clear_acp_session(answer.session, for_admin=principal.is_admin)
        )

    async def bound(self, session_key: str, principal: Principal) -> acp_session.AcpSession | None:
        """Return the open session that answers a conversation, `None` when its agent does."""
        principal.require(Scope.READ)
        key = parse_key(session_key)
        row = await self._database.run(lambda connection: store.find(connection, key.text))
        if row is None or not principal.may_see(row.customer_key):
            raise session_not_found(session_key)
        known = await self._bindings.known(row)
        if known.bound is None:
            return None
        return await self._require(known.bound.acp_session_id, principal)

    async def _leave_lists(self, session: acp_session.AcpSession) -> None:
        """Let the lane of a closed session leave the lists when those of children do."""
        lane, now = session.spec.session_key, self._clock.now_us()

        def archive(connection: sa.Connection) -> None:
            row = store.find(connection, lane)
            if row is None or row.kind != session_pb2.SESSION_KIND_ACP or row.archive_us:
                return
            parent = store.find(connection, row.parent_session_key)
            after = self._archive_after(parent.agent_id if parent else row.agent_id)
            if after:
                store.archive(connection, lane, now + after)

        await self._database.run(archive)

    async def _require(self, acp_session_id: str, principal: Principal) -> acp_session.AcpSession:
        if not acp_session_id:
            raise invalid_field("acp_session_id", "is required")
        request = acp.GetSessionRequest(acp_session_id=acp_session_id)
        try:
            answer = await call(self._upstream.acp.GetSession(request), service="acp")
        except AcpSessionNotFound:
            raise acp_session_not_found(acp_session_id) from None
        if not principal.may_see(answer.session.spec.customer_key):
            raise acp_session_not_found(acp_session_id)
        return answer.session


def _token(session_key: str, sequence: int) -> str:
    return encode_token(session_subject(session_key), Positions(sequence=sequence))
