"""The baseline: a grpc.aio server that answers what it gets, as a process of its own.

`python -m bench.echo ADDRESS [--svckit]`; with `--svckit` the server has our interceptors.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc import aio
from opentelemetry import trace

from bench.processes import PYTHON, process
from conveyor_client.supervision.addresses import free_addresses
from svckit.grpc.boundary import ServerBoundary
from svckit.grpc.channel import make_channel
from svckit.grpc.server import make_server

METHOD = "/bench.Echo/Echo"

Call = aio.UnaryUnaryMultiCallable[bytes, bytes]


@asynccontextmanager
async def called(*, ours: bool = False) -> AsyncIterator[Call]:
    """An echo process, and the call to it; `ours` with our interceptors on both sides."""
    address = free_addresses(1)[0]
    async with (
        process(*PYTHON, "bench.echo", address, *(["--svckit"] if ours else [])),
        make_channel(address) if ours else aio.insecure_channel(address) as channel,
    ):
        call: Call = channel.unary_unary(METHOD)
        await call(b"", timeout=10, wait_for_ready=True)
        yield call


async def _echo(request: bytes, context: object) -> bytes:
    return request


async def _serve(address: str, *, ours: bool) -> None:
    if ours:
        server = make_server(boundary=ServerBoundary(trace.get_tracer("conveyor")))
    else:
        server = aio.server()
    handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(_echo)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("bench.Echo", {"Echo": handler}),)
    )
    server.add_insecure_port(address)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("--svckit", action="store_true")
    arguments = parser.parse_args()
    asyncio.run(_serve(arguments.address, ours=arguments.svckit))
