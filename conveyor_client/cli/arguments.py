"""Arguments and options that several verbs have."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Limit = Annotated[int, typer.Option(help="At most this many.", min=1, max=500)]
Page = Annotated[str, typer.Option(help="Token of the page, from the answer before.")]


class StateName(StrEnum):
    """States of a run."""

    QUEUED = "queued"
    RUNNING = "running"
    SUSPENDED = "suspended"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


States = Annotated[
    list[StateName] | None, typer.Option("--state", help="Only this state. May be repeated.")
]


def more(token: str) -> None:
    """Say how to get the next page, if there is one."""
    if token:
        print(f"more: --page {token}")
