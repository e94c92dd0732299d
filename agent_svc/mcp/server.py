"""A configured MCP server: started at its first use, kept, and started again when it has ended.

One process serves all turns, whoever's they are. Between failures there are pauses, so that a
server that cannot start costs one turn its time and the next ones nothing.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent_svc.domain.mcptools import ServerTool
from agent_svc.mcp.failures import Lost, ServerDown, Slow, ToolError
from svckit.clock import Clock
from svckit.logging import get_logger
from svckit.settings_model import McpSettings

if TYPE_CHECKING:
    from mcp_types import CallToolResult

    from agent_svc.mcp.connection import Connection

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0

_log = get_logger("agent.mcp")


class Server:
    """One server of the configuration. Safe for concurrent use; `close` it when done.

    It works in `workspace`, left out where the service was started.
    """

    def __init__(
        self,
        server_id: str,
        settings: McpSettings,
        owner: str,
        clock: Clock,
        workspace: Path | None = None,
    ) -> None:
        self.server_id = server_id
        self._workspace = workspace
        self._owner = owner
        self.settings = settings
        self._clock = clock
        # The one that is open; and the one that is being opened, so that it can be closed too.
        self._connection: Connection | None = None
        self._starting: Connection | None = None
        self._opening: asyncio.Task[Connection] | None = None
        self._tools: list[ServerTool] = []
        self._failures = 0
        self._not_before_us = 0
        self._why = ""
        self._closed = False
        self._checking: asyncio.Task[None] | None = None
        self._closings: set[asyncio.Task[None]] = set()

    async def tools(self) -> list[ServerTool]:
        """Its tools; starts it if need be. Raises `ServerDown`."""
        connection = await self._connected()
        if connection.tools_changed:
            self._tools = await connection.list_tools()
        return self._tools

    async def call(
        self, tool: str, arguments: dict[str, Any], *, repeatable: bool
    ) -> CallToolResult:
        """Call one of its tools. A `repeatable` call that lost its server is made once more.

        Takes at most the time that a call may take, and that of a start. Raises a `ServerFailure`.
        """
        until_us = self._clock.now_us() + round(self.settings.timeout_seconds * 1e6)
        tries = 2 if repeatable else 1
        while True:
            connection = await self._connected()
            tries -= 1
            try:
                seconds = max(0.1, (until_us - self._clock.now_us()) / 1e6)
                result = await connection.call(tool, arguments, seconds)
            except Lost as lost:
                self._drop(connection, lost.why)
                if not tries:
                    raise
            except Slow:
                self._doubt(connection)
                raise
            except ToolError:
                # Over HTTP this may be a server that started anew and knows our session no more.
                if self.settings.url:
                    self._doubt(connection)
                raise
            else:
                self._failures = 0
                return result

    async def close(self) -> None:
        """Stop it for good. Nothing of it is left when this returns."""
        self._closed = True
        for task in (self._checking, self._opening):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        for connection in (self._connection, self._starting):
            if connection is not None:
                _keep(self._closings, connection.close())
        await asyncio.gather(*self._closings, return_exceptions=True)

    async def _connected(self) -> Connection:
        if self._checking is not None:
            # Rather wait for the news than hand another call to a server that hangs.
            await asyncio.wait({self._checking})
        if self._closed:
            raise ServerDown("the service is stopping")
        if self._connection is not None:
            if not self._connection.over:
                return self._connection
            self._drop(self._connection, "it ended")
        if self._opening is None:
            if self._clock.now_us() < self._not_before_us:
                raise ServerDown(self._why)
            self._opening = asyncio.create_task(self._open(), name=f"mcp {self.server_id} opens")
            # Known also when everybody who waited for it was cancelled meanwhile.
            self._opening.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            # Whoever is cancelled here leaves the start to those who wait for it too.
            return await asyncio.shield(self._opening)
        except asyncio.CancelledError:
            if self._closed:
                raise ServerDown("the service is stopping") from None
            raise

    async def _open(self) -> Connection:
        try:
            # In a thread: leases must be extended while a second of imports runs.
            module = await asyncio.to_thread(importlib.import_module, "agent_svc.mcp.connection")
            connection: Connection = module.Connection(
                self.server_id, self.settings, self._owner, self._workspace
            )
            self._starting = connection
            self._tools = await connection.open()
        except ServerDown as down:
            self._failed(down.why, FIRST_PAUSE)
            if self._starting is not None:
                _keep(self._closings, self._starting.close())
                self._starting = None
            raise
        except ImportError as err:
            _log.error("the MCP SDK cannot be loaded", exc_info=err)
            self._failed("the MCP SDK cannot be loaded", LONGEST_PAUSE)
            raise ServerDown(self._why) from err
        finally:
            self._opening = None
        self._connection, self._starting = connection, None
        _log.info("tool server started", server=self.server_id, tools=len(self._tools))
        return connection

    def _drop(self, connection: Connection, why: str) -> None:
        """Give up a server that worked: whoever comes next starts it again, the first time soon."""
        if self._connection is connection:
            self._connection = None
            self._failed(why, 0)
        _keep(self._closings, connection.close())

    def _failed(self, why: str, first_pause: float) -> None:
        pause = min(LONGEST_PAUSE, 2.0 ** (self._failures - 1)) if self._failures else first_pause
        self._failures += 1
        self._why = why
        self._not_before_us = self._clock.now_us() + round(pause * 1e6)

    def _doubt(self, connection: Connection) -> None:
        """Find out, beside the turn, whether a server that did not do as told still lives."""

        async def check() -> None:
            try:
                await connection.list_tools()
            except ServerDown as down:
                _log.warning("tool server given up", server=self.server_id, problem=down.why)
                self._drop(connection, down.why)
            finally:
                self._checking = None

        # While others wait for it too, the last of them finds out.
        if not connection.in_flight and self._checking is None:
            self._checking = asyncio.create_task(check(), name=f"mcp {self.server_id} checked")


def _keep(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
