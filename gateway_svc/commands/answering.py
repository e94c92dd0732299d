"""Who answers in a conversation: its agent, or a coding agent."""

from __future__ import annotations

from conveyor.acp.v1 import session_pb2 as acp
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from gateway_svc.commands.asked import Asked, Services
from gateway_svc.domain.commands.acp_words import name_of
from gateway_svc.store import sessions as store
from svckit.errors import ServiceError
from svckit.logging import get_logger

log = get_logger(__name__)


class Answering:
    """Looks up what several commands need to know of a conversation."""

    def __init__(self, services: Services) -> None:
        self._do = services

    async def bound_id(self, asked: Asked) -> str:
        """Return the ACP session that answers the conversation, empty when its agent does."""
        if asked.routed is None:
            return ""
        key = asked.session_key
        row = await self._do.database.run(lambda connection: store.find(connection, key))
        return row.bound_acp_session_id if row else ""

    async def answering(self, asked: Asked) -> acp.AcpSession | None:
        """Return the coding agent that answers the conversation, `None` when its agent does."""
        bound_id = await self.bound_id(asked)
        if not bound_id:
            return None
        try:
            return await self._do.harness_sessions.bound(asked.session_key, asked.principal)
        except ServiceError as error:
            # That it is bound is known here; how it is, the ACP service alone can tell.
            log.warning("bound session cannot be looked at", reason=error.reason)
            return acp.AcpSession(acp_session_id=bound_id)

    async def at_work_beside(self, asked: Asked) -> list[str]:
        """Return the names of coding agents at work that were spawned here with lanes of their own.

        Empty also when the ACP service cannot say.
        """
        request = gw.ListAcpSessionsRequest()
        request.filter.parent_session_key = asked.session_key
        request.filter.states.extend(
            (acp.ACP_SESSION_STATE_BUSY, acp.ACP_SESSION_STATE_ASKING),
        )
        try:
            found = await self._do.harness_sessions.list(request, asked.principal)
        except ServiceError:
            return []
        return [name_of(s) for s in found.sessions if s.spec.session_key != asked.session_key]
