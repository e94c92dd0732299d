"""The address of a PostgreSQL database, as `store.url` gives it.

`postgresql://user:password@host:port/database?sslmode=require`. The host may be left out for a Unix
socket in `?host=/directory`. The password may stay out too: `PGPASSWORD`, or a line in `~/.pgpass`
(`PGPASSFILE`), says it to all clients of PostgreSQL. It is never shown.
"""

from __future__ import annotations

from typing import Self
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit, urlunsplit

import msgspec

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_OPTIONS = ("host", "port", "user", "password", "sslmode", "sslrootcert", "passfile")


class PostgresAddress(msgspec.Struct, frozen=True):
    """A checked address. `url` holds the password if there is one: never log it."""

    url: str
    # A host name or address, or the directory of a Unix socket.
    host: str
    port: int
    user: str
    password: str | None
    database: str
    options: dict[str, str]

    @classmethod
    def parse(cls, url: str) -> Self:
        """Raises `ValueError` with what is wrong and never with the address itself."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ValueError("is no address: check host, port and brackets") from None
        if parts.scheme != "postgresql":
            raise ValueError("must begin with postgresql://")
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        if unknown := sorted(options.keys() - set(_OPTIONS)):
            raise ValueError(f"unknown option {unknown[0]}; known: {', '.join(_OPTIONS)}")
        if options.get("sslmode", "prefer") not in SSL_MODES:
            raise ValueError(f"sslmode must be one of {', '.join(SSL_MODES)}")
        database = unquote(parts.path.removeprefix("/"))
        if not database or "/" in database:
            raise ValueError(
                "must name a database: postgresql://user@host:5432/database, with a password as "
                "user:password@ or in PGPASSWORD"
            )
        user = unquote(parts.username or options.get("user", ""))
        if not user:
            raise ValueError("must name a user: postgresql://user@host:5432/database")
        if "," in (parts.hostname or ""):
            raise ValueError("must name one host")
        if not options.get("port", "5432").isdigit():
            raise ValueError("port must be a number")
        password = parts.password if parts.password is not None else options.get("password")
        return cls(
            url=url,
            host=parts.hostname or options.get("host") or "localhost",
            port=port or int(options.get("port", 5432)),
            user=user,
            password=None if password is None else unquote(password),
            database=database,
            options=options,
        )

    @property
    def where(self) -> str:
        """Host, port and database, for people and logs."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}/{self.database}"


def masked(url: str) -> str:
    """The address with its password, if any, hidden. Anything that is no such address too."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        user = parts.username or ""
        secret = parts.password is not None
    except ValueError:
        return "postgresql://***"
    netloc = f"{user}:***@{host}" if secret else parts.netloc
    query = "&".join(
        "password=***" if piece.startswith("password=") else piece
        for piece in parts.query.split("&")
    )
    return urlunsplit(SplitResult(parts.scheme, netloc, parts.path, query, ""))
