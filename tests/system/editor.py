"""An ACP client of somebody else's making, the official Python SDK's, at `conveyor acp serve`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from acp import PROTOCOL_VERSION, spawn_agent_process, text_block
from acp.schema import (
    AllowedOutcome,
    DeniedOutcome,
    PermissionOption,
    PromptResponse,
    RequestPermissionResponse,
    ToolCallUpdate,
)

from tests.system.harness import CONVEYOR, Suite, clean_environment

Choose = Callable[[ToolCallUpdate, list[PermissionOption]], str | None]


class Editor:
    """What a person's editor shows; `choose` answers what it is asked."""

    def __init__(self, choose: Choose | None = None) -> None:
        self.updates: list[dict[str, Any]] = []
        self.asked: list[ToolCallUpdate] = []
        self.agent: Any = None
        self._choose = choose

    async def session_update(self, session_id: str, update: Any, **_: Any) -> None:
        self.updates.append(update.model_dump(exclude_none=True))

    async def request_permission(
        self, session_id: str, tool_call: Any, options: list[PermissionOption], **_: Any
    ) -> RequestPermissionResponse:
        self.asked.append(tool_call)
        chosen = self._choose(tool_call, options) if self._choose else None
        if chosen is None:
            await asyncio.Event().wait()  # the person went for lunch
            return RequestPermissionResponse(outcome=DeniedOutcome(outcome="cancelled"))
        return RequestPermissionResponse(
            outcome=AllowedOutcome(outcome="selected", option_id=chosen)
        )

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [update for update in self.updates if update["session_update"] == kind]

    @property
    def text(self) -> str:
        return "".join(update["content"]["text"] for update in self.of("agent_message_chunk"))

    async def ask(self, session_id: str, text: str) -> PromptResponse:
        """Send a prompt and wait for its end."""
        async with asyncio.timeout(90):
            answer: PromptResponse = await self.agent.prompt(
                session_id=session_id, prompt=[text_block(text)]
            )
            return answer


@asynccontextmanager
async def editing(suite: Suite, editor: Editor, *options: str) -> AsyncIterator[Editor]:
    """Connect an editor to a `conveyor acp serve` of its own; that ends with the editor."""
    async with spawn_agent_process(
        editor,
        str(CONVEYOR),
        "--config",
        str(suite.config),
        "acp",
        "serve",
        *options,
        env=clean_environment(),
        # Else the SDK kills what does not end within two seconds.
        transport_kwargs={"shutdown_timeout": 30.0},
    ) as (agent, process):
        editor.agent = agent
        async with asyncio.timeout(60):
            ready = await agent.initialize(protocol_version=PROTOCOL_VERSION)
        assert ready.protocol_version == 1
        assert ready.agent_capabilities.load_session
        yield editor
    assert process.returncode == 0
