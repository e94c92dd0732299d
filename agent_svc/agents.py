"""The configured agents, as the rest of the service asks for them.

Their files are read and their directories made when the service starts: what is wrong with them is
a mistake of the configuration, and no customer should be the first to see it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent_svc.domain import harnesses
from agent_svc.domain.tools import SESSION_TOOLS, ToolRules, within
from svckit.errors import AgentNotFound, StartError
from svckit.settings import Settings
from svckit.settings_model import AgentSettings

LARGEST_PROMPT = 256 * 1024
"""Bytes of a prompt file."""

DEFAULT_PROMPT = (
    "You are {agent_id}, an assistant. Answer the newest message, in its language, briefly and "
    "completely."
)
DELEGATION = (
    "You may delegate: sessions_spawn starts a sub-agent. When a request has several independent "
    "parts, start one sub-agent per part, all in one reply, so that they work in parallel; then "
    "join their results into one answer. Never claim that you are not allowed to, and never invent "
    "a result."
)
WORKSPACE = "Your working directory is {workspace}. Your tools read and write files there."
CHILD = (
    "You are a sub-agent: another agent gave you this task and reads your reply. Do only this task "
    "and reply with its result."
)


@dataclass(frozen=True)
class Agent:
    """One configured agent."""

    agent_id: str
    settings: AgentSettings
    # Agents it may spawn, itself included when allowed, each with what it is good for.
    spawnable: Mapping[str, str]
    # Its own prompt, from the configuration or the file that it names. Empty for none.
    prompt: str = ""
    # Absolute. Its tools and harnesses work there; None leaves it to each of them.
    workspace: Path | None = None
    # What its model is told of external coding agents. Empty where none may be started.
    coding_agents: str = ""

    def system_prompt(self, *, depth: int, may_delegate: bool) -> str:
        """What the model is told before anything else."""
        own = self.prompt or DEFAULT_PROMPT.format(agent_id=self.agent_id)
        place = WORKSPACE.format(workspace=self.workspace) if self.workspace else ""
        parts = [own, place, CHILD if depth else "", DELEGATION if may_delegate else ""]
        return "\n\n".join(part for part in parts if part)

    def tool_rules(self, *, depth: int, max_depth: int, ceiling: Sequence[str]) -> ToolRules:
        """What decides the tools of a run of this agent."""
        return ToolRules(
            depth=depth,
            max_depth=max_depth,
            agent_tools=self.settings.tools,
            ceiling=ceiling,
            spawnable=self.spawnable,
            wait_default=self.settings.subagents.wait,
            coding_agents=self.coding_agents,
        )

    def tools(self, offered: Sequence[str] = ()) -> list[str]:
        """Names of the tools it may use where spawning is allowed, and patterns ending in `*`.

        `offered`: what there is beside the session tools.
        """
        every = [*SESSION_TOOLS, *offered]
        return within(every, self.settings.tools) if self.settings.tools else every

    def models(self, override: str = "") -> list[str]:
        """Models to ask, in order: the run's own, or the agent's, then the fallbacks.

        In strict mode nothing stands in for the run's own.
        """
        if override and self.settings.strict_model:
            return [override]
        chosen = override or self.settings.model
        return [chosen, *(name for name in self.settings.fallback_models if name != chosen)]


class Agents:
    """All configured agents, in the order of the file.

    Reads prompts from files and makes workspaces. Raises `StartError`, naming the key.
    """

    def __init__(self, settings: Settings) -> None:
        ids, acp = settings.agents.ids(), settings.acp
        named = acp.allowed_harnesses or tuple(acp.harness)
        coding_agents = harnesses.described(named, acp.default_harness) if acp.enabled else ""
        self._agents: dict[str, Agent] = {}
        for agent_id in ids:
            own = settings.agents.get(agent_id)
            if own is not None:
                spawnable = {
                    name: found.description
                    for name in _spawnable(agent_id, own, ids)
                    if (found := settings.agents.get(name)) is not None
                }
                self._agents[agent_id] = Agent(
                    agent_id,
                    own,
                    spawnable,
                    _prompt(agent_id, own),
                    _workspace(agent_id, own),
                    coding_agents,
                )

    def all(self) -> list[Agent]:
        """Every agent."""
        return list(self._agents.values())

    def get(self, agent_id: str) -> Agent:
        """One agent. Raises `AgentNotFound`."""
        try:
            return self._agents[agent_id]
        except KeyError:
            raise AgentNotFound(
                f"there is no agent {agent_id!r}; [agents.list] names: {', '.join(self._agents)}",
                metadata={"agentId": agent_id},
            ) from None


def _spawnable(agent_id: str, own: AgentSettings, ids: Sequence[str]) -> tuple[str, ...]:
    if not own.allow_agents:
        return (agent_id,)
    if "*" in own.allow_agents:
        return tuple(ids)
    return tuple(name for name in ids if name in own.allow_agents)


def _prompt(agent_id: str, own: AgentSettings) -> str:
    if not own.prompt_file:
        return own.prompt.strip()
    key = f"agents.list.{agent_id}.prompt_file"
    path = Path(own.prompt_file).expanduser()
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_PROMPT + 1)
        text = data.decode("utf-8-sig").strip()
    except OSError as err:
        raise StartError(f"{key}: {path} cannot be read: {err.strerror}") from None
    except UnicodeDecodeError:
        raise StartError(f"{key}: {path} is not text in UTF-8") from None
    if len(data) > LARGEST_PROMPT:
        raise StartError(f"{key}: {path} has more than {LARGEST_PROMPT} bytes")
    if not text:
        raise StartError(f"{key}: {path} is empty")
    return text


def _workspace(agent_id: str, own: AgentSettings) -> Path | None:
    if not own.workspace:
        return None
    key = f"agents.list.{agent_id}.workspace"
    path = Path(own.workspace).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise StartError(f"{key}: {path} is no directory") from None
    except OSError as err:
        raise StartError(f"{key}: {path} cannot be made: {err.strerror}") from None
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise StartError(f"{key}: {path} may not be read and written here")
    return path.resolve()
