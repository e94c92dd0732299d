"""Which processes make up the suite, and whether their addresses are free."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from svckit.settings import Settings


@dataclass(frozen=True, slots=True)
class Service:
    """One process of the suite."""

    name: str
    """For people, for example `scheduler`."""
    argv: Sequence[str]
    grpc_address: str
    """Where it answers health checks, `host:port`."""
    other_addresses: Sequence[str] = ()
    """What else it listens on, `host:port`."""
    stops_last: bool = False
    """True for what the others still need while they hand back their work."""
    env: Mapping[str, str | None] = field(default_factory=dict)
    """Changes to our own environment; None removes a variable."""


class AddressUnusable(Exception):
    """A service of the suite could not listen where it should. The text says which, where, why."""


def suite(settings: Settings, config: Path | None) -> list[Service]:
    """Return the four services as `settings`, read from `config`, describe them."""
    # With our own id, so that a child whose parent ended before it looked knows it too.
    options = ["--exit-with-parent", str(os.getpid())]
    if config is not None:
        options = ["--config", str(config), *options]

    def argv(module: str) -> list[str]:
        return [sys.executable, "-m", module, *options]

    services, gateway = settings.services, settings.gateway
    return [
        Service("scheduler", argv("scheduler_svc"), services.scheduler, stops_last=True),
        Service("agent", argv("agent_svc"), services.agent),
        Service("acp", argv("acp_svc"), services.acp),
        Service("gateway", argv("gateway_svc"), gateway.grpc, other_addresses=(gateway.http,)),
    ]


def dial_address(address: str) -> str:
    """Return where to reach what listens on `address`: a wildcard is reached over loopback."""
    host, _, port = address.rpartition(":")
    if host in ("", "0.0.0.0"):  # noqa: S104  (compared, not bound)
        return f"127.0.0.1:{port}"
    return f"[::1]:{port}" if host in ("[::]", "::") else address


def check_addresses_free(services: Sequence[Service]) -> None:
    """Raise `AddressUnusable` when a service could not listen.

    Asked before anything starts: a stranger on a port might answer our health checks, and four
    processes would start only to be stopped again.
    """
    seen: dict[str, str] = {}
    for service in services:
        for address in (service.grpc_address, *service.other_addresses):
            if address.endswith(":0"):
                raise AddressUnusable(
                    f"{service.name} is to listen on {address}; give it a fixed port, so that the "
                    "others find it"
                )
            if address in seen:
                raise AddressUnusable(
                    f"{service.name} and {seen[address]} are both configured to listen on {address}"
                )
            seen[address] = service.name
            problem = cannot_listen(address)
            if problem is not None:
                raise AddressUnusable(f"{service.name} cannot listen on {address}: {problem}")


def cannot_listen(address: str) -> str | None:
    """Return why nothing can listen on `address`, or None when it is free."""
    if address.startswith("unix:"):
        return None
    try:
        family, kind, protocol, target = _resolve(address)
        with closing(socket.socket(family, kind, protocol)) as probe:
            # As the servers do: addresses in TIME_WAIT after a restart are no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
            # Only listening finds a socket that was bound with the same flag.
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return "the port is in use; stop what listens there or configure another"
        return error.strerror or "the address cannot be used"
    return None


def accepts_connections(address: str) -> bool:
    """Return whether something listens on `address`."""
    try:
        if address.startswith("unix:"):
            family, kind, protocol = socket.AF_UNIX, socket.SOCK_STREAM, 0
            target: Any = address.removeprefix("unix:").removeprefix("//")
        else:
            family, kind, protocol, target = _resolve(dial_address(address))
        with closing(socket.socket(family, kind, protocol)) as probe:
            probe.settimeout(1.0)
            probe.connect(target)
    except OSError:
        return False
    return True


def _resolve(address: str) -> tuple[socket.AddressFamily, socket.SocketKind, int, Any]:
    host, _, port = address.rpartition(":")
    found = socket.getaddrinfo(
        host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    family, kind, protocol, _, target = found[0]
    return family, kind, protocol, target


def free_addresses(count: int) -> list[str]:
    """Return loopback addresses that were free a moment ago, all different."""
    with contextlib.ExitStack() as held:
        addresses = []
        for _ in range(count):
            probe = held.enter_context(closing(socket.socket()))
            probe.bind(("127.0.0.1", 0))
            addresses.append(f"127.0.0.1:{probe.getsockname()[1]}")
        return addresses
