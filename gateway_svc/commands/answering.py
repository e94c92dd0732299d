"""Who answers in a conversation, its agent or a coding agent, and what waits there for people."""

from __future__ import annotations

from functools import partial

from conveyor.acp.v1 import session_pb2 as acp
from conveyor.common.v1 import question_pb2
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from gateway_svc.commands.asked import Asked, Services
from gateway_svc.domain.commands.words import at_us
from gateway_svc.questions import MOST_OPEN
from gateway_svc.store import sessions as store
from svckit.errors import ServiceError
from svckit.logging import get_logger

log = get_logger(__name__)


class Answering:
    """Looks up what several commands need to know of a conversation."""

    def __init__(self, services: Services) -> None:
        self._do = services

    async def questions(self, asked: Asked) -> list[question_pb2.Question]:
        """Return what waits for an answer in a conversation, oldest first."""
        return [question for question, _ in await self.askers(asked)]

    async def askers(self, asked: Asked) -> list[tuple[question_pb2.Question, str]]:
        """Return what waits for an answer in a conversation, with a short name of who asks.

        Besides its own trees the coding agents ask that were spawned from it: each in its own lane,
        with numbers of its own. Oldest first.
        """
        own_key, agent_id = asked.session_key, asked.conversation.agent_id
        own = await self._do.questions.open_of(own_key, asked.principal)
        request = gw.ListQuestionsRequest(page_size=MOST_OPEN)
        request.filter.customer_key = asked.conversation.customer_key
        found = await self._do.questions.list_questions(request, asked.principal)
        names: dict[str, str] = {}
        for lane in {q.root_session_key for q in found.questions if q.acp_session_id} - {own_key}:
            row = await self._do.database.run(partial(store.find, session_key=lane))
            if row is not None and row.parent_session_key == own_key:
                name = row.label or row.agent_id
                names[lane] = lane[-6:] if name in {*names.values(), agent_id} else name
        others = [
            (q, names[q.root_session_key]) for q in found.questions if q.root_session_key in names
        ]
        return sorted(
            [(question, agent_id) for question in own] + others,
            key=lambda pair: at_us(pair[0].create_time),
        )

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
