"""The web application, and uvicorn in the same process and loop as gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from fastapi import APIRouter, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from gateway_svc.auth import Door
from gateway_svc.http.guard import Guard
from gateway_svc.http.wire import error_response
from svckit.errors import Internal, ServiceError, StartError, invalid_field
from svckit.grpc.server import PortInUse

CONSOLE = Path(__file__).parent.parent / "console"
STOP_SECONDS = 3
_BACKLOG = 512


def build_web(routers: list[APIRouter], allowed_origins: tuple[str, ...], door: Door) -> ASGIApp:
    """Return the application: the routes behind the door, then the console's files."""
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
    web.add_exception_handler(ServiceError, _on_service_error)
    web.add_exception_handler(HTTPException, _on_http_exception)
    web.add_exception_handler(Exception, _on_unexpected)
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


async def _on_service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return error_response(error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return error_response(invalid_field("path", "names nothing here"), 404)
    if error.status_code == 405:
        return error_response(invalid_field("method", "is not for this path"), 405)
    return error_response(invalid_field("request", "cannot be answered"), error.status_code)


async def _on_unexpected(request: Request, error: Exception) -> Response:
    """Answer for what nobody foresaw; the layer around us gets the error too, and logs it."""
    return error_response(Internal("internal error"))


class WebServer:
    """Listens from its construction, serves in `run`, ends its streams and stops in `stop`."""

    def __init__(
        self, app: ASGIApp, bound: socket.socket, tls: ssl.SSLContext | None = None
    ) -> None:
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # it has no news for us
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            proxy_headers=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
        if tls is not None:
            config.ssl_context_factory = lambda *_: tls
        self._server = _Server(config)
        self._socket = bound
        self._done = asyncio.Event()

    async def run(self) -> None:
        """Serve until `stop`."""
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            self._done.set()

    async def stop(self) -> None:
        """Let requests finish, then stop. Streams must have been told to end."""
        self._server.should_exit = True
        await self._done.wait()


class _Server(uvicorn.Server):
    """uvicorn without signal handlers: the process has its own, for both servers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind_http(address: str) -> socket.socket:
    """Bind `host:port` (port 0 for a free one); raises `PortInUse` or `StartError`."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, int(port)))
        bound.listen(_BACKLOG)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(address) from error
        raise StartError(f"cannot listen on {address}: {error.strerror}") from error
    bound.setblocking(False)
    return bound


def address_of(bound: socket.socket) -> str:
    """Return `host:port` of a bound socket."""
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
