"""Bindings: which conversations an ACP session answers, and when that is over.

A binding is looked at with every message. Once its session has ended, by whatever way, the binding
goes, the customer is told with the next answer, and that is the agent's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import sqlalchemy as sa

from conveyor.acp.v1 import acp_service_pb2 as acp
from conveyor.acp.v1 import session_pb2
from gateway_svc.domain.binding import (
    Binding,
    Bound,
    ended_notice,
    how_ended,
    is_over,
    name_of,
)
from gateway_svc.domain.reply_route import ReplyAddress, encode_address
from gateway_svc.domain.routing import KnownSession
from gateway_svc.store import sessions as store
from gateway_svc.upstream import Upstream
from svckit.clock import Clock
from svckit.database import Database
from svckit.errors import (
    AcpDisabled,
    AcpSessionInitFailed,
    AcpSessionNotFound,
    ServiceError,
    invalid_field,
)
from svckit.grpc.client import call
from svckit.logging import get_logger

LOOK_SECONDS = 2.0
"""How long a message waits for news of the session that is to answer it."""

log = get_logger(__name__)


class Bindings:
    """Keeps the bindings of conversations. One per process."""

    def __init__(self, database: Database, upstream: Upstream, clock: Clock) -> None:
        self._database = database
        self._upstream = upstream
        self._clock = clock

    async def known(self, row: store.SessionRow) -> KnownSession:
        """Return what routing needs of a session, with the ACP session that answers it, if any.

        While nobody can say how that session is, the binding holds: its worker will say.
        """
        bound_id = row.bound_acp_session_id
        if not bound_id:
            return row.known
        harness_id = Binding.read(row.binding).harness_id
        try:
            session = await self._look(bound_id)
        except AcpSessionNotFound:
            return await self._over(row, harness_id, "is gone")
        except AcpDisabled:
            return await self._over(row, harness_id, "is over: ACP was switched off")
        except ServiceError as error:
            log.warning("binding not looked at", acp_session_id=bound_id, reason=error.reason)
            bound = Bound(bound_id, harness_id)
        else:
            if is_over(session):
                return await self._over(row, name_of(session), how_ended(session))
            bound = Bound.of(session)
        return replace(row.known, bound=bound, notice=None)

    async def check_free(self, row: store.SessionRow, request_id: str, field_name: str) -> None:
        """Raise `InvalidField` when another open session answers a conversation.

        One that `request_id` itself bound is no other.
        """
        bound_id = row.bound_acp_session_id
        if not bound_id or Binding.read(row.binding).request_id == request_id:
            return
        if (await self.known(row)).bound is not None:
            raise taken(bound_id, field_name)

    async def bind(
        self,
        session_key: str,
        session: session_pb2.AcpSession,
        address: ReplyAddress,
        request_id: str = "",
    ) -> bool:
        """Let a session answer a conversation, which is in use from then on.

        False when another session does. `address` is where answers to prompts go that come from
        elsewhere than the conversation.
        """
        binding = Binding(request_id, session.spec.harness_id)
        now = self._clock.now_us()

        def write(connection: sa.Connection) -> bool:
            done = store.bind(
                connection, session_key, session.acp_session_id, binding, encode_address(address)
            )
            if done:
                store.touch(connection, session_key, now)
            return done

        return await self._database.run(write)

    async def unbind(self, session_key: str, acp_session_id: str) -> bool:
        """End a binding that the customer knows to end; false when there was none."""
        return await self._database.run(
            lambda connection: store.unbind(connection, session_key, acp_session_id, None)
        )

    async def closed(self, session: session_pb2.AcpSession, by_session_key: str) -> Sequence[str]:
        """End the bindings of a session that was closed; returns the conversations.

        `by_session_key` is the conversation that closed it, which need not be told.
        """
        bound_id = session.acp_session_id

        def end(connection: sa.Connection) -> list[str]:
            rows = store.bound_to(connection, bound_id)
            for row in rows:
                told = row.session_key == by_session_key
                notice = ended_notice(bound_id, name_of(session), "was closed", row.agent_id)
                store.unbind(connection, row.session_key, bound_id, None if told else notice)
            return [row.session_key for row in rows]

        return await self._database.run(end)

    async def renew(self, row: store.SessionRow) -> bool:
        """Make the session that answers a conversation forget; false when none does."""
        if not row.bound_acp_session_id:
            return False
        request = acp.ConfigureSessionRequest(
            acp_session_id=row.bound_acp_session_id,
            settings=session_pb2.AcpSessionSettings(fresh=True),
        )
        try:
            await call(self._upstream.acp.ConfigureSession(request), service="acp")
        except (AcpSessionNotFound, AcpDisabled):
            return False  # over; the next message finds out
        except AcpSessionInitFailed:
            return True  # not open yet: there is nothing to forget
        return True

    async def _look(self, acp_session_id: str) -> session_pb2.AcpSession:
        request = acp.GetSessionRequest(acp_session_id=acp_session_id)
        answer = await call(
            self._upstream.acp.GetSession(request, timeout=LOOK_SECONDS), service="acp"
        )
        return answer.session

    async def _over(self, row: store.SessionRow, name: str, how: str) -> KnownSession:
        bound_id = row.bound_acp_session_id
        notice = ended_notice(bound_id, name or "the harness", how, row.agent_id)
        ended = await self._database.run(
            lambda connection: store.unbind(connection, row.session_key, bound_id, notice)
        )
        log.info("binding ended", acp_session_id=bound_id, how=how, here=ended)
        return replace(row.known, notice=notice)


def taken(acp_session_id: str, field_name: str) -> ServiceError:
    """Return the refusal to bind a conversation that another session answers."""
    return invalid_field(
        field_name, f"is answered by the ACP session {acp_session_id} already: close that one first"
    )
