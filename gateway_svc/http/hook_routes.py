"""`POST /hooks/{name}`: the path of signed calls."""

from __future__ import annotations

import json

from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway_svc.domain.routing import too_large
from gateway_svc.hooks import Call, Hooks
from gateway_svc.http.wire import parse_json

MAX_BYTES = 1024 * 1024


def add_hook_routes(router: APIRouter, hooks: Hooks) -> None:
    """Add the route over the use case."""

    @router.post("/hooks/{name}")
    async def receive_hook(name: str, request: Request) -> Response:
        body = await request.body()
        if len(body) > MAX_BYTES:
            raise too_large("body", len(body), MAX_BYTES)
        call = Call({key.lower(): value for key, value in request.headers.items()}, body)
        answer, does = await hooks.take(name, call, parse_json)
        return Response(json.dumps(answer), 202 if does else 200, media_type="application/json")
