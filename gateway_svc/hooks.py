"""Signed calls from outside: each starts or steers what its hook says, once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from opentelemetry import trace

from conveyor.acp.v1 import session_pb2 as acp_session
from conveyor.common.v1 import content_pb2
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from conveyor.scheduler.v1 import lane_pb2
from gateway_svc import spans
from gateway_svc.auth import Principal
from gateway_svc.domain.hooks import CHANNEL, Hook, filled
from gateway_svc.domain.reply_route import ReplyAddress
from gateway_svc.domain.routing import MAX_LABEL_LENGTH, RoutingRules, agent_by_route
from gateway_svc.domain.signatures import verified
from gateway_svc.harness_sessions import HarnessSessions
from gateway_svc.inbox import Inbox
from gateway_svc.operations import Operations
from gateway_svc.store import hook_calls as store
from svckit import conventions as c
from svckit.clock import Clock
from svckit.database import Database
from svckit.errors import RequestIdReused, Unauthenticated, invalid_field
from svckit.logging import get_logger

_SECONDS_US = 1_000_000

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Call:
    """A call as it came. `headers` has names in small letters."""

    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class HookServices:
    """What hooks work with. `count` counts a call of a caller, or raises `RateLimited`."""

    inbox: Inbox
    operations: Operations
    harness_sessions: HarnessSessions
    database: Database
    rules: RoutingRules
    clock: Clock
    count: Callable[[Principal], None]
    tracer: trace.Tracer


class Hooks:
    """Takes calls of hooks. One per process."""

    def __init__(self, hooks: Mapping[str, Hook], services: HookServices) -> None:
        self._hooks = hooks
        self._do = services

    async def take(
        self, name: str, call: Call, read: Callable[[bytes], dict[str, Any]]
    ) -> tuple[dict[str, Any], bool]:
        """Do what a hook does with a call; say which run came of it, False when it does nothing.

        `read` reads the body, once it is known who sent it. Raises `Unauthenticated` without a word
        on the reason, `InvalidField` for a body that the hook cannot use, `RequestIdReused`, and
        what the call with the same effect raises.
        """
        hook = self._hooks.get(name)
        call_id = verified(
            hook.scheme if hook else "standard",
            hook.keys if hook else (),
            call.headers,
            call.body,
            now=self._do.clock.now_us() / _SECONDS_US,
            tolerance=hook.tolerance if hook else 0,
        )
        if hook is None or call_id is None:
            # The same for a hook that is not there: who may not call need not know which there are.
            log.warning("call of a hook refused", hook=name[:64] if hook else "unknown")
            raise Unauthenticated("this call is not signed as it must be")
        self._do.count(hook.principal)
        with spans.hook(self._do.tracer, hook.name) as span:
            answer, did = await self._called(hook, call, call_id, read)
            span.set_attribute(c.HOOK_ACTION, hook.action if did else "ignored")
            span.set_attribute(c.DEDUPLICATED, "deduplicated" in answer)
            return answer, did

    async def _called(
        self, hook: Hook, call: Call, call_id: str, read: Callable[[bytes], dict[str, Any]]
    ) -> tuple[dict[str, Any], bool]:
        named = f"{hook.name}\0{call_id}".encode()
        digest = hashlib.blake2b(named, digest_size=32).hexdigest()
        body_hash = hashlib.sha256(call.body).digest()
        known = await self._do.database.run(lambda db: store.find(db, hook.name, digest))
        if known is not None:
            if known.body_hash != body_hash:
                raise RequestIdReused(
                    "another call came with this webhook-id", metadata={"requestId": call_id}
                )
            answer: dict[str, Any] = json.loads(known.answer)
            return answer | {"deduplicated": True}, "ignored" not in answer
        values = read(call.body) | {
            "@id": call_id,
            "@hook": hook.name,
            "@event": call.headers.get("x-github-event", ""),
        }
        if hook.wants(values):
            answer = await self._do_it(hook, values, f"hook-{digest[:32]}")
            log.info("hook called", hook=hook.name, action=hook.action, run_id=answer["run_id"])
        else:
            answer = {"ignored": True}
        done = store.DoneCall(body_hash, json.dumps(answer))
        now_us = self._do.clock.now_us()
        await self._do.database.run(lambda db: store.keep(db, hook.name, digest, done, now_us))
        return answer, "ignored" not in answer

    async def _do_it(
        self, hook: Hook, values: Mapping[str, Any], request_id: str
    ) -> dict[str, Any]:
        text = filled(hook.text, values)
        if not text.strip():
            raise invalid_field("body", "leaves the message of this hook empty")
        message = content_pb2.Message(
            role=content_pb2.ROLE_USER, parts=[content_pb2.ContentPart(text=text)]
        )
        match hook.action:
            case "message":
                return await self._message(hook, values, message, request_id)
            case "spawn":
                return await self._spawn(hook, values, message, request_id)
            case "steer":
                return await self._steer(hook, values, message, request_id)

    async def _message(
        self,
        hook: Hook,
        values: Mapping[str, Any],
        message: content_pb2.Message,
        request_id: str,
    ) -> dict[str, Any]:
        agent_id = agent_by_route(ReplyAddress(CHANNEL, hook.name), self._do.rules)
        key = filled(hook.session_key, values, is_key=True) or hook.own_session(agent_id)
        inbound = gw.InboundMessage(
            session_key=key,
            agent_id=hook.agent_id,
            message=message,
            queue_mode=hook.queue_mode,
            labels={"hook": hook.name[:MAX_LABEL_LENGTH]},
        )
        taken = await self._do.inbox.accept(inbound, request_id, hook.principal, commands=False)
        return {"run_id": taken.accepted.run.run_id, "session_key": taken.session_key}

    async def _spawn(
        self,
        hook: Hook,
        values: Mapping[str, Any],
        message: content_pb2.Message,
        request_id: str,
    ) -> dict[str, Any]:
        request = gw.SpawnAcpSessionRequest(
            spec=acp_session.AcpSessionSpec(
                harness_id=hook.harness_id,
                cwd=hook.cwd,
                permission_mode=hook.permission_mode,
                label=filled(hook.label, values)[:64],
            ),
            bind_session_key=filled(hook.session_key, values, is_key=True),
            request_id=request_id,
            return_starting=True,
            message=message,
        )
        spawned = await self._do.harness_sessions.spawn(request, hook.principal)
        return {
            "run_id": spawned.accepted.run.run_id,
            "session_key": spawned.session.spec.session_key,
            "acp_session_id": spawned.session.acp_session_id,
        }

    async def _steer(
        self,
        hook: Hook,
        values: Mapping[str, Any],
        message: content_pb2.Message,
        request_id: str,
    ) -> dict[str, Any]:
        if hook.run_id is not None:
            steer = gw.SteerRunRequest(
                run_id=filled(hook.run_id, values), message=message, request_id=request_id
            )
            run = (await self._do.operations.steer_run(steer, hook.principal)).run
            return {"run_id": run.run_id, "session_key": run.spec.session_key}
        prompt = gw.PromptAcpSessionRequest(
            acp_session_id=filled(hook.acp_session_id, values),
            message=message,
            queue_mode=lane_pb2.QUEUE_MODE_STEER,
            request_id=request_id,
        )
        prompted = await self._do.harness_sessions.prompt(prompt, hook.principal)
        return {
            "run_id": prompted.accepted.run.run_id,
            "session_key": prompted.accepted.run.spec.session_key,
            "acp_session_id": prompt.acp_session_id,
        }
