"""Servers: options, the boundary, and binding with clear errors."""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import grpc
from grpc import aio
from opentelemetry import trace

from svckit.errors import StartError
from svckit.grpc.boundary import ServerBoundary
from svckit.grpc.channel import KEEPALIVE_MS


class PortInUse(StartError):
    """Another process listens on the address."""

    def __init__(self, address: str) -> None:
        super().__init__(
            f"cannot listen on {address}: another process uses that port; "
            "stop it, or choose another address in the configuration"
        )
        self.address = address


def make_server(
    *,
    boundary: ServerBoundary | None = None,
    tracer: trace.Tracer | None = None,
    interceptors: Sequence[aio.ServerInterceptor] = (),
) -> aio.Server:
    """Build a server whose handlers run inside the boundary. Needs a running event loop.

    `interceptors` run inside it, so they may raise `ServiceError` too. `boundary`: only needed by
    whoever wants to wait for its handlers.
    """
    boundary = boundary or ServerBoundary(tracer or trace.get_tracer("conveyor"))
    server = aio.server(
        interceptors=[boundary, *interceptors],
        options=[
            # Without this, Linux lets two processes share one port without an error.
            ("grpc.so_reuseport", 0),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
        ],
    )
    # For every call, grpc.aio waits anew for all registered methods, each with a future of its own.
    # The generic handlers, which generated code adds as well, are found by one look-up.
    server.add_registered_method_handlers = _not_registered  # type: ignore[method-assign]
    return server


def _not_registered(service_name: str, method_handlers: Mapping[str, Any]) -> None:
    """Takes the place of `aio.Server.add_registered_method_handlers`."""


def bind(
    server: aio.Server, address: str, credentials: grpc.ServerCredentials | None = None
) -> int:
    """Listen on `address` and return the port (1 for `unix:` addresses).

    Raises `PortInUse`, or `StartError` when the address is not one of this machine.
    """
    probe(address)
    try:
        if credentials is not None:
            return int(server.add_secure_port(address, credentials))
        return int(server.add_insecure_port(address))
    except RuntimeError as err:
        raise PortInUse(address) from err


def probe(address: str) -> None:
    """Raise as `bind` would. gRPC itself tells only standard error why binding failed."""
    if address.startswith("unix:"):
        return
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as err:
        raise StartError(f"cannot listen on {address}: {err.strerror}") from err
    family, kind, proto, _name, target = found[0]
    with socket.socket(family, kind, proto) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            _listen(tried, target)
        except OSError as err:
            if err.errno == errno.EADDRINUSE:
                raise PortInUse(address) from err
            raise StartError(f"cannot listen on {address}: {err.strerror}") from err


def _listen(tried: socket.socket, target: Any) -> None:
    tried.bind(target)
    # Only listening finds a socket that another process bound with the same reuse flag.
    tried.listen(1)
