"""pytest-grpc over our servers: its channel and stubs, against a `grpc.aio` server of ours.

A module that wants them defines `grpc_add_to_server`, `grpc_servicer` and `grpc_stub_cls`, all of
module scope, and then takes `grpc_stub` (a synchronous stub) or `grpc_channel`. The server runs in
a loop of its own in another thread, since the plugin's fixtures are synchronous.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from grpc import aio

from svckit.grpc.server import bind, make_server


@pytest.fixture(scope="module")
def aio_loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="aio-server", daemon=True)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
    loop.close()


@pytest.fixture(scope="module")
def grpc_addr() -> str:
    """Any free port; the real one is known once `grpc_server` is bound."""
    return "127.0.0.1:0"


@pytest.fixture(scope="module")
def grpc_interceptors() -> list[aio.ServerInterceptor]:
    """Interceptors inside the boundary; override to add some."""
    return []


@pytest.fixture(scope="module")
def grpc_server(
    aio_loop: asyncio.AbstractEventLoop,
    grpc_addr: str,
    grpc_add_to_server: Callable[[Any, aio.Server], None],
    grpc_servicer: Any,
    grpc_interceptors: list[aio.ServerInterceptor],
) -> Iterator[str]:
    """A real server with the boundary; yields the address it listens on."""

    async def start() -> tuple[aio.Server, str]:
        server = make_server(interceptors=grpc_interceptors)
        grpc_add_to_server(grpc_servicer, server)
        port = bind(server, grpc_addr)
        await server.start()
        return server, f"{grpc_addr.rpartition(':')[0]}:{port}"

    server, address = asyncio.run_coroutine_threadsafe(start(), aio_loop).result(10)
    yield address
    asyncio.run_coroutine_threadsafe(server.stop(0.2), aio_loop).result(10)


@pytest.fixture(scope="module")
def grpc_create_channel(grpc_server: str) -> Callable[..., Any]:
    """The plugin's own, but for the address: ours is known only after binding."""
    import grpc

    def create(credentials: Any = None, options: Any = None) -> grpc.Channel:
        if credentials is not None:
            return grpc.secure_channel(grpc_server, credentials, options)
        return grpc.insecure_channel(grpc_server, options)

    return create
