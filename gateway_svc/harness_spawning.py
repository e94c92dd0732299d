"""Opens ACP sessions: for a conversation that they are to answer, or in a lane of their own."""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from weakref import WeakValueDictionary

from conveyor.acp.v1 import acp_service_pb2 as acp
from conveyor.acp.v1 import session_pb2 as acp_session
from conveyor.common.v1 import content_pb2
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from conveyor.gateway.v1 import session_pb2
from conveyor.scheduler.v1 import lane_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from gateway_svc.auth import Principal, Scope
from gateway_svc.bindings import Bindings, taken
from gateway_svc.domain.binding import AcpRules, check_ready, is_over
from gateway_svc.domain.keys import (
    DEFAULT_CHANNEL,
    MAX_CUSTOMER_LENGTH,
    default_customer,
    parse_key,
)
from gateway_svc.domain.principals import may_begin
from gateway_svc.domain.redaction import clear_acp_session, clear_run
from gateway_svc.domain.reply_route import ReplyAddress, decode_address, encode_address
from gateway_svc.domain.routing import (
    RoutingRules,
    agent_by_route,
    check_request_id,
    checked_message,
)
from gateway_svc.domain.tokens import Positions, encode_token, session_subject
from gateway_svc.harness_runs import HarnessRuns, Origin, address_of
from gateway_svc.refusals import own_words, session_not_found
from gateway_svc.store import sessions as store
from gateway_svc.upstream import Upstream
from gateway_svc.watching.lanes import SpawnedLanes
from svckit.clock import Clock
from svckit.database import Database
from svckit.errors import (
    AgentNotFound,
    RequestIdReused,
    ScopeMissing,
    ServiceError,
    invalid_field,
)
from svckit.grpc.client import call
from svckit.logging import get_logger

_SYNCHRONOUS_MARGIN = 20.0
_MAX_REQUEST_ID = 128
_PASSING = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL"})

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a session is to work. `bound_key` is empty for a session with a lane of its own."""

    bound_key: str
    parent_key: str
    customer_key: str
    address: ReplyAddress


class HarnessSpawning:
    """Opens ACP sessions. One per process."""

    def __init__(
        self,
        database: Database,
        upstream: Upstream,
        runs: HarnessRuns,
        bindings: Bindings,
        lanes: SpawnedLanes,
        rules: RoutingRules,
        clock: Clock,
    ) -> None:
        self._database = database
        self._upstream = upstream
        self._runs = runs
        self._bindings = bindings
        self._lanes = lanes
        self._rules = rules
        self._clock = clock
        self._places: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

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
        principal.require(Scope.CONTROL)
        check_request_id(request.request_id)
        message = None
        if request.HasField("message"):
            message = checked_message(
                request.message, request_id=request.request_id, field_name="message"
            )
        spec = _checked_spec(request.spec)
        check_permissions(spec.permission_mode, principal, self._rules.acp)
        request.request_id = principal.request_id(request.request_id)
        with own_words():
            if not request.bind_session_key:
                place = self._own_place(spec, principal, origin)
                return await self._opened(request, spec, place, message, principal, origin)
            async with self._places.setdefault(request.bind_session_key, asyncio.Lock()):
                place = await self._conversation(request, spec, principal, origin)
                return await self._opened(request, spec, place, message, principal, origin)

    async def _opened(
        self,
        request: gw.SpawnAcpSessionRequest,
        spec: acp_session.AcpSessionSpec,
        place: _Place,
        message: content_pb2.Message | None,
        principal: Principal,
        origin: Origin | None,
    ) -> gw.SpawnAcpSessionResponse:
        spec.session_key, spec.parent_session_key = place.bound_key, place.parent_key
        spec.customer_key = place.customer_key
        asked = acp.SpawnSessionRequest(
            spec=spec,
            request_id=_inner_id(request.request_id),
            return_starting=request.return_starting,
        )
        timeout = None
        if not request.return_starting:
            timeout = self._rules.acp.handshake_seconds + _SYNCHRONOUS_MARGIN
        answer = await call(self._upstream.acp.SpawnSession(asked, timeout=timeout), service="acp")
        session = answer.session
        response = gw.SpawnAcpSessionResponse(session=session)
        clear_acp_session(response.session, for_admin=principal.is_admin)
        if is_over(session):
            return await self._as_before(request, session, response, principal)
        try:
            await self._settle(session, place, request.request_id)
            runs = await self._first_runs(request, session, place, message, origin)
        except RequestIdReused as error:
            # Another task came with it before, and the session is at work on that one.
            error.metadata["requestId"] = request.request_id
            raise
        except ServiceError as error:
            if error.grpc_code not in _PASSING:
                # Refused for good: nobody was told of the session, so nobody could close it.
                await self._abandon(session)
            raise
        if runs:
            response.resume_token = _token(session.spec.session_key, runs[0].last_sequence)
        for accepted in runs:
            clear_run(accepted.run, for_admin=principal.is_admin)
        if message is not None:
            response.accepted.CopyFrom(runs.pop())
        if runs:
            response.opening.CopyFrom(runs.pop())
        return response

    async def _as_before(
        self,
        request: gw.SpawnAcpSessionRequest,
        session: acp_session.AcpSession,
        response: gw.SpawnAcpSessionResponse,
        principal: Principal,
    ) -> gw.SpawnAcpSessionResponse:
        """Answer a request that came before, whose session has ended since.

        Raises `AcpSessionNotFound` when nothing came of it: the session ended with its refusal.
        """
        session_id = session.acp_session_id
        wanted = {"opening": _opening_id(session_id)} if _wants_opening(request) else {}
        if request.HasField("message"):
            wanted["accepted"] = _first_id(session_id)
        found = {name: await self._runs.earlier(session, known) for name, known in wanted.items()}
        if wanted and not any(found.values()):
            check_ready(session)
        for name, accepted in found.items():
            if accepted is not None:
                clear_run(accepted.run, for_admin=principal.is_admin)
                getattr(response, name).CopyFrom(accepted)
        return response

    async def _settle(
        self, session: acp_session.AcpSession, place: _Place, request_id: str
    ) -> None:
        """Store where the session's answers go, and the binding."""
        if place.bound_key:
            bound = await self._bindings.bind(place.bound_key, session, place.address, request_id)
            if not bound:
                row = await self._find(place.bound_key)
                raise taken(row.bound_acp_session_id if row else "", "bind_session_key")
            return
        now = self._clock.now_us()
        row = store.SessionRow(
            session_key=session.spec.session_key,
            kind=session_pb2.SESSION_KIND_ACP,
            agent_id=session.spec.harness_id,
            customer_key=session.spec.customer_key,
            channel="",
            parent_session_key=place.parent_key,
            label=session.spec.label,
            epoch=0,
            create_us=now,
            active_us=now,
            reply_address=encode_address(place.address),
        )
        await self._database.run(lambda connection: store.create(connection, row))
        self._lanes.opened(place.parent_key)

    async def _first_runs(
        self,
        request: gw.SpawnAcpSessionRequest,
        session: acp_session.AcpSession,
        place: _Place,
        message: content_pb2.Message | None,
        origin: Origin | None,
    ) -> list[ss.AcceptedRun]:
        """Queue the run that opens the session or says that it is open, then the first prompt."""
        runs: list[ss.AcceptedRun] = []
        session_id = session.acp_session_id
        if _wants_opening(request):
            said = origin.said if origin else ""
            opening = content_pb2.Message(
                message_id=f"open-{session_id}",
                role=content_pb2.ROLE_USER,
                parts=[
                    content_pb2.ContentPart(
                        text=said or f"Open a session with {session.spec.harness_id}."
                    )
                ],
            )
            runs.append(
                await self._runs.queue(
                    session,
                    opening,
                    _opening_id(session_id),
                    address=place.address,
                    open_only=True,
                )
            )
        if message is not None:
            runs.append(
                await self._runs.queue(
                    session,
                    message,
                    _first_id(session_id),
                    address=place.address,
                    mode=lane_pb2.QUEUE_MODE_FOLLOWUP,
                )
            )
        return runs

    async def _abandon(self, session: acp_session.AcpSession) -> None:
        asked = acp.CloseSessionRequest(acp_session_id=session.acp_session_id)
        try:
            await call(self._upstream.acp.CloseSession(asked), service="acp")
        except ServiceError as error:
            log.warning(
                "session not closed", acp_session_id=session.acp_session_id, reason=error.reason
            )
        await self._bindings.unbind(session.spec.session_key, session.acp_session_id)

    def _own_place(
        self, spec: acp_session.AcpSessionSpec, principal: Principal, origin: Origin | None
    ) -> _Place:
        if origin is not None:
            return _Place("", origin.session_key, origin.customer_key, origin.address)
        address = ReplyAddress(DEFAULT_CHANNEL, principal.name)
        own = f"{DEFAULT_CHANNEL}:{principal.name}"[:MAX_CUSTOMER_LENGTH]
        customer = spec.customer_key or principal.customer_key or own
        if not principal.may_see(customer):
            raise invalid_field("spec.customer_key", "is not the customer of the caller")
        return _Place("", "", customer, address)

    async def _conversation(
        self,
        request: gw.SpawnAcpSessionRequest,
        spec: acp_session.AcpSessionSpec,
        principal: Principal,
        origin: Origin | None,
    ) -> _Place:
        """Return the place of a session that is to answer a conversation, which is made if new."""
        key = parse_key(request.bind_session_key, "bind_session_key")
        if not key.is_conversation:
            raise invalid_field("bind_session_key", "must be a conversation")
        row = await self._find(key.text)
        if row is None:
            agent_id = key.agent_id or agent_by_route(address_of(key.text), self._rules)
            if agent_id not in self._rules.agents:
                raise AgentNotFound(
                    f"no agent is called {agent_id!r}", metadata={"agentId": agent_id}
                )
            customer = spec.customer_key or principal.customer_key or default_customer(key)
            new = store.SessionRow(
                session_key=key.text,
                kind=key.kind,
                agent_id=agent_id,
                customer_key=customer,
                channel=key.channel,
                parent_session_key="",
                label="",
                epoch=0,
                create_us=self._clock.now_us(),
                active_us=None,
            )
            begins = may_begin(key, principal, self._rules.holders)
            if begins and principal.may_see(customer):
                row = await self._database.run(lambda connection: store.create(connection, new))
        if row is None or not principal.may_see(row.customer_key):
            raise session_not_found(key.text)
        if spec.customer_key not in ("", row.customer_key):
            raise invalid_field("spec.customer_key", "differs from that of the conversation")
        await self._bindings.check_free(row, request.request_id, "bind_session_key")
        address = decode_address(row.reply_address) or address_of(key.text)
        if origin is not None:
            address = origin.address
        return _Place(key.text, key.text, row.customer_key, address)

    async def _find(self, session_key: str) -> store.SessionRow | None:
        return await self._database.run(lambda connection: store.find(connection, session_key))


def check_permissions(
    mode: acp_session.PermissionMode.ValueType, principal: Principal, rules: AcpRules
) -> None:
    """Raise `ScopeMissing` for a permission mode that is an operator's to choose.

    The mode of a hook is one, for it stands in the configuration.
    """
    if rules.needs_operator(mode) and not (principal.is_admin or principal.is_hook):
        raise ScopeMissing(
            "permissions approve-all are an operator's decision, because nobody is asked any more: "
            "choose ask, or have acp.permission_mode configured",
            metadata={"scope": Scope.ADMIN.name.lower()},
        )


def _checked_spec(asked: acp_session.AcpSessionSpec) -> acp_session.AcpSessionSpec:
    """Return a copy of what a client may say about a session."""
    for name in ("session_key", "parent_session_key"):
        if getattr(asked, name):
            raise invalid_field(
                f"spec.{name}", "is chosen by the server; bind_session_key names a conversation"
            )
    spec = acp_session.AcpSessionSpec()
    spec.CopyFrom(asked)
    return spec


def _wants_opening(request: gw.SpawnAcpSessionRequest) -> bool:
    """True when a run opens the session, or says in its conversation that it is open."""
    return request.return_starting or bool(request.bind_session_key)


def _opening_id(acp_session_id: str) -> str:
    return f"acp-open-{acp_session_id}"


def _first_id(acp_session_id: str) -> str:
    return f"acp-first-{acp_session_id}"


def _inner_id(request_id: str) -> str:
    """Return the request id for the ACP service, where agents' runs spawn under their own ids."""
    inner = f"gateway-{request_id}"
    if len(inner) <= _MAX_REQUEST_ID:
        return inner
    return f"gateway-{hashlib.blake2b(request_id.encode(), digest_size=32).hexdigest()}"


def _token(session_key: str, sequence: int) -> str:
    return encode_token(session_subject(session_key), Positions(sequence=sequence))
