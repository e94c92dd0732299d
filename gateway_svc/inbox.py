"""Takes messages in: from an inbound message to a run that the scheduler has stored."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from weakref import WeakValueDictionary

from conveyor.common.v1 import content_pb2
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from conveyor.gateway.v1 import session_pb2
from conveyor.scheduler.v1 import lane_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from gateway_svc.auth import Principal, Scope
from gateway_svc.commands import Commands
from gateway_svc.domain.commands import command_of, name_of, read_queue
from gateway_svc.domain.keys import DEFAULT_CHANNEL, SessionKey
from gateway_svc.domain.redaction import clear_run
from gateway_svc.domain.reply_route import ReplyAddress
from gateway_svc.domain.routing import (
    KnownSession,
    Routed,
    RoutingRules,
    check_request_id,
    choose_session,
    route,
)
from gateway_svc.domain.tokens import Positions, encode_token, session_subject
from gateway_svc.refusals import session_not_found
from gateway_svc.store import sessions as store
from gateway_svc.upstream import Upstream
from svckit.clock import Clock
from svckit.database import Database
from svckit.errors import Internal, invalid_field
from svckit.failpoints import failpoint
from svckit.grpc.client import call
from svckit.grpc.status import from_proto
from svckit.logging import get_logger

MAX_COMMAND = 4096

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Accepted:
    """A message that is stored: by which run it is held, in which session."""

    session_key: str
    accepted: ss.AcceptedRun

    @property
    def answered(self) -> bool:
        """True for a command, which no run answers: its answer is the result of `accepted.run`."""
        return not self.accepted.run.run_id

    @property
    def resume_token(self) -> str:
        """Position just before the message."""
        return encode_token(
            session_subject(self.session_key), Positions(sequence=self.accepted.last_sequence)
        )


class Inbox:
    """Accepts messages for conversations. One per process."""

    def __init__(
        self,
        database: Database,
        upstream: Upstream,
        rules: RoutingRules,
        clock: Clock,
        commands: Commands,
    ) -> None:
        self._database = database
        self._upstream = upstream
        self._rules = rules
        self._clock = clock
        self._commands = commands
        self._births: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def send(
        self, request: gw.SendMessageRequest, principal: Principal
    ) -> gw.SendMessageResponse:
        """Store a message and say what its sender may know of that."""
        taken = await self.accept(request.inbound, request.request_id, principal)
        clear_run(taken.accepted.run, for_admin=principal.is_admin)
        return gw.SendMessageResponse(accepted=taken.accepted, resume_token=taken.resume_token)

    async def accept(
        self,
        inbound: gw.InboundMessage,
        request_id: str,
        principal: Principal,
        address: ReplyAddress | None = None,
    ) -> Accepted:
        """Store a message as a run, idempotently per `request_id`; a command is done instead.

        `address` says who wrote on which channel, and where replies are pushed to; left out, they
        wait in the event log for whoever watches. A channel that leaves the session key empty gets
        the writer's own session, with the agent that the routes name. Raises what `SendMessage` is
        documented to fail with.
        """
        principal.require(Scope.SEND)
        if inbound.customer_key:
            principal.require(Scope.CONTROL)
        check_request_id(request_id)
        sender = address or ReplyAddress(channel=DEFAULT_CHANNEL, peer=principal.name)
        key = choose_session(
            inbound, sender=sender, rules=self._rules, field_name="inbound.session_key"
        )
        address = address or ReplyAddress(channel=DEFAULT_CHANNEL, peer=key.peer)
        command = command_of(inbound.message)

        def routed(known: KnownSession | None) -> Routed:
            return route(
                inbound,
                request_id=request_id,
                key=key,
                known=known,
                rules=self._rules,
                address=address,
                caller_customer=principal.customer_key,
            )

        async def take(decided: Routed) -> Accepted:
            if not command:
                return await self._enqueue(decided, request_id)
            accepted = await self._commands.run(decided, command, request_id, address)
            return Accepted(session_key=key.text, accepted=accepted)

        known = await self._known(key, principal)
        if known is not None:
            return await take(routed(known))
        # Two first messages at once must agree on the agent and the customer.
        async with self._births.setdefault(key.text, asyncio.Lock()):
            known = await self._known(key, principal)
            if known is None:
                # Before the scheduler knows of the session, so that whoever sees its first event
                # finds its agent and customer here. Clients see it once the message was accepted.
                known = await self._create(routed(None))
            return await take(routed(known))

    async def execute(
        self, request: gw.ExecuteCommandRequest, principal: Principal
    ) -> gw.ExecuteCommandResponse:
        """Run a command beside the lanes. Raises what `ExecuteCommand` is documented to fail with.

        A session without messages yet is one too: it may be told how to take them.
        """
        if not 1 <= len(request.text) <= MAX_COMMAND:
            raise invalid_field("text", f"must be 1 to {MAX_COMMAND} characters")
        name = name_of(request.text)
        if not name:
            raise invalid_field("text", "is no command of this release; there is /queue")
        if not request.session_key:
            raise invalid_field("session_key", "is required for /queue")
        if problem := read_queue(request.text).problem:
            raise invalid_field("text", f"cannot be done: {problem}")
        text = content_pb2.ContentPart(text=request.text)
        inbound = gw.InboundMessage(
            session_key=request.session_key,
            message=content_pb2.Message(role=content_pb2.ROLE_USER, parts=[text]),
        )
        taken = await self.accept(inbound, request.request_id, principal)
        said = taken.accepted.run.result.reply.parts[0].text
        return gw.ExecuteCommandResponse(command=name, text=said)

    async def _known(self, key: SessionKey, principal: Principal) -> KnownSession | None:
        row = await self._database.run(lambda connection: store.find(connection, key.text))
        if row is None:
            return None
        if not principal.may_see(row.customer_key):
            raise session_not_found(row.session_key)
        return row.known if row.active_us is not None else None

    async def _create(self, routed: Routed) -> KnownSession:
        row = store.SessionRow(
            session_key=routed.key.text,
            kind=session_pb2.SESSION_KIND_CONVERSATION,
            agent_id=routed.agent_id,
            customer_key=routed.customer_key,
            channel=routed.key.channel,
            parent_session_key="",
            label="",
            epoch=0,
            create_us=self._clock.now_us(),
            active_us=None,
        )
        stored = await self._database.run(lambda connection: store.replace_unborn(connection, row))
        return stored.known

    async def _enqueue(self, routed: Routed, request_id: str) -> Accepted:
        item = ss.EnqueueItem(
            spec=routed.spec,
            message=routed.message,
            request_id=request_id,
            queue_policy=routed.policy,
        )
        response = await call(
            self._upstream.scheduler.EnqueueRuns(ss.EnqueueRunsRequest(items=[item])),
            service="scheduler",
        )
        if len(response.results) != 1:
            raise Internal("the scheduler did not answer for the message")
        result = response.results[0]
        if result.WhichOneof("result") == "error":
            raise from_proto(result.error)
        accepted = result.accepted
        failpoint("gateway.accept.unanswered")
        key, now = routed.key.text, self._clock.now_us()
        await self._database.run(lambda connection: store.touch(connection, key, now))
        log.info(
            "message accepted",
            run_id=accepted.run.run_id,
            outcome=lane_pb2.EnqueueOutcome.Name(accepted.outcome),
            deduplicated=accepted.deduplicated,
        )
        return Accepted(session_key=key, accepted=accepted)
