"""What is ordered from a harness, what comes back, and how it fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol, TypeAlias

from acp import schema

from acp_svc.domain.permissions import PermissionMode
from acp_svc.domain.registry import Harness

Update: TypeAlias = (
    schema.UserMessageChunk
    | schema.AgentMessageChunk
    | schema.AgentThoughtChunk
    | schema.ToolCallStart
    | schema.ToolCallProgress
    | schema.AgentPlanUpdate
    | schema.AgentPlanContentUpdate
    | schema.AgentPlanRemovedUpdate
    | schema.AvailableCommandsUpdate
    | schema.CurrentModeUpdate
    | schema.ConfigOptionUpdate
    | schema.SessionInfoUpdate
    | schema.UsageUpdate
)
"""One `session/update`. Kinds that the protocol does not know never arrive."""

Block: TypeAlias = (
    schema.TextContentBlock
    | schema.ImageContentBlock
    | schema.AudioContentBlock
    | schema.ResourceContentBlock
    | schema.EmbeddedResourceContentBlock
)


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long things may take, in seconds. See `[acp]` of the configuration."""

    handshake: float
    """From the start of the process until the session is open."""
    turn: float
    """A prompt, waiting for people left out."""
    quiet: float
    """Without a word from the harness while a prompt is at work, waiting for people left out."""
    cancel: float
    """From `session/cancel` until the prompt ended."""


@dataclass(frozen=True, slots=True)
class Order:
    """What to open."""

    session_id: str
    harness: Harness
    cwd: Path
    permission_mode: PermissionMode
    upstream_id: str = ""
    """The harness's own id of the session to reopen. Empty opens a new one."""
    must_resume: bool = False
    """Fail, where `upstream_id` cannot be reopened, instead of opening a new one."""
    model: str = ""
    harness_mode: str = ""
    """The harness's own mode. Empty means the one that fits the permission mode."""
    options: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    env_names: tuple[str, ...] = ()
    """Variables of ours that it may see beside its own list."""
    sandbox: Literal["auto", "off", "require"] = "auto"


@dataclass(frozen=True, slots=True)
class Opened:
    """What came of an order, as last told by the harness."""

    upstream_id: str
    how: Literal["new", "resumed", "loaded"]
    loadable: bool
    """True when the harness says that it can open the session again."""
    modes: tuple[str, ...]
    mode: str
    """Empty when it has none."""
    models: tuple[str, ...]
    model: str
    """Empty when it does not say."""
    options: Mapping[str, str]
    """All others, with their present values; of yes and no, `true` and `false`."""
    sandboxed: bool
    agent_name: str
    agent_version: str


@dataclass(frozen=True, slots=True)
class PermissionRequest:
    """What a harness asks for."""

    tool_call: schema.ToolCallUpdate
    """What the request says of the call. It may be no more than its id: what else is known of it
    earlier updates said."""
    options: tuple[schema.PermissionOption, ...]
    """In the order of the harness. May be empty."""


class Listener(Protocol):
    """Follows one prompt."""

    def updated(self, update: Update) -> None:
        """Take an update. They come in order, none after the prompt has ended. Must not block."""
        ...

    async def permission(self, request: PermissionRequest) -> str | None:
        """Decide: the id of one of the options, or None to say that it was cancelled.

        Several may be asked at once. Cancelled when the prompt is cancelled or ends. The deadlines
        of the prompt stand still meanwhile.
        """
        ...


@dataclass(frozen=True, slots=True)
class Ended:
    """How a prompt ended well."""

    stop_reason: str
    """As the protocol says, for example `end_turn` or `cancelled`; or `other` for one that it does
    not know."""
    usage: schema.Usage | None = None


class Cause(Enum):
    """Why a prompt failed; the values are those of `ACP_TURN_FAILED`."""

    CRASHED = "crashed"
    TIMEOUT = "timeout"
    AUTH_REQUIRED = "auth_required"
    PROTOCOL = "protocol"


class PromptFailed(Exception):
    """A prompt did not end well. The harness may have done some of the work."""

    def __init__(
        self, cause: Cause, message: str, *, exit_code: int | None = None, last_words: str = ""
    ) -> None:
        super().__init__(message)
        self.cause = cause
        self.message = message
        """For people; holds nothing that the harness said."""
        self.exit_code = exit_code
        """Of the process, when it ended; negative for a signal."""
        self.last_words = last_words
