"""The outermost layer of HTTP: foreign pages out, sizes bounded, errors typed, requests counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from opentelemetry import trace
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway_svc.domain.origin import OriginRules
from gateway_svc.domain.routing import too_large
from gateway_svc.http.wire import error_response
from svckit import conventions as c
from svckit import tracecontext
from svckit.errors import ForeignOrigin, Internal, ServiceError, ShuttingDown
from svckit.logging import get_logger
from svckit.metrics import Metrics, definitions
from svckit.spanning import step

MAX_BODY_BYTES = 2 * 1024 * 1024

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SECURITY_HEADERS = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}

log = get_logger(__name__)


class Edge:
    """An ASGI application around the routes."""

    def __init__(
        self,
        app: ASGIApp,
        rules: OriginRules,
        metrics: Metrics,
        tracer: trace.Tracer,
        is_draining: Callable[[], bool],
        knows: Callable[[Sequence[str]], bool],
        max_body: int = MAX_BODY_BYTES,
    ) -> None:
        self._app = app
        self._rules = rules
        self._requests = metrics.counter(definitions.HTTP_REQUESTS)
        self._seconds = metrics.histogram(definitions.HTTP_SECONDS)
        self._tracer = tracer
        self._is_draining = is_draining
        self._knows = knows
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        scope = dict(scope)
        if scope["path"].startswith("/v1/"):
            # Session keys may hold slashes: routes match the path as sent, and decode afterwards.
            scope["path"] = scope["raw_path"].decode("ascii", "replace")
        answer = _Answer(send)
        begun = time.monotonic()
        try:
            await self._serve(scope, receive, answer)
        finally:
            route = _route(scope)
            self._requests.add(_method(scope), route, str(answer.status))
            self._seconds.observe((answer.started or time.monotonic()) - begun, route)

    async def _serve(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        headers = Headers(scope=scope)
        problem = self._refusal(headers, scope["path"])
        if problem is not None:
            await error_response(problem)(scope, receive, answer)
            return
        limited = _LimitedBody(receive, self._max_body)
        if not self._is_traced(scope):
            await self._answer(scope, limited, answer)
            return
        # Without baggage, which is not for clients to fill.
        said = {name: headers.get(name, "") for name in ("traceparent", "tracestate")}
        within, links = tracecontext.caller_of(said), list[trace.Link]()
        if said["traceparent"] and not self._knows(headers.getlist("authorization")):
            within, links = tracecontext.stranger_of(said)
        with step(
            self._tracer,
            _method(scope),
            {c.HTTP_REQUEST_METHOD: _method(scope), c.URL_SCHEME: scope.get("scheme", "http")},
            kind=trace.SpanKind.SERVER,
            within=within,
            links=links,
        ) as span:
            await self._answer(scope, limited, answer)
            route = _route(scope)
            span.update_name(f"{_method(scope)} {route}")
            span.set_attribute(c.HTTP_ROUTE, route)
            span.set_attribute(c.HTTP_STATUS_CODE, answer.status)
            if answer.status >= 500:
                span.set_attribute(c.ERROR_TYPE, str(answer.status))
                span.set_status(trace.StatusCode.ERROR)

    async def _answer(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        try:
            await self._app(scope, receive, answer)
        except Exception as error:
            if not isinstance(error, ServiceError):
                log.error("request failed", route=_route(scope), exc_info=error)
            if answer.complete:
                return  # the application has answered, and told us of it besides
            if answer.started is not None:
                log.error("answer broke off", problem=type(error).__name__)
                return
            problem = error if isinstance(error, ServiceError) else Internal("internal error")
            await error_response(problem)(scope, receive, answer)

    def _refusal(self, headers: Headers, path: str) -> ServiceError | None:
        host, origin = headers.get("host"), headers.get("origin")
        if not self._rules.allows_host(host):
            return _foreign("Host")
        if not self._rules.allows_origin(origin, host):
            return _foreign("Origin")
        # Links to the console may stand anywhere; what does something is for our own pages.
        site = headers.get("sec-fetch-site")
        if path.startswith("/v1/") and not self._rules.allows_site(site, origin):
            return _foreign("Sec-Fetch-Site")
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._max_body:
            return too_large("body", int(length), self._max_body)
        if path.startswith(("/v1/", "/hooks/")) and self._is_draining():
            return ShuttingDown("the gateway is shutting down; try again in a moment")
        return None

    @staticmethod
    def _is_traced(scope: Scope) -> bool:
        path: str = scope["path"]
        # A watch lasts as long as somebody looks, and the other paths are probes and files.
        return path.startswith(("/v1/", "/hooks/")) and not path.endswith("/events")


class _Answer:
    """Passes an answer on, with our headers, and remembers its status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        self.started: float | None = None
        self.complete = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.started = time.monotonic()
            headers = MutableHeaders(scope=message)
            for name, value in _SECURITY_HEADERS.items():
                headers[name] = value
            if "cache-control" not in headers:
                headers["Cache-Control"] = "no-store"
        elif not message.get("more_body", False):
            self.complete = True
        await self._send(message)


class _LimitedBody:
    """Refuses a body that grows past the limit without having said so."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._seen = 0

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._seen += len(message.get("body", b""))
            if self._seen > self._limit:
                raise too_large("body", self._seen, self._limit)
        return message


def _foreign(header: str) -> ForeignOrigin:
    return ForeignOrigin(
        f"the {header} header names another site; add it to gateway.allowed_origins if it is yours",
        metadata={"header": header},
    )


def _route(scope: Scope) -> str:
    return getattr(scope.get("route"), "path", "") or "other"


def _method(scope: Scope) -> str:
    method: str = scope["method"]
    # Whatever a client invents must not become a time series.
    return method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") else "?"
