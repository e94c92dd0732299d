"""Addresses of services: how to reach them, whether they are free, and who listens."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from contextlib import closing
from pathlib import Path
from typing import Any


def dial_address(address: str) -> str:
    """Return where to reach what listens on `address`: a wildcard is reached over loopback."""
    host, _, port = address.rpartition(":")
    if host in ("", "0.0.0.0"):  # noqa: S104  (compared, not bound)
        return f"127.0.0.1:{port}"
    return f"[::1]:{port}" if host in ("[::]", "::") else address


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


def listens(pid: int, address: str) -> bool:
    """Return whether the process itself listens on the port of `address`.

    Two suites that start at the same moment both find their ports free; then one answers the
    health checks meant for the other. Where the system does not tell, the answer is yes.
    """
    port = address.rpartition(":")[2]
    tables = [Path("/proc/net/tcp"), Path("/proc/net/tcp6")]
    if address.startswith("unix:") or not port.isdigit() or not tables[0].exists():
        return True
    listening = {
        inode for table in tables if table.exists() for inode in _listeners(table, int(port))
    }
    try:
        descriptors = os.listdir(f"/proc/{pid}/fd")
    except PermissionError:
        return True
    except OSError:
        return False  # it has ended
    return any(_names_one_of(f"/proc/{pid}/fd/{number}", listening) for number in descriptors)


def _names_one_of(descriptor: str, inodes: set[str]) -> bool:
    try:
        target = os.readlink(descriptor)
    except OSError:
        return False  # closed since it was listed; others may still be open
    return target.startswith("socket:[") and target[8:-1] in inodes


def _listeners(table: Path, port: int) -> list[str]:
    """Return the inodes of the sockets that listen on `port`."""
    found = []
    for line in table.read_text().splitlines()[1:]:
        fields = line.split()
        # Local address as hex `host:port`, and state 0A for listening.
        if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
            found.append(fields[9])
    return found
