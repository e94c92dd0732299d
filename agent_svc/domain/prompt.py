"""What a model is asked, in our own form. Adapters translate it for a provider."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from agent_svc.domain.approval import Rule
from agent_svc.domain.content import Part
from agent_svc.domain.steps import ToolCall

RUNTIME_MARK = "[runtime]"


@dataclass(frozen=True)
class Said:
    """Somebody else spoke: a person (or a parent run), or the runtime itself."""

    text: str
    origin: Literal["person", "runtime"] = "person"
    # Parts that are not text: images and references.
    attachments: tuple[Part, ...] = ()


@dataclass(frozen=True)
class Answered:
    """The model spoke, and may have called tools. Each call is answered right after it."""

    text: str
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class ToolAnswer:
    """The result of one call."""

    call_id: str
    tool: str
    content: str
    failed: bool = False


PromptMessage = Said | Answered | ToolAnswer


@dataclass(frozen=True)
class ToolPolicy:
    """What the runtime has to know of a tool; no model is shown it.

    `idempotent`: a call that a crash interrupted may be made again. `approval`: whether a person is
    asked before each call. `kind`: what it does, as `Question.tool_kind` names it.
    """

    idempotent: bool = True
    approval: Rule = "allow"
    kind: str = "other"


@dataclass(frozen=True)
class ToolSchema:
    """A tool that the model may call. `parameters` is a JSON schema of an object."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    policy: ToolPolicy = ToolPolicy()


@dataclass(frozen=True)
class Prompt:
    """One request to a model: oldest message first."""

    system: str
    messages: Sequence[PromptMessage]
    tools: Sequence[ToolSchema] = field(default_factory=tuple)
    # A tool that the reply must call; empty leaves the choice to the model.
    force_tool: str = ""

    def has_tool(self, name: str) -> bool:
        """Tell whether the model may call `name`."""
        return any(tool.name == name for tool in self.tools)


def runtime_line(text: str) -> Said:
    """Say something as the runtime; the mark tells the model that no person wrote it."""
    return Said(f"{RUNTIME_MARK} {text}", origin="runtime")


def unanswered(messages: Sequence[PromptMessage]) -> list[str]:
    """Ids of tool calls that a provider would refuse, because no answer follows at once."""
    missing: list[str] = []
    for position, message in enumerate(messages):
        if not isinstance(message, Answered) or not message.calls:
            continue
        follow: set[str] = set()
        for answer in messages[position + 1 :]:
            if not isinstance(answer, ToolAnswer):
                break
            follow.add(answer.call_id)
        missing.extend(call.id for call in message.calls if call.id not in follow)
    return missing
