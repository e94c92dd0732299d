"""Our side of the protocol: what a harness may ask of its client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

from acp import RequestError, schema

from acp_svc.harness.types import PermissionRequest

Decide = Callable[[str, PermissionRequest], Awaitable[str | None]]


class HarnessClient:
    """Answers permission requests, and refuses everything else.

    Files and terminals are not offered: a harness uses its own, where its sandbox and its own
    permission questions hold. Some ask all the same, and are told.
    """

    def __init__(self, decide: Decide) -> None:
        self._decide = decide

    async def request_permission(
        self,
        session_id: str,
        tool_call: schema.ToolCallUpdate,
        options: list[schema.PermissionOption],
        **kw: Any,
    ) -> schema.RequestPermissionResponse:
        """Have it decided; without a decision it is told that it was cancelled."""
        chosen = await self._decide(session_id, PermissionRequest(tool_call, tuple(options)))
        outcome: schema.AllowedOutcome | schema.DeniedOutcome
        if chosen is None:
            outcome = schema.DeniedOutcome(outcome="cancelled")
        else:
            outcome = schema.AllowedOutcome(outcome="selected", option_id=chosen)
        return schema.RequestPermissionResponse(outcome=outcome)

    async def session_update(self, **kw: Any) -> None:
        """Do nothing: updates are taken off the wire, in order."""

    async def read_text_file(self, **kw: Any) -> NoReturn:
        """Refuse."""
        _refuse("fs/read_text_file", "read files yourself")

    async def write_text_file(self, **kw: Any) -> NoReturn:
        """Refuse."""
        _refuse("fs/write_text_file", "write files yourself")

    async def create_terminal(self, **kw: Any) -> NoReturn:
        """Refuse."""
        _refuse("terminal/create", "run commands yourself")

    async def terminal_output(self, **kw: Any) -> NoReturn:
        """Refuse."""
        _refuse("terminal/output", "there are no terminals")

    async def release_terminal(self, **kw: Any) -> NoReturn:
        """Refuse."""
        _refuse("terminal/release", "there are no terminals")

    async def wait_for_terminal_exit(self, **kw: Any) -> NoReturn:
        """Refuse."""
        _refuse("terminal/wait_for_exit", "there are no terminals")

    async def kill_terminal(self, **kw: Any) -> NoReturn:
        """Refuse."""
        _refuse("terminal/kill", "there are no terminals")


def _refuse(method: str, instead: str) -> NoReturn:
    raise RequestError(
        -32601, f"{method} is not offered by this client; {instead}", {"method": method}
    )
