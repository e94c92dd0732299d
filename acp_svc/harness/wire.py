"""Carries messages of the protocol through the pipes of a program: one line of JSON each.

The SDK has transports of its own. This one is for programs that we start, stop and watch
ourselves, and for harnesses that print what is no message, tell of things that the SDK does not
know, or answer what nobody asked. Nothing of what a harness says reaches a log.

Updates are handed on here, one by one and in order: the SDK starts a task for each.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, get_args

from acp import schema
from pydantic import ValidationError

from acp_svc.harness.types import Update
from svckit.programs import Program

OTHER_STOP_REASON = "other"
_STOP_REASONS = frozenset(get_args(schema.StopReason))
_THREAD_BYTES = 256 * 1024
"""From this length on a line is parsed in a thread, for other sessions have to go on."""
_MESSAGES_AT_ONCE = 32


class Wire:
    """A `Transport` of the SDK over a program, which it does not end."""

    def __init__(self, program: Program, updated: Callable[[str, Update], None]) -> None:
        self._program = program
        self._updated = updated
        self._prompt_id: Any = None
        self.sent = asyncio.Event()
        """Set once a prompt is on its way. Cleared by whoever prompts."""
        self.ended: Callable[[], None] = lambda: None
        """Called when the answer to a prompt came, before anything that follows it is read."""
        self.stop_reason = ""
        """Of the last answer to a prompt, as the harness says it."""
        self.models: dict[str, Any] | None = None
        """What the last answer said about models the old way, which the SDK does not know."""
        self.noise = 0
        """How many lines were no messages that anybody can understand."""

    async def send(self, message: dict[str, Any]) -> None:
        """Write a message. Raises `ConnectionError` when the program does not read any more."""
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        if message.get("method") == "session/prompt":
            self._prompt_id = message["id"]
            # Lines leave in the order of their writing, so what is written from now on follows it.
            self.sent.set()
        try:
            await self._program.write(line)
        except OSError as error:
            raise ConnectionError("the harness does not read") from error

    async def receive(self) -> dict[str, Any] | None:
        """Return the next message that is for the SDK; None at the end."""
        since_pause = 0
        while line := await self._program.read():
            since_pause += 1
            if since_pause >= _MESSAGES_AT_ONCE:
                # A harness may write faster than its lines are worked on, and reading what is there
                # already does not give way.
                since_pause = 0
                await asyncio.sleep(0)
            if not line.strip():
                continue
            message = await self._parsed(line)
            if message is None:
                self.noise += 1
            elif message.get("method") == "session/update":
                self._update(message.get("params"))
            else:
                return self._looked_at(message)
        return None

    async def close(self) -> None:
        """Do nothing: the program is stopped by whoever started it."""

    async def _parsed(self, line: bytes) -> dict[str, Any] | None:
        try:
            if len(line) < _THREAD_BYTES:
                message = json.loads(line)
            else:
                message = await asyncio.to_thread(json.loads, line)
        except (ValueError, RecursionError):
            return None
        if not isinstance(message, dict):
            return None
        method = message.get("method")
        known = isinstance(method, str) if method is not None else "id" in message
        if known and isinstance(message.get("id"), list | dict):
            known = False
        return message if known else None

    def _update(self, params: Any) -> None:
        try:
            note = schema.SessionNotification.model_validate(params)
        except ValidationError:
            self.noise += 1
            return
        self._updated(note.session_id, note.update)

    def _looked_at(self, message: dict[str, Any]) -> dict[str, Any]:
        """Note what the SDK would drop, and mend what it would fail on."""
        if "method" in message:
            return message
        error, result = message.get("error"), message.get("result")
        if error is not None:
            if not isinstance(error, dict) or not isinstance(error.get("code"), int):
                error = {"code": -32603, "message": str(error)}
            message = {"id": message["id"], "error": error}
        elif isinstance(result, dict):
            models = result.get("models")
            self.models = models if isinstance(models, dict) else None
        if self._prompt_id is not None and message["id"] == self._prompt_id:
            self._prompt_id = None
            self.ended()
            if isinstance(result, dict):
                reason = result.get("stopReason")
                self.stop_reason = reason if isinstance(reason, str) else ""
                if self.stop_reason and self.stop_reason not in _STOP_REASONS:
                    message = {**message, "result": {**result, "stopReason": "end_turn"}}
                    self.stop_reason = OTHER_STOP_REASON
        return message
