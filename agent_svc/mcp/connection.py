"""One life of an MCP server: from its start to its end, in a task of its own.

The SDK's client must be entered and left by one task, and a server is used by many turns. So the
task holds it, and turns only hand it calls. A call is bounded from outside: whatever the SDK or the
server do, the turn has its answer in time.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx2
import mcp_types
import structlog
from mcp import Client, MCPError
from opentelemetry import trace
from pydantic import FileUrl, ValidationError

from agent_svc.domain.mcptools import MOST_TOOLS, ServerTool
from agent_svc.mcp import stdio
from agent_svc.mcp.failures import Broken, Lost, ServerDown, Slow, ToolError
from svckit.errors import StartError
from svckit.logging import get_logger
from svckit.programs import Program, environment
from svckit.secrets import read_secret_file
from svckit.settings_model import McpSettings

if TYPE_CHECKING:
    from mcp.client._transport import Transport
    from mcp_types import CallToolResult

ALIVE_SECONDS = 5.0
LAST_WORDS_SECONDS = 1.0
LOOK_SECONDS = 0.5
CLOSE_SECONDS = 6.0
MOST_PAGES = 20
CLIENT = mcp_types.Implementation(name="conveyor", version="1")

T = TypeVar("T")

_log = get_logger("agent.mcp")


class Connection:
    """A server that was started, or reached. `open` it, and `close` it."""

    def __init__(
        self, server_id: str, settings: McpSettings, owner: str, workspace: Path | None = None
    ) -> None:
        self._id = server_id
        self._workspace = workspace
        self._owner = owner
        self._settings = settings
        loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[list[ServerTool]] = loop.create_future()
        self._over: asyncio.Future[str] = loop.create_future()
        self._leave = asyncio.Event()
        self._client: Client | None = None
        self._program: Program | None = None
        self._living: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._abandoned: set[asyncio.Task[Any]] = set()
        self.in_flight = 0
        self.tools_changed = False

    @property
    def over(self) -> bool:
        """True once nothing can be called any more."""
        return self._over.done() or self._leave.is_set()

    async def open(self) -> list[ServerTool]:
        """Start it and list its tools. Raises `ServerDown`, in time."""
        with _unrecorded():
            self._living = asyncio.create_task(self._live(), name=f"mcp {self._id}")
        # The task keeps the time itself; the second is for what does not heed it.
        limit = self._settings.start_timeout_seconds + 1
        first: set[asyncio.Future[Any]] = {self._opened, self._over}
        await asyncio.wait(first, timeout=limit, return_when="FIRST_COMPLETED")
        if self._opened.done():
            return self._opened.result()
        if self._over.done():
            raise ServerDown(self._over.result())
        self._leave.set()
        self._living.cancel()
        raise ServerDown(self._not_in_time())

    async def list_tools(self) -> list[ServerTool]:
        """List its tools anew. Raises `ServerDown`."""
        self.tools_changed = False
        client = self._client
        if client is None or self.over:
            raise ServerDown("it is being stopped")
        try:
            return await self._bounded(_list(client), ALIVE_SECONDS)
        except (Lost, Slow, Broken, ToolError) as err:
            raise ServerDown(err.why) from err

    async def call(self, tool: str, arguments: dict[str, Any], seconds: float) -> CallToolResult:
        """Call a tool. Raises `Lost`, `Slow`, `Broken` or `ToolError`, in time."""
        client = self._client
        if client is None or self.over:
            raise Lost("it is being stopped")
        self.in_flight += 1
        try:
            return await self._bounded(client.call_tool(tool, arguments), seconds)
        finally:
            self.in_flight -= 1

    async def close(self) -> None:
        """Stop it. Nothing of it is left when this returns."""
        self._leave.set()
        if self._living is None:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await asyncio.shield(self._living)
        self._living.cancel()
        left = [self._living, *self._abandoned, *([self._stopping] if self._stopping else [])]
        await asyncio.gather(*left, return_exceptions=True)

    async def _bounded(self, request: Coroutine[Any, Any, T], seconds: float) -> T:
        """Wait for an answer, the end of the server, or the end of the time."""
        with _unrecorded():
            asking = asyncio.create_task(request)
        try:
            first: set[asyncio.Future[Any]] = {asking, self._over}
            await asyncio.wait(first, timeout=seconds, return_when="FIRST_COMPLETED")
            if not asking.done():
                if self._over.done():
                    raise Lost(self._over.result())
                raise Slow(f"it did not answer within {seconds:.3g} s")
            try:
                return asking.result()
            except MCPError as err:
                if err.code == mcp_types.CONNECTION_CLOSED:
                    raise Lost(await self._last_words()) from err
                raise ToolError(err.message) from err
            except (ValidationError, RuntimeError, ValueError) as err:
                # The SDK checks results against the protocol and the tool's own schema.
                raise Broken("it answered with something that is no valid result") from err
            except Exception as err:
                raise Lost(describe(err)) from err
        finally:
            if not asking.done():
                # Leaving a call can take the SDK seconds: nobody waits for that.
                asking.cancel()
                self._abandoned.add(asking)
                asking.add_done_callback(self._abandoned.discard)
                asking.add_done_callback(_forget)

    async def _last_words(self) -> str:
        """Why the connection closed: its end is noticed by two tasks, one of which knows more."""
        over: set[asyncio.Future[Any]] = {self._over}
        await asyncio.wait(over, timeout=LAST_WORDS_SECONDS)
        return self._over.result() if self._over.done() else "the connection was closed"

    async def _live(self) -> None:
        try:
            async with self._transport() as transport:
                # Those who wait are told before a program is stopped, which may take a while.
                self._conclude(await self._use(transport))
        except asyncio.CancelledError:
            self._conclude("it was stopped")
        except OSError as err:
            self._conclude(f"it cannot be started: {err.strerror or 'unknown reason'}")
        except Exception as err:
            self._conclude(describe(err))

    async def _use(self, transport: Transport) -> str:
        """Be a client until the end; returns why it came."""
        limit = self._settings.start_timeout_seconds
        try:
            async with (
                asyncio.timeout(limit) as started,
                Client(
                    transport,
                    cache=None,
                    client_info=CLIENT,
                    message_handler=self._heard,
                    list_roots_callback=self._roots if self._workspace else None,
                ) as client,
            ):
                tools = await _list(client)
                started.reschedule(None)
                self._client = client
                self._opened.set_result(tools)
                # From here on it belongs to all turns, not to the one that started it.
                structlog.contextvars.clear_contextvars()
                await self._until_the_end()
        except TimeoutError:
            return self._not_in_time()
        except Exception as err:
            # A program that has ended explains more than the connection that it broke.
            if self._program is None or not await self._program.ended(LAST_WORDS_SECONDS):
                return describe(err)
        return self._ended()

    def _conclude(self, why: str) -> None:
        self._client = None
        if self._over.done():
            return
        self._over.set_result(why)
        if not self._leave.is_set():
            words = self._program.last_words if self._program is not None else []
            _log.warning("tool server failed", server=self._id, problem=why)
            # Whatever it printed, arguments of calls included: only for who asks for everything.
            _log.debug("last words of a tool server", server=self._id, stderr=words[-5:])

    async def _until_the_end(self) -> None:
        """Until it is told to leave, or its program ends or says nothing more."""
        if self._program is None:
            await self._leave.wait()
            return
        waits = [
            asyncio.create_task(self._leave.wait()),
            asyncio.create_task(self._program.quiet.wait()),
        ]
        try:
            # Its output stays open while something that it started holds it: so look now and then.
            while self._program.exit_code is None and not any(wait.done() for wait in waits):
                await asyncio.wait(waits, timeout=LOOK_SECONDS, return_when="FIRST_COMPLETED")
        finally:
            for wait in waits:
                wait.cancel()
        if not self._leave.is_set():
            await self._program.ended(LAST_WORDS_SECONDS)

    @asynccontextmanager
    async def _transport(self) -> AsyncIterator[Transport]:
        if self._settings.url:
            from mcp.client.streamable_http import streamable_http_client

            headers = _resolved(self._settings.headers_env, "headers_env")
            headers |= await asyncio.to_thread(_read, self._settings.headers_file, "headers_file")
            timeout = httpx2.Timeout(30, read=self._settings.timeout_seconds + 30)
            async with httpx2.AsyncClient(headers=headers, timeout=timeout) as http:
                yield streamable_http_client(self._settings.url, http_client=http)
            return
        secret = _resolved(self._settings.env_from, "env_from")
        secret |= await asyncio.to_thread(_read, self._settings.env_from_file, "env_from_file")
        env = environment(os.environ, self._settings.env | secret)
        program = await Program.start(
            self._settings.command,
            env,
            owner=self._owner,
            secrets=secret.values(),
            directory=self._workspace,
        )
        self._program = program
        try:
            yield stdio.streams(program)
        finally:
            # In a task of its own: whoever is cancelled here must not leave it running.
            self._stopping = asyncio.create_task(program.stop())
            await asyncio.shield(self._stopping)

    async def _roots(self, context: object) -> mcp_types.ListRootsResult:
        """Where a server may read and write, for those that ask."""
        found = [self._workspace] if self._workspace else []
        roots = [mcp_types.Root(uri=FileUrl(path.as_uri()), name=path.name) for path in found]
        return mcp_types.ListRootsResult(roots=roots)

    async def _heard(self, message: object) -> None:
        if isinstance(message, mcp_types.ToolListChangedNotification):
            self.tools_changed = True

    def _ended(self) -> str:
        if self._leave.is_set():
            return "it was stopped"
        code = self._program.exit_code if self._program is not None else None
        if code is None:
            return "the connection was closed"
        return f"it was ended by signal {-code}" if code < 0 else f"it ended with exit code {code}"

    def _not_in_time(self) -> str:
        return f"it was not ready within {self._settings.start_timeout_seconds:g} s"


async def _list(client: Client) -> list[ServerTool]:
    found: list[ServerTool] = []
    cursor: str | None = None
    for _ in range(MOST_PAGES):
        page = await client.list_tools(cursor=cursor)
        for tool in page.tools:
            hints = tool.annotations
            found.append(
                ServerTool(
                    tool.name,
                    tool.description or tool.title or "",
                    tool.input_schema,
                    read_only=bool(hints and hints.read_only_hint),
                    idempotent=bool(hints and hints.idempotent_hint),
                )
            )
        cursor = page.next_cursor
        if cursor is None or len(found) > MOST_TOOLS:
            break
    return found


def describe(err: BaseException) -> str:
    """Say what went wrong in words of ours: an exception's text may hold anything."""
    while isinstance(err, BaseExceptionGroup):
        err = err.exceptions[0]
    if isinstance(err, MissingSecret):
        return str(err)
    if isinstance(err, MCPError):
        if err.code == mcp_types.CONNECTION_CLOSED:
            return "the connection was closed"
        return f"it refused to begin (code {err.code})"
    if isinstance(err, httpx2.TimeoutException):
        return "it did not answer in time"
    if isinstance(err, httpx2.TransportError):
        return "it cannot be reached"
    if isinstance(err, ValidationError):
        return "it answered with something that is no valid message"
    return f"the connection failed ({type(err).__name__})"


class MissingSecret(Exception):
    """A secret cannot be had from where the configuration says. The text is for people."""


def _resolved(named: Mapping[str, str], key: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, variable in named.items():
        if (value := os.environ.get(variable)) is None:
            raise MissingSecret(f"the variable {variable}, named in {key}, is not set")
        found[name] = value
    return found


def _read(files: Mapping[str, str], key: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, file in files.items():
        try:
            found[name] = read_secret_file(key, file)
        except StartError:
            text = f"the file that {key}.{name} names cannot be read, or is empty"
            raise MissingSecret(text) from None
    return found


@contextmanager
def _unrecorded() -> Iterator[None]:
    """Keep the SDK's spans out of the traces: they hold what servers say. Ours has the facts.

    The server still learns which trace it is part of.
    """
    now = trace.get_current_span().get_span_context()
    quiet = trace.SpanContext(now.trace_id, now.span_id, False, trace.TraceFlags(0))
    with trace.use_span(trace.NonRecordingSpan(quiet)):
        yield


def _forget(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()
