"""Takes spans and throws them away: `python -m bench.collector PORT [hang]`.

It stands for a collector on another machine, so it costs as little as can be: requests are counted
and not even read. With `hang` it answers nothing, ever.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc
import uvloop
from grpc import aio

SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"


async def _serve(port: int, hangs: bool) -> None:
    async def export(request: bytes, context: Any) -> bytes:
        if hangs:
            await asyncio.Event().wait()
        return b""

    server = aio.server()
    handler: Any = grpc.unary_unary_rpc_method_handler(export)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(SERVICE, {"Export": handler}),)
    )
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), "hang" in sys.argv[2:]))
