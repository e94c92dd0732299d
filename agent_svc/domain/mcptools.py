"""How the tools of an MCP server become tools of a run: their names, schemas and policies."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from agent_svc.domain.approval import Rule
from agent_svc.domain.prompt import ToolPolicy, ToolSchema

NAME_CHARS = 64
"""Providers take no longer name of a tool."""
MOST_TOOLS = 128
"""Tools of one server. Providers take few more in all."""
DESCRIPTION_CHARS = 2000
_REFUSED = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True)
class ServerTool:
    """A tool as its server describes it. The hints are what the server says, true or not."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    read_only: bool = False
    idempotent: bool = False


@dataclass(frozen=True)
class ToolChoice:
    """What the configuration says about one tool; None follows the server."""

    approval: Rule | Literal["auto"] | None = None
    idempotent: bool | None = None


@dataclass(frozen=True)
class ServerChoice:
    """What the configuration says about the tools of one server, by the server's own names."""

    approval: Rule | Literal["auto"] = "auto"
    tools: Mapping[str, ToolChoice] = field(default_factory=dict)


def pattern(server_id: str) -> str:
    """Name all tools of a server."""
    return f"{server_id}__*"


def offered(
    server_id: str, tools: Sequence[ServerTool], choice: ServerChoice
) -> dict[str, tuple[ServerTool, ToolSchema]]:
    """Describe the tools of a server for models, by the names that models know them by."""
    found: dict[str, tuple[ServerTool, ToolSchema]] = {}
    for tool in tools[:MOST_TOOLS]:
        name = _name(server_id, tool.name, taken=found.keys())
        found[name] = (
            tool,
            ToolSchema(
                name,
                tool.description[:DESCRIPTION_CHARS],
                _schema(tool.parameters),
                _policy(tool, choice),
            ),
        )
    return found


def _name(server_id: str, tool: str, taken: Any) -> str:
    plain = f"{server_id}__{_REFUSED.sub('_', tool)}"
    if len(plain) <= NAME_CHARS and plain not in taken:
        return plain
    # Two names that look the same after all, or one that is too long: told apart by a sum.
    mark = hashlib.sha256(tool.encode()).hexdigest()[:8]
    return f"{plain[: NAME_CHARS - len(mark) - 1]}_{mark}"


def _schema(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """Providers insist on an object, also of a tool that takes nothing."""
    if parameters.get("type") == "object" and "properties" in parameters:
        return parameters
    return {**parameters, "type": "object", "properties": parameters.get("properties", {})}


def _policy(tool: ServerTool, choice: ServerChoice) -> ToolPolicy:
    own = choice.tools.get(tool.name, ToolChoice())
    rule = own.approval or choice.approval
    if rule == "auto":
        rule = "allow" if tool.read_only else "ask"
    hinted = tool.idempotent or tool.read_only
    return ToolPolicy(
        idempotent=hinted if own.idempotent is None else own.idempotent,
        approval=rule,
        kind="read" if tool.read_only else "other",
    )
