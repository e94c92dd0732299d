"""Typed client of a Conveyor suite, and the `conveyor` command.

    from conveyor_client import ConveyorClient

    async with ConveyorClient("127.0.0.1:50050") as client:
        async for item in client.chat("Do three things: research, compare, summarise"):
            ...

Everything comes and goes as the messages of `conveyor.gateway.v1` and the packages it uses. Errors
are the exceptions of `svckit.errors`, one class per reason.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conveyor_client.client import ConveyorClient
    from conveyor_client.connection import Patience
    from conveyor_client.credentials import Tls
    from svckit.errors import ServiceError, Unreachable

__all__ = ["ConveyorClient", "Patience", "ServiceError", "Tls", "Unreachable"]

_HOMES = {
    "ConveyorClient": "conveyor_client.client",
    "Patience": "conveyor_client.connection",
    "ServiceError": "svckit.errors",
    "Tls": "conveyor_client.credentials",
    "Unreachable": "svckit.errors",
}


def __getattr__(name: str) -> object:
    # Lazy: the command line imports this package too, and most verbs need no gRPC to start.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
