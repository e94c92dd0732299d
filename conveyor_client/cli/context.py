"""What every verb shares: the global options, the way to the suite, and how failures are said."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import typer

if TYPE_CHECKING:
    from conveyor_client.client import ConveyorClient
    from conveyor_client.credentials import Tls
    from svckit.settings import Settings

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Options:
    """Options before the verb."""

    config: Path | None = None
    address: str | None = None
    token_env: str | None = None
    token_file: Path | None = None
    tls: bool | None = None
    ca_file: Path | None = None

    def settings(self) -> Settings:
        """Load the configuration. Raises `ConfigError`."""
        from svckit.settings import load

        return load(self.config)

    def gateway(self) -> str:
        """Return the address to call: as given, else where the configured gateway listens."""
        if self.address:
            return self.address
        from conveyor_client.supervision.addresses import dial_address

        return dial_address(self.settings().gateway.grpc)

    def token(self) -> str | None:
        """Return the bearer token: of the options, else the environment, else the configuration.

        Raises `CannotRun` when one was named and is not there.
        """
        from svckit.settings import TOKEN_VARIABLE

        if self.token_env or self.token_file:
            return _secret(self.token_env or "", str(self.token_file or ""))
        if token := os.environ.get(TOKEN_VARIABLE):
            return token
        client = self.settings().client
        if client.token_env or client.token_file:
            return _secret(client.token_env, client.token_file)
        return None

    def security(self) -> Tls | None:
        """Return how to reach the gateway with TLS, None for plain text.

        A gateway that this configuration describes uses TLS when the configuration says so.
        """
        from conveyor_client.credentials import Tls

        settings = self.settings()
        client, served = settings.client, settings.gateway.tls
        ours = bool(served.cert_file) and not self.address
        wanted = client.tls or bool(client.ca_file or self.ca_file) or ours
        if not (wanted if self.tls is None else self.tls):
            return None
        ca_file = str(self.ca_file or client.ca_file or (served.cert_file if ours else ""))
        return Tls(
            ca_file=_path(ca_file),
            cert_file=_path(client.cert_file),
            key_file=_path(client.key_file),
            server_name=client.server_name,
        )

    def client(self, address: str = "") -> ConveyorClient:
        """Return a client of the gateway, or of the one at `address`. Raises `CannotRun`."""
        from conveyor_client.client import ConveyorClient

        try:
            return ConveyorClient(
                address or self.gateway(), token=self.token(), tls=self.security()
            )
        except OSError as error:
            raise CannotRun(f"{error.filename}: cannot be read: {error.strerror}", 2) from None


def _path(text: str) -> Path | None:
    return Path(text).expanduser() if text else None


def _secret(env: str, file: str) -> str:
    from svckit.errors import StartError
    from svckit.secrets import read_secret

    try:
        return read_secret("token", env=env, file=file)
    except StartError as error:
        # Which setting or option named it is not known here, and the rest says enough.
        raise CannotRun(str(error).partition(": ")[2], 2) from None


class CannotRun(Exception):
    """A verb cannot do its work; the text is for people. Attribute `exit_code`."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def options(context: typer.Context) -> Options:
    """Return the options before the verb."""
    return cast("Options", context.find_root().obj)


@asynccontextmanager
async def connect(context: typer.Context) -> AsyncIterator[ConveyorClient]:
    """Open a client to the suite that the options name."""
    from conveyor_client.cli.traces import find_page
    from svckit.errors import ServiceError

    async with options(context).client() as client:
        try:
            yield client
        except ServiceError as error:
            await find_page(client, error)
            raise


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a verb's coroutine to its end."""
    # Not above: who asks for help, or completes a word, does not wait for it.
    import asyncio

    return asyncio.run(work)


def explain_failure(error: Exception) -> tuple[str, int] | None:
    """Return what to say and the exit code for an expected failure, None for any other."""
    from conveyor_client.supervision.suite import SuiteFailed
    from svckit.errors import ServiceError, Unreachable
    from svckit.settings import ConfigError
    from svckit.words import last_lines

    if isinstance(error, CannotRun | SuiteFailed):
        return str(error), error.exit_code
    if isinstance(error, ConfigError):
        return "\n  ".join(["the configuration cannot be used:", *error.problems]), 2
    if isinstance(error, Unreachable):
        return f"{error.message} (is the suite running? start it with `conveyor up`)", 1
    if isinstance(error, ServiceError):
        from conveyor_client.cli.traces import failure_line

        said = last_lines(error.metadata.get("lastWords", ""))
        lines = [f"{error.message} ({error.reason})", *(f"  › {one}" for one in said)]
        return "\n".join([*lines, *(f"  {one}" for one in [failure_line(error)] if one)]), 1
    return None
