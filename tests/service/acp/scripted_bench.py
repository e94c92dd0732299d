"""Connections to real processes of the scripted agent."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from acp_svc.domain.install import Installer
from acp_svc.domain.modes import UNKNOWN, Modes
from acp_svc.domain.permissions import PermissionMode
from acp_svc.domain.registry import Harness
from acp_svc.harness.connection import Connection
from acp_svc.harness.types import Deadlines, Order, PermissionRequest, Update

SCRIPTED = Path(__file__).parents[2] / "harnesses" / "scripted.py"
PATIENT = Deadlines(handshake=20, turn=30, quiet=30, cancel=10)
OWNER = "tests-of-connections"


def harness(
    tmp_path: Path, *flags: str, modes: Modes = UNKNOWN, login: str = "", **env: str
) -> Harness:
    home = tmp_path / "home"
    home.mkdir(exist_ok=True)
    return Harness(
        "scripted",
        "Scripted",
        (sys.executable, str(SCRIPTED), *flags),
        Installer("text", "make scripted"),
        "",
        env={"HOME": str(home), **env},
        login=login,
        modes=modes,
        state=(".scripted",),
    )


def order(
    tmp_path: Path,
    *flags: str,
    permissions: PermissionMode = PermissionMode.ASK,
    modes: Modes = UNKNOWN,
    login: str = "",
    env: dict[str, str] | None = None,
    **fields: Any,
) -> Order:
    """What to open in `tmp_path / "work"`."""
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    made = harness(tmp_path, *flags, modes=modes, login=login, **(env or {}))
    fields.setdefault("sandbox", "off")
    return Order("session-1", made, work, permissions, **fields)


@asynccontextmanager
async def opened(
    tmp_path: Path, *flags: str, deadlines: Deadlines = PATIENT, **fields: Any
) -> AsyncIterator[Connection]:
    connection = await Connection.open(order(tmp_path, *flags, **fields), deadlines, OWNER)
    try:
        yield connection
    finally:
        await connection.stop()


class Follower:
    """A listener that keeps what it hears, and answers with the same option always."""

    def __init__(self, option: str | None = "yes-once") -> None:
        self.option = option
        self.updates: list[Update] = []
        self.asked: list[PermissionRequest] = []

    def updated(self, update: Update) -> None:
        self.updates.append(update)

    async def permission(self, request: PermissionRequest) -> str | None:
        self.asked.append(request)
        return self.option

    @property
    def said(self) -> list[str]:
        return [
            getattr(update.content, "text", "")
            for update in self.updates
            if update.session_update == "agent_message_chunk"
        ]


async def tell(connection: Connection, text: str, option: str | None = "yes-once") -> list[str]:
    """Prompt and return what it says."""
    follower = Follower(option)
    await connection.prompt(text, follower, PATIENT)
    return follower.said
