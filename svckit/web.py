"""uvicorn in the same process and on the same loop as gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import uvicorn

from svckit.errors import StartError
from svckit.grpc.server import PortInUse

STOP_SECONDS = 3
_BACKLOG = 512


class WebServer:
    """Listens from its construction, serves in `run`, ends its streams and stops in `stop`."""

    def __init__(self, app: Any, bound: socket.socket, tls: ssl.SSLContext | None = None) -> None:
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
        self.address = address_of(bound)
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
