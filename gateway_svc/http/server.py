"""The web application: the routes behind the door, and the console's files."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from gateway_svc.auth import Door
from gateway_svc.http.guard import Guard
from gateway_svc.http.wire import error_response
from svckit.errors import Internal, ServiceError, invalid_field

CONSOLE = Path(__file__).parent.parent / "console"


def build_web(
    routers: list[APIRouter],
    allowed_origins: tuple[str, ...],
    door: Door,
    trace_url_template: str = "",
) -> ASGIApp:
    """Return the application: the routes behind the door, then the console's files."""
    answers = _Errors(trace_url_template)
    # Generated pages would load scripts of other sites; the contract is in protos. Spans are made
    # by `Edge`: those of FastAPI hold whole paths and queries, and are in traces of their own.
    web = FastAPI(
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    for router in routers:
        web.include_router(router)
    web.mount("/", _Files(directory=CONSOLE, html=True))
    web.add_exception_handler(ServiceError, answers.on_service_error)
    web.add_exception_handler(HTTPException, answers.on_http_exception)
    web.add_exception_handler(Exception, answers.on_unexpected)
    guarded = Guard(web, door)
    if not allowed_origins:
        return guarded
    return CORSMiddleware(
        guarded,
        allow_origins=list(allowed_origins),
        allow_methods=["GET", "POST", "PATCH", "DELETE"],
        allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID"],
    )


class _Files(StaticFiles):
    """The console. Small files that change with each release: always asked for again."""

    def file_response(self, *args: object, **kwargs: object) -> Response:
        response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        response.headers["Cache-Control"] = "no-cache"
        return response


class _Errors:
    """Answers what the routes raise.

    Whoever got to a route below `/v1/` was let in, and may know where traces are shown.
    """

    def __init__(self, trace_url_template: str) -> None:
        self._template = trace_url_template

    async def on_service_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, ServiceError)
        return self._answer(request, error)

    async def on_http_exception(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == 404:
            return self._answer(request, invalid_field("path", "names nothing here"), 404)
        if error.status_code == 405:
            return self._answer(request, invalid_field("method", "is not for this path"), 405)
        problem = invalid_field("request", "cannot be answered")
        return self._answer(request, problem, error.status_code)

    async def on_unexpected(self, request: Request, error: Exception) -> Response:
        """Answer for what nobody foresaw; the layer around us gets the error too, and logs it."""
        return self._answer(request, Internal("internal error"))

    def _answer(self, request: Request, error: ServiceError, status: int | None = None) -> Response:
        known = request.url.path.startswith("/v1/")
        return error_response(error, status, self._template if known else "")
