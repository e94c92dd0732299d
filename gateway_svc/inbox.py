"""Takes messages in: from an inbound message to a run that the scheduler has stored."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TypeVar
from weakref import WeakValueDictionary

from conveyor.common.v1 import content_pb2
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from conveyor.gateway.v1 import session_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from gateway_svc.auth import Principal, Scope
from gateway_svc.bindings import Bindings
from gateway_svc.commands import Commands
from gateway_svc.commands.runner import refusal
from gateway_svc.domain.binding import Bound
from gateway_svc.domain.commands.parsing import read_message, read_strictly
from gateway_svc.domain.commands.problem import Problem
from gateway_svc.domain.keys import DEFAULT_CHANNEL, SessionKey
from gateway_svc.domain.principals import may_begin
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
from gateway_svc.intake import Intake
from gateway_svc.refusals import own_words, session_not_found
from gateway_svc.store import sessions as store
from svckit.clock import Clock
from svckit.database import Database
from svckit.errors import RequestIdReused, invalid_field
from svckit.metrics import NOBODY, Metrics, definitions

T = TypeVar("T")

MAX_COMMAND = 4096


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
        intake: Intake,
        bindings: Bindings,
        rules: RoutingRules,
        clock: Clock,
        commands: Commands,
        metrics: Metrics = NOBODY,
    ) -> None:
        self._database = database
        self._intake = intake
        self._bindings = bindings
        self._rules = rules
        self._clock = clock
        self._commands = commands
        self._messages = metrics.counter(definitions.MESSAGES)
        for kind in ("message", "command"):
            self._messages.start(kind)
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
        *,
        commands: bool = True,
    ) -> Accepted:
        """Store a message as a run, idempotently per `request_id`; a command is done instead.

        Without `commands` every text is an ordinary message.

        `address` says who wrote on which channel, and where replies are pushed to; left out, they
        wait in the event log for whoever watches. A channel that leaves the session key empty gets
        the writer's own session, with the agent that the routes name. Raises what `SendMessage` is
        documented to fail with.
        """
        principal.require(Scope.SEND)
        if inbound.customer_key and not principal.may_see(inbound.customer_key):
            principal.require(Scope.ADMIN)  # it would act as another, and never see what came of it
        read = read_message(inbound.message) if commands else None

        async def take(routed: Routed, to: ReplyAddress) -> Accepted:
            known_as = principal.request_id(request_id)
            if read is None:
                accepted = await self._intake.enqueue(routed, known_as)
            else:
                accepted = await self._commands.say(routed, read, known_as, to, principal)
            return Accepted(session_key=routed.key.text, accepted=accepted)

        is_said = read is None
        with own_words():
            accepted = await self._in_session(
                inbound, request_id, principal, address, take, said=is_said
            )
        self._messages.add("message" if is_said else "command")
        return accepted

    async def _in_session(
        self,
        inbound: gw.InboundMessage,
        request_id: str,
        principal: Principal,
        address: ReplyAddress | None,
        take: Callable[[Routed, ReplyAddress], Awaitable[T]],
        *,
        said: bool,
    ) -> T:
        """Do something with a message in its session, which is there from then on.

        What is `said` is for whoever answers the session; commands are for the session itself.
        """
        check_request_id(request_id)
        sender = address or ReplyAddress(channel=DEFAULT_CHANNEL, peer=principal.name)
        key = choose_session(
            inbound, sender=sender, rules=self._rules, field_name="inbound.session_key"
        )
        to = address or ReplyAddress(channel=DEFAULT_CHANNEL, peer=key.peer)

        def routed(known: KnownSession | None) -> Routed:
            return route(
                inbound,
                request_id=request_id,
                key=key,
                known=known,
                rules=self._rules,
                address=to,
                caller_customer=principal.customer_key,
            )

        known = await self._known(key, principal, said=said)
        if known is not None:
            try:
                return await take(routed(known), to)
            except RequestIdReused:
                if not said:
                    raise
                # Perhaps it is the same message again, and another answered when it first came.
                return await take(routed(_otherwise_bound(known)), to)
        # Two first messages at once must agree on the agent and the customer.
        async with self._births.setdefault(key.text, asyncio.Lock()):
            known = await self._known(key, principal, said=said)
            if known is None:
                begins = principal.scope >= Scope.SEND
                if not begins or not may_begin(key, principal, self._rules.holders):
                    raise session_not_found(key.text)
                # Before the scheduler knows of the session, so that whoever sees its first event
                # finds its agent and customer here. Clients see it once the message was accepted.
                known = await self._create(routed(None))
            return await take(routed(known), to)

    async def execute(
        self, request: gw.ExecuteCommandRequest, principal: Principal
    ) -> gw.ExecuteCommandResponse:
        """Run a command beside the lanes. Raises what `ExecuteCommand` is documented to fail with.

        A session without messages yet is one too: it may be told how to take them.
        """
        principal.require(Scope.READ)
        if not 1 <= len(request.text) <= MAX_COMMAND:
            raise invalid_field("text", f"must be 1 to {MAX_COMMAND} characters")
        read = read_strictly(request.text)
        if isinstance(read, Problem):
            raise refusal(read.text)
        known_as = principal.request_id(request.request_id)
        if not request.session_key and not read.form.needs_session:
            check_request_id(request.request_id)
            with own_words():
                return await self._commands.execute(None, read, known_as, principal)
        text = content_pb2.ContentPart(text=request.text)
        inbound = gw.InboundMessage(
            session_key=request.session_key,
            message=content_pb2.Message(role=content_pb2.ROLE_USER, parts=[text]),
        )

        async def take(routed: Routed, _: ReplyAddress) -> gw.ExecuteCommandResponse:
            return await self._commands.execute(routed, read, known_as, principal)

        with own_words():
            return await self._in_session(
                inbound, request.request_id, principal, None, take, said=False
            )

    async def _known(
        self, key: SessionKey, principal: Principal, *, said: bool
    ) -> KnownSession | None:
        row = await self._database.run(lambda connection: store.find(connection, key.text))
        if row is None:
            return None
        if not principal.may_see(row.customer_key):
            raise session_not_found(row.session_key)
        if row.active_us is None:
            return None
        return await self._bindings.known(row) if said else row.known

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


def _otherwise_bound(known: KnownSession) -> KnownSession:
    """Return the session as it was before it was bound, or while it was."""
    return replace(known, bound=Bound("") if known.bound is None else None)
