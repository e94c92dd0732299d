"""Runs commands: finds the handler, remembers what was done, and delivers the answer."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from contextlib import AbstractContextManager
from weakref import WeakValueDictionary

import sqlalchemy as sa
from opentelemetry import trace

from conveyor.common.v1 import content_pb2
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from conveyor.scheduler.v1 import run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from gateway_svc import spans
from gateway_svc.auth import Principal
from gateway_svc.commands.acp_health import AcpHealth
from gateway_svc.commands.acp_sessions import AcpSessions
from gateway_svc.commands.answering import Answering
from gateway_svc.commands.approvals import Approvals
from gateway_svc.commands.asked import Asked, Handler, Refused, Services
from gateway_svc.commands.conversation import Conversation
from gateway_svc.commands.guide import Guide
from gateway_svc.commands.requests import Requests
from gateway_svc.commands.spawning import Spawning
from gateway_svc.commands.subagents import STEER_SECONDS, Subagents
from gateway_svc.commands.trees import Trees
from gateway_svc.domain.commands.grammar import FORMS
from gateway_svc.domain.commands.parsing import Command
from gateway_svc.domain.commands.problem import Problem
from gateway_svc.domain.deliveries import DeliveryKind
from gateway_svc.domain.reply_route import ReplyAddress
from gateway_svc.domain.routing import MAX_MESSAGE_ID, Routed
from gateway_svc.store import commands as store
from gateway_svc.store import outbox
from svckit import conventions as c
from svckit import tracecontext
from svckit.errors import InvalidField, RequestIdReused, ServiceError

_PASSING = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL"})
"""Codes of failures that the same request may survive: the sender repeats it."""


class Commands:
    """Does commands, beside the lanes. One per process.

    `pushed` are the channels that deliver to people: their senders read no answer of a call, so it
    goes through the outbox, and `filled` is called.
    """

    def __init__(
        self,
        services: Services,
        pushed: Container[str],
        filled: Callable[[], None],
        *,
        steer_seconds: float = STEER_SECONDS,
    ) -> None:
        self._do = services
        self._pushed = pushed
        self._filled = filled
        self._under_way: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        trees, answering = Trees(services), Answering(services)
        self._handlers: Mapping[str, Handler] = {
            **Conversation(services, trees, answering).handlers(),
            **Guide(services, trees, answering).handlers(),
            **Subagents(services, trees, steer_seconds=steer_seconds).handlers(),
            **Spawning(services).handlers(),
            **Requests(services, trees).handlers(),
            **Approvals(services).handlers(),
            **AcpSessions(services, trees, answering).handlers(),
            **AcpHealth(services).handlers(),
        }
        missing = {form.name for form in FORMS} - set(self._handlers)
        assert not missing, f"commands without a handler: {missing}"

    async def say(
        self,
        routed: Routed,
        read: Command | Problem,
        request_id: str,
        address: ReplyAddress,
        principal: Principal,
    ) -> ss.AcceptedRun:
        """Do what a chat message says that is a command, and answer in the place of a run.

        The run has no id; it has succeeded, and its result is the answer. What cannot be done is
        said in the same way; raised are only failures that the same message may survive.
        """
        with self._span(routed, read) as span:
            try:
                text = (await self._execute(routed, read, request_id, principal)).text
            except RequestIdReused:
                raise
            except ServiceError as error:
                # A coding agent that does not start will not do so because its sender repeats it.
                if error.grpc_code in _PASSING and not error.reason.startswith("ACP_"):
                    raise
                span.set_attribute(c.ERROR_TYPE, error.reason)
                text = _sentence(error)
            if address.channel in self._pushed:
                entry = self._delivery(address, request_id, text)
                await self._do.database.run(lambda connection: outbox.add(connection, entry))
                self._filled()
        reply = content_pb2.Message(
            message_id=f"re-{routed.message.message_id}"[:MAX_MESSAGE_ID],
            role=content_pb2.ROLE_AGENT,
            parts=[content_pb2.ContentPart(text=text)],
        )
        return ss.AcceptedRun(
            run=run_pb2.Run(
                state=run_pb2.RUN_STATE_SUCCEEDED,
                spec=run_pb2.RunSpec(session_key=routed.key.text, customer_key=routed.customer_key),
                result=run_pb2.RunResult(reply=reply),
            )
        )

    async def execute(
        self,
        routed: Routed | None,
        read: Command | Problem,
        request_id: str,
        principal: Principal,
    ) -> gw.ExecuteCommandResponse:
        """Do a command. `routed` is `None` for one that is about no conversation.

        Raises `InvalidField` for what cannot be done, `RequestIdReused`, and what the use cases
        raise. A command that changes something is done once per `request_id`.
        """
        with self._span(routed, read):
            return await self._execute(routed, read, request_id, principal)

    def _span(
        self, routed: Routed | None, read: Command | Problem
    ) -> AbstractContextManager[trace.Span]:
        name = "unknown" if isinstance(read, Problem) else read.name
        return spans.command(self._do.tracer, name, routed.key.text if routed else "")

    async def _execute(
        self, routed: Routed | None, read: Command | Problem, request_id: str, principal: Principal
    ) -> gw.ExecuteCommandResponse:
        if isinstance(read, Problem):
            raise refusal(read.text)
        handler = self._handlers[read.name]
        session_key = routed.key.text if routed else ""
        # Without a conversation the same words of two callers are about different things.
        whose = "" if principal.is_admin else principal.customer_key
        arguments = sorted(map(repr, read.arguments.items()))
        said = "\0".join([whose, session_key, read.name, *arguments])
        body_hash = hashlib.sha256(said.encode()).digest()
        now_us = self._do.clock.now_us()

        async def decide(resolve: Callable[[], Awaitable[Sequence[str]]]) -> Sequence[str]:
            known = await self._do.database.run(lambda db: store.find(db, request_id))
            if known is not None and known.meant is not None:
                return known.meant
            meant = await resolve()
            return await self._do.database.run(
                lambda db: store.decide(db, request_id, body_hash, meant, now_us)
            )

        asked = Asked(read, request_id, principal, routed, decide)
        if not read.form.changes or (read.form.sets and not read.get(read.form.sets)):
            return await _answered(handler, asked)
        async with self._under_way.setdefault(request_id, asyncio.Lock()):
            known = await self._do.database.run(lambda db: store.find(db, request_id))
            if known is not None and known.body_hash != body_hash:
                raise RequestIdReused(
                    "another command came with this request_id",
                    metadata={"requestId": request_id},
                )
            if known is not None and known.answer is not None:
                return gw.ExecuteCommandResponse.FromString(known.answer)
            answer = await _answered(handler, asked)
            kept = answer.SerializeToString()

            def finish(connection: sa.Connection) -> None:
                store.finish(connection, request_id, body_hash, kept, now_us)

            await self._do.database.run(finish)
            return answer

    def _delivery(self, address: ReplyAddress, request_id: str, text: str) -> outbox.NewEntry:
        # No event: the channel's own id of the message keeps a repeated one from being told twice.
        return outbox.NewEntry(
            recipient=address.recipient,
            event_key=f"command {request_id}",
            channel=address.channel,
            kind=DeliveryKind.REPLY,
            text=text,
            run_id="",
            create_us=self._do.clock.now_us(),
            trace=tracecontext.current().traceparent,
        )


def refusal(text: str) -> InvalidField:
    """Return the error of a command that cannot be done; its message is the line for people."""
    return InvalidField(text, metadata={"field": "text"}, field_violations=[("text", text)])


async def _answered(handler: Handler, asked: Asked) -> gw.ExecuteCommandResponse:
    try:
        answer = await handler(asked)
    except Refused as refused:
        raise refusal(str(refused)) from None
    response = gw.ExecuteCommandResponse(command=asked.command.name, text=answer.text)
    if answer.data is not None:
        response.data.Pack(answer.data)
    return response


def _sentence(error: ServiceError) -> str:
    """Return what a sender in a chat is told about a command that failed."""
    text = error.message
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "?", "`")) else ".")
