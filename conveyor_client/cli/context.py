"""What every verb shares: the global options, the way to the suite, and how failures are said."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import typer

if TYPE_CHECKING:
    from conveyor_client.client import ConveyorClient
    from svckit.settings import Settings

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Options:
    """Options before the verb."""

    config: Path | None = None
    address: str | None = None
    token_env: str | None = None

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
    from conveyor_client.client import ConveyorClient

    chosen = options(context)
    token = None
    if chosen.token_env:
        token = os.environ.get(chosen.token_env)
        if not token:
            raise CannotRun(f"the environment variable {chosen.token_env} is not set", 2)
    async with ConveyorClient(chosen.gateway(), token=token) as client:
        yield client


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a verb's coroutine to its end."""
    return asyncio.run(work)


def explain_failure(error: Exception) -> tuple[str, int] | None:
    """Return what to say and the exit code for an expected failure, None for any other."""
    from conveyor_client.supervision.suite import SuiteFailed
    from svckit.errors import ServiceError, Unreachable
    from svckit.settings import ConfigError

    if isinstance(error, CannotRun | SuiteFailed):
        return str(error), error.exit_code
    if isinstance(error, ConfigError):
        return "\n  ".join(["the configuration cannot be used:", *error.problems]), 2
    if isinstance(error, Unreachable):
        return f"{error.message} (is the suite running? start it with `conveyor up`)", 1
    if isinstance(error, ServiceError):
        return f"{error.message} ({error.reason})", 1
    return None
