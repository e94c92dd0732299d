"""Starts Phoenix, in its own environment, with everything it listens on at loopback.

By itself it takes spans at all addresses of the machine, whatever `PHOENIX_HOST` says.
"""

from __future__ import annotations

from typing import Any

from grpc import aio
from phoenix.server.main import main

_server = aio.server


def _on_loopback(*given: Any, **named: Any) -> aio.Server:
    server = _server(*given, **named)
    bind = server.add_insecure_port
    server.add_insecure_port = lambda address: bind(  # type: ignore[method-assign]
        address.replace("[::]", "127.0.0.1")
    )
    return server


aio.server = _on_loopback
main()
