"""The HTTP door: a request gets its caller before its route runs.

Inside the CORS layer, so that a page of an allowed site can read the refusal; its preflights
are answered there, since browsers send those without credentials.
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Send
from starlette.types import Scope as AsgiScope

from gateway_svc.auth import Door, acting
from gateway_svc.http.wire import error_response
from svckit.errors import ServiceError


class Guard:
    """An ASGI application around the routes.

    Files of the console, `/healthz` and `/readyz` are for everybody; `/hooks/` and `/channels/`
    check the signatures of those who call them. Every other route asks for its caller, so that one
    that is forgotten here fails instead of answering.
    """

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        path: str = scope["path"]
        if not path.startswith(("/v1/", "/metrics")):
            await self._app(scope, receive, send)
            return
        try:
            principal = self._door.admit(Headers(scope=scope).getlist("authorization"))
        except ServiceError as error:
            await error_response(error)(scope, receive, send)
            return
        with acting(principal):
            await self._app(scope, receive, send)
