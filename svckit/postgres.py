"""The address of a PostgreSQL database, as `store.url` gives it.

`postgresql://user:password@host:port/database?sslmode=require`. The host may be left out for a Unix
socket in `?host=/directory`. The password may stay out too: `store.password_file` names a file that
holds it and nothing else; `PGPASSWORD`, or a line in `~/.pgpass` (`PGPASSFILE`), says it to all
clients of PostgreSQL. It is never shown.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Self
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit, urlunsplit

import msgspec

from svckit.secrets import read_secret_file

START_SECONDS = 30.0
"""How long a service that starts waits for a server that does not answer yet."""

# The server, not the statement, is the trouble. Anything else is a bug and comes up as it is.
_REFUSALS = (
    "08",  # connection lost
    "25006",  # read-only: a standby, or told to be
    "28",  # the user is not let in
    "3D",  # the database is gone
    "40",  # to be tried again
    "53",  # disk full, out of memory, too many connections
    "55P03",  # a lock was not to be had in time
    "57",  # starts, stops, crashed, or took too long
    "58",  # the system below
    "XX001",  # damaged
    "XX002",
)
# At the start these are not waited for: they do not change by themselves.
_FINAL = {
    "28": "PostgreSQL refuses the user or the password of store.url; the password may come from "
    "store.password_file, PGPASSWORD or ~/.pgpass instead",
    "3D": "store.url names a database that does not exist; make it with createdb",
    "42501": "the user of store.url may not create the schema; "
    "GRANT CREATE ON DATABASE … TO … allows it",
    "25006": "PostgreSQL takes no writes here (a standby?); store.url must name the primary",
}


def refuses(sqlstate: str) -> bool:
    """Whether an error of the server means that it cannot be used now."""
    return sqlstate.startswith(_REFUSALS)


def final(sqlstate: str) -> str:
    """What to tell at the start when waiting will not help; else nothing."""
    return next((text for start, text in _FINAL.items() if sqlstate.startswith(start)), "")


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
    # Holds the password, and counts before the places that other clients look at.
    password_file: str = ""

    def __repr__(self) -> str:
        # Whatever prints it by accident prints no password.
        return f"PostgresAddress({self.user}@{self.host}:{self.port}/{self.database})"

    @classmethod
    def parse(cls, url: str, *, password_file: str = "") -> Self:
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
            password_file=password_file,
        )

    def secret(self, environ: Mapping[str, str] | None = None) -> str | None:
        """The password, from its file or from wherever clients of PostgreSQL look for it.

        Raises `StartError` when the file cannot be read.
        """
        environ = os.environ if environ is None else environ
        if self.password is not None:
            return self.password
        if self.password_file:
            return read_secret_file("store.password_file", self.password_file)
        if "PGPASSWORD" in environ:
            return environ["PGPASSWORD"]
        file = self.options.get("passfile") or environ.get("PGPASSFILE")
        try:
            path = Path(file) if file else Path.home() / ".pgpass"
            lines = path.read_text("utf-8").splitlines()
        except (OSError, RuntimeError, UnicodeDecodeError):
            return None
        # A socket in the usual place goes by the name of this machine.
        host = "localhost" if self.host.startswith("/") else self.host
        us = (host, str(self.port), self.database, self.user)
        for line in lines:
            fields = _fields(line)
            if len(fields) == 5 and all(f in ("*", o) for f, o in zip(fields[:4], us, strict=True)):
                return fields[4]
        return None

    @property
    def where(self) -> str:
        """Host, port and database, for people and logs."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}/{self.database}"


def _fields(line: str) -> list[str]:
    r"""Fields of a line of a password file: `\:` and `\\` stand for the characters themselves."""
    fields, taken = [""], False
    for character in line if not line.startswith("#") else "":
        if taken or character not in "\\:":
            fields[-1] += character
            taken = False
        elif character == ":" and len(fields) < 5:
            fields.append("")
        else:
            taken = character == "\\"
            fields[-1] += "" if taken else character
    return fields


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
