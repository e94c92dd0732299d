"""Which Host and Origin headers belong to this server.

A web page of another site can make a browser send requests to a loopback address, and can make its
own name resolve to it. The first shows in Origin, the second in Host. For an image, a script or a
link a browser sends no Origin, but says in Sec-Fetch-Site whose page asks.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class OriginRules:
    """Names that this server goes by, and origins that may use it from a browser."""

    hosts: frozenset[str]
    origins: frozenset[str]

    def allows_host(self, header: str | None) -> bool:
        """True for a Host header that names this server.

        An address is always fine: only a name can be made to point somewhere else.
        """
        host = host_of(header or "")
        return bool(host) and (host in self.hosts or _is_address(host))

    def allows_origin(self, header: str | None, host_header: str | None) -> bool:
        """True for a request without Origin, from our own pages, or from an allowed origin."""
        if header is None or header in self.origins:
            return True
        try:
            parts = urlsplit(header)
        except ValueError:
            return False
        # The same host and port: the page came from here.
        return parts.scheme in ("http", "https") and parts.netloc == host_header

    def allows_site(self, header: str | None, origin_header: str | None) -> bool:
        """True unless a browser asks for a page of another site, of which it names no origin."""
        return origin_header is not None or header in (None, "same-origin", "none")


def origin_rules(bind_address: str, allowed_origins: Iterable[str]) -> OriginRules:
    """Return the rules of a server that listens on `bind_address`."""
    origins = frozenset(origin.rstrip("/") for origin in allowed_origins)
    names = {"localhost", host_of(bind_address)}
    names.update(host_of(urlsplit(origin).netloc) for origin in origins)
    names.discard("")
    return OriginRules(hosts=frozenset(names), origins=origins)


def host_of(header: str) -> str:
    """Return the name or address in `host:port`, in small letters, without the port."""
    header = header.strip().lower()
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].rstrip(".")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
