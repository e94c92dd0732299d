"""The baseline: a grpc.aio server that answers what it gets, as a process of its own.

`python -m bench.echo ADDRESS [--svckit]`; with `--svckit` the server has our interceptors.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import grpc
from grpc import aio
from opentelemetry import trace

from svckit.grpc.boundary import ServerBoundary
from svckit.grpc.server import make_server

METHOD = "/bench.Echo/Echo"


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
