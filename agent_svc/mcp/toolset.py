"""The tools of all configured MCP servers, as a toolset.

Whatever a server does, a turn goes on: the model is told of a call that failed, people by a note,
and nothing takes longer than the configuration allows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import msgspec

from agent_svc.domain import mcptools, results
from agent_svc.domain import steps as s
from agent_svc.domain.prompt import ToolSchema
from agent_svc.mcp.content import text_of
from agent_svc.mcp.failures import Broken, Lost, ServerDown, ServerFailure, Slow, ToolError
from agent_svc.mcp.server import Server
from agent_svc.toolsets import Note, Offering
from agent_svc.work import Work
from svckit.clock import Clock
from svckit.errors import StartError
from svckit.logging import get_logger
from svckit.programs import clear_up, owner_name
from svckit.settings import Settings
from svckit.settings_model import McpSettings

CODE = "tool_server_failed"
_UNSURE = "The call may or may not have had its effect: find out before you repeat it."

_log = get_logger("agent.mcp")


class McpTools:
    """Tools of MCP servers. `close` it when done."""

    delegates = False

    def __init__(self, settings: Settings, clock: Clock) -> None:
        if settings.mcp and find_spec("mcp") is None:
            raise StartError(
                f"mcp.{next(iter(settings.mcp))}: tool servers need an optional part: "
                "pip install 'conveyor-suite[mcp]'"
            )
        self._owner = owner_name(
            settings.store, settings.services.agent, settings.agent.worker_name
        )
        self._settings = settings.mcp
        self._clock = clock
        # One of each for every workspace: what works in a directory of one agent is no other's.
        self._servers: dict[tuple[str, Path | None], Server] = {}
        self._choices = {server_id: _choice(own) for server_id, own in settings.mcp.items()}
        self._warned: set[str] = set()
        # What tools were offered as; names lead back to a server and its own name for the tool.
        self._known: dict[
            tuple[Path | None, str], tuple[Server, mcptools.ServerTool, ToolSchema]
        ] = {}

    async def clear_up(self) -> None:
        """End what servers of an earlier life of the service, one that was killed, still run."""
        if self._settings and (killed := await clear_up(self._owner)):
            _log.warning("tool servers of an earlier start were left: killed", processes=killed)

    @property
    def names(self) -> Sequence[str]:
        """A pattern for each server: what it has is known when it runs."""
        return [mcptools.pattern(server_id) for server_id in self._settings]

    async def offer(self, who: Offering) -> list[ToolSchema]:
        """Describe the tools of every server that the run may use, starting those that need it."""
        asked = [
            self._server(server_id, who.agent.workspace)
            for server_id in self._settings
            if who.rules.allows_some(mcptools.pattern(server_id))
        ]
        found = await asyncio.gather(*(self._offer(server, who) for server in asked))
        tools = [tool for tools in found for tool in tools if who.rules.allows(tool.name)]
        if len(tools) > mcptools.MOST_TOOLS:
            left = f"{len(tools) - mcptools.MOST_TOOLS} of {len(tools)} tools are not offered"
            text = f"{left}: providers take few more. Name those that the agent needs in `tools`."
            who.notes.append(Note("too_many_tools", who.agent.agent_id, text))
        return tools[: mcptools.MOST_TOOLS]

    def _server(self, server_id: str, workspace: Path | None) -> Server:
        key = (server_id, workspace)
        if key not in self._servers:
            self._servers[key] = Server(
                server_id, self._settings[server_id], self._owner, self._clock, workspace
            )
        return self._servers[key]

    async def _offer(self, server: Server, who: Offering) -> list[ToolSchema]:
        try:
            tools = await server.tools()
        except ServerDown as down:
            who.notes.append(_note(server.server_id, f"is not available: {down.why}"))
            pattern = mcptools.pattern(server.server_id)
            who.missing[pattern] = _sentence(server.server_id, f"is not available now: {down.why}")
            return []
        choice = self._choices[server.server_id]
        if unknown := sorted(choice.tools.keys() - {tool.name for tool in tools}):
            self._warn_of(server.server_id, unknown)
        offered = mcptools.offered(server.server_id, tools, choice)
        self._known |= {
            (who.agent.workspace, name): (server, tool, schema)
            for name, (tool, schema) in offered.items()
        }
        return [schema for _, schema in offered.values()]

    def _warn_of(self, server_id: str, unknown: Sequence[str]) -> None:
        """Say once that the configuration has rules for tools that a server does not have."""
        if server_id not in self._warned:
            self._warned.add(server_id)
            _log.warning("rules for unknown tools", key=f"mcp.{server_id}.tools", tools=unknown)

    async def run(self, work: Work, call: s.ToolCall) -> s.Returned:
        """Call a tool that was offered. What goes wrong is the result."""
        server, tool, schema = self._known[work.agent.workspace, call.name]
        try:
            arguments = msgspec.json.decode(call.arguments or "{}")
        except (msgspec.DecodeError, RecursionError):
            return s.Returned(call.id, "The arguments are not valid JSON.", failed=True)
        if not isinstance(arguments, dict):
            return s.Returned(call.id, "The arguments must be a JSON object.", failed=True)
        repeatable = schema.policy.idempotent
        try:
            result = await server.call(tool.name, arguments, repeatable=repeatable)
        except ToolError as refused:
            # The server is in order, and says what is wrong with the call.
            return s.Returned(call.id, results.show_tool(call.name, refused.why), failed=True)
        except ServerFailure as failure:
            _log.warning(
                "tool call failed",
                server=server.server_id,
                tool=tool.name,
                problem=failure.why,
            )
            await work.note(_note(server.server_id, f"failed a call: {failure.why}"))
            return s.Returned(
                call.id, _told(server.server_id, failure, unsure=not repeatable), failed=True
            )
        text = results.show_tool(call.name, text_of(result))
        return s.Returned(call.id, text, failed=bool(result.is_error))

    async def close(self) -> None:
        """Stop all servers, at once."""
        await asyncio.gather(*(server.close() for server in self._servers.values()))


def _choice(own: McpSettings) -> mcptools.ServerChoice:
    return mcptools.ServerChoice(
        own.approval,
        {
            name: mcptools.ToolChoice(tool.approval, tool.idempotent)
            for name, tool in own.tools.items()
        },
    )


def _sentence(server_id: str, what: str) -> str:
    return f"The tool server {server_id!r} {what}."


def _note(server_id: str, what: str) -> Note:
    return Note(CODE, server_id, _sentence(server_id, what))


def _told(server_id: str, failure: ServerFailure, *, unsure: bool) -> str:
    """What the model is told about a call that has no result."""
    if isinstance(failure, Slow | Lost | Broken):
        what = _sentence(server_id, f"failed: {failure.why}")
        return f"{what} {_UNSURE}" if unsure else what
    return _sentence(server_id, f"is not available now: {failure.why}")
