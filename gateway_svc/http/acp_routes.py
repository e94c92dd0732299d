"""The paths of ACP sessions, each translated to a use case."""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import APIRouter, Request
from google.protobuf.message import Message
from starlette.responses import Response

from conveyor.acp.v1 import session_pb2 as acp_session
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from gateway_svc.auth import caller
from gateway_svc.harness_sessions import HarnessSessions
from gateway_svc.http.bodies import (
    IDEMPOTENCY_KEY,
    expand_text,
    from_query,
    plain,
    request_id_of,
    shorten_enums,
)
from gateway_svc.http.wire import parse_json, respond, to_message
from svckit.errors import invalid_field

M = TypeVar("M", bound=Message)


def add_acp_routes(router: APIRouter, sessions: HarnessSessions) -> None:
    """Add the routes over the use cases."""

    @router.get("/v1/acp/sessions")
    async def list_acp_sessions(request: Request) -> Response:
        asked = from_query(request.query_params.multi_items(), gw.ListAcpSessionsRequest())
        return respond(await sessions.list(asked, caller()))

    @router.post("/v1/acp/sessions")
    async def spawn_acp_session(request: Request) -> Response:
        body = parse_json(await request.body())
        asked = spawn_request(request.headers.get(IDEMPOTENCY_KEY), body)
        spawned = await sessions.spawn(asked, caller())
        return respond(spawned, 202 if asked.return_starting else 201)

    @router.get("/v1/acp/sessions/{acp_session_id}")
    async def get_acp_session(acp_session_id: str) -> Response:
        asked = gw.GetAcpSessionRequest(acp_session_id=plain(acp_session_id))
        return respond(await sessions.get(asked, caller()))

    @router.post("/v1/acp/sessions/{acp_session_id}/prompt")
    async def prompt_acp_session(acp_session_id: str, request: Request) -> Response:
        body = parse_json(await request.body())
        asked = prompt_request(plain(acp_session_id), request.headers.get(IDEMPOTENCY_KEY), body)
        return respond(await sessions.prompt(asked, caller()), 202)

    @router.post("/v1/acp/sessions/{acp_session_id}/cancel")
    async def cancel_acp_turn(acp_session_id: str, request: Request) -> Response:
        asked = to_message(parse_json(await request.body()), gw.CancelAcpTurnRequest())
        asked.acp_session_id = _same(asked.acp_session_id, acp_session_id)
        return respond(await sessions.cancel(asked, caller()))

    @router.delete("/v1/acp/sessions/{acp_session_id}")
    async def close_acp_session(acp_session_id: str) -> Response:
        asked = gw.CloseAcpSessionRequest(acp_session_id=plain(acp_session_id))
        return respond(await sessions.close(asked, caller()))

    @router.patch("/v1/acp/sessions/{acp_session_id}")
    async def configure_acp_session(acp_session_id: str, request: Request) -> Response:
        asked = configure_request(plain(acp_session_id), parse_json(await request.body()))
        return respond(await sessions.configure(asked, caller()))


def spawn_request(header: str | None, body: dict[str, Any]) -> gw.SpawnAcpSessionRequest:
    """Read the body of a spawn: the fields of its `spec` may stand beside the others."""
    request_id = request_id_of(header, body)
    spec = _taken(body, "spec", acp_session.AcpSessionSpec())
    expand_text(body)
    request = to_message(body, gw.SpawnAcpSessionRequest())
    request.spec.CopyFrom(spec)
    request.request_id = request_id
    return request


def prompt_request(
    acp_session_id: str, header: str | None, body: dict[str, Any]
) -> gw.PromptAcpSessionRequest:
    """Read the body of a prompt: `{"text": …}` or `{"message": …}`."""
    request_id = request_id_of(header, body)
    expand_text(body)
    shorten_enums(body, gw.PromptAcpSessionRequest)
    request = to_message(body, gw.PromptAcpSessionRequest())
    request.acp_session_id = _same(request.acp_session_id, acp_session_id)
    request.request_id = request_id
    return request


def configure_request(acp_session_id: str, body: dict[str, Any]) -> gw.ConfigureAcpSessionRequest:
    """Read the body of a change: the settings, or `{"settings": …}`."""
    settings = _taken(body, "settings", acp_session.AcpSessionSettings())
    request = to_message(body, gw.ConfigureAcpSessionRequest())
    request.settings.CopyFrom(settings)
    request.acp_session_id = _same(request.acp_session_id, acp_session_id)
    return request


def _taken(body: dict[str, Any], inner: str, message: M) -> M:
    """Take an inner message out of a body, and those of its fields that stand beside it."""
    content = body.pop(inner, {})
    if not isinstance(content, dict):
        raise invalid_field(inner, "must be an object")
    content = dict(content)
    for name in message.DESCRIPTOR.fields_by_name:
        if name not in body:
            continue
        if name in content:
            raise invalid_field(name, f"stands beside `{inner}`, which has it too")
        content[name] = body.pop(name)
    shorten_enums(content, type(message))
    return to_message(content, message, f"{inner}.")


def _same(in_body: str, in_path: str) -> str:
    if in_body not in ("", plain(in_path)):
        raise invalid_field("acp_session_id", "differs from the session in the path")
    return plain(in_path)
