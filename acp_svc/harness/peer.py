"""A harness process that speaks the protocol, from its start to its end."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from acp import RequestError, connect_to_agent

from acp_svc import machine
from acp_svc.domain import preflight
from acp_svc.domain.install import install_command
from acp_svc.domain.registry import COMMON_ENV_NAMES, Harness
from acp_svc.domain.sandboxing import needs_sandbox
from acp_svc.harness import sandbox
from acp_svc.harness.client import HarnessClient
from acp_svc.harness.offers import Offers
from acp_svc.harness.types import Order, PermissionRequest, Update
from acp_svc.harness.wire import Wire
from svckit.errors import (
    AcpBackendMissing,
    AcpBackendUnavailable,
    AcpSessionInitFailed,
    StartError,
)
from svckit.programs import Program, environment
from svckit.secrets import read_secret_file

AUTH_REQUIRED = -32000
"""The only error code that all harnesses mean the same by."""
LINE_BYTES = 50 * 1024 * 1024
WORDS_BYTES = 1500
SAID_CHARS = 500
SECRET_CHARS = 8
"""Shorter values of variables are no secrets, and would blot out half of what is said."""
LAST_OUTPUT_SECONDS = 1.0
"""How long what a process wrote before it ended may take to be read."""

T = TypeVar("T")


class Gone(Exception):
    """The process ended, or nothing more can be read from it."""


class Work(Protocol):
    """Follows what a harness does."""

    def updated(self, update: Update) -> None:
        """Take an update."""
        ...

    async def decide(self, request: PermissionRequest) -> str | None:
        """Decide on a permission; None for cancelled."""
        ...


class Peer:
    """A running harness. Make it with `start`, and always `stop` it."""

    def __init__(self, program: Program, *, sandboxed: bool, variables: frozenset[str]) -> None:
        self._program = program
        self.variables = variables
        """Names of the variables that it was given."""
        self.sandboxed = sandboxed
        self.offers = Offers()
        self.wire = Wire(program, self._updated)
        self.session_id = ""
        """The harness's own id of its session. Empty until it is open."""
        self.work: Work | None = None
        """Who follows what it does. None mutes it."""
        self.moved: Callable[[], None] = lambda: None
        """Called when it told of its mode or its options."""
        self._gone = asyncio.Event()
        self._stopping: asyncio.Task[None] | None = None
        client: Any = HarnessClient(self._decide)
        self.conn = connect_to_agent(client, self.wire)
        self._watching = asyncio.create_task(self._watch(), name="end of a harness")

    @classmethod
    async def start(cls, order: Order, owner: str, walls: sandbox.Sandbox) -> Peer:
        """Start the process.

        Raises `AcpBackendMissing`, `AcpBackendUnavailable`, and `AcpSessionInitFailed` when it has
        to be shut in and cannot.
        """
        harness = order.harness
        found = machine.find_program(harness.program)
        if found is None:
            install = install_command(harness.installer, machine.this_system())
            refusal = preflight.missing_backend(harness, install)
            raise AcpBackendMissing(refusal.message, metadata=refusal.metadata)
        passed = {
            name: os.environ[name]
            for name in (*COMMON_ENV_NAMES, *harness.env_names, *order.env_names)
            if name in os.environ
        } | dict(harness.env)
        passed |= await asyncio.to_thread(_from_files, harness)
        env = environment(os.environ, passed)
        command = [str(found), *harness.command[1:]]
        bwrap = await _walls_for(order, walls)
        if bwrap:
            command = await asyncio.to_thread(
                sandbox.walled, bwrap, harness, command, order.cwd, env
            )
        try:
            program = await Program.start(
                command,
                env,
                owner=owner,
                secrets=[value for value in passed.values() if len(value) >= SECRET_CHARS],
                directory=order.cwd,
                line_bytes=LINE_BYTES,
            )
        except OSError:
            if not await asyncio.to_thread(order.cwd.is_dir):
                raise AcpSessionInitFailed(
                    "its working directory does not exist any more",
                    metadata={"harnessId": harness.harness_id, "cause": "initialize"},
                ) from None
            raise AcpBackendUnavailable(
                f"{harness.display_name} is installed but cannot be started",
                metadata={"harnessId": harness.harness_id, "check": "starts"},
            ) from None
        return cls(program, sandboxed=bool(bwrap), variables=frozenset(passed))

    @property
    def pid(self) -> int:
        """Its process, and its process group."""
        return self._program.pid

    @property
    def alive(self) -> bool:
        """False once nothing more can come from it."""
        return not self._gone.is_set() and self._stopping is None

    @property
    def stopped(self) -> bool:
        """True once `stop` was called."""
        return self._stopping is not None

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it runs. Negative for a signal."""
        return self._program.exit_code

    @property
    def last_words(self) -> str:
        """The last lines of its error output, without secrets, at most `WORDS_BYTES`."""
        return self.words()

    def words(self, error: RequestError | None = None) -> str:
        """Return its last words, and before them what an error answer of it says."""
        lines = list(self._program.last_words)
        if error is not None:
            # Blotted before it is cut: half a secret would not be found.
            lines.append(_short(self._program.blotted(_said(error))))
        text = "\n".join(line for line in lines if line).encode()[-WORDS_BYTES:]
        return text.decode(errors="ignore")

    async def gone(self) -> None:
        """Wait until nothing more can come from it."""
        await self._gone.wait()

    async def last_exit_code(self) -> int | None:
        """Return how it ended, once it is `gone`; None when it lives on and only fell silent."""
        if await self._program.ended(LAST_OUTPUT_SECONDS):
            await self._program.drained(LAST_OUTPUT_SECONDS)
        return self._program.exit_code

    def give_up(self) -> None:
        """Expect nothing more from it."""
        self._gone.set()

    async def ask(self, call: Coroutine[Any, Any, T]) -> T:
        """Return its answer. Raises `Gone`, `RequestError`, and `ValidationError` for nonsense."""
        answer = asyncio.ensure_future(call)
        gone = asyncio.ensure_future(self._gone.wait())
        try:
            await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise Gone
            return answer.result()
        except ConnectionError:
            raise Gone from None
        finally:
            answer.cancel()
            gone.cancel()
            await asyncio.gather(answer, gone, return_exceptions=True)

    async def stop(self) -> None:
        """End the process and all that it started. May be called again, and at any time."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(), name="stop of a harness")
        await asyncio.shield(self._stopping)

    async def _stop(self) -> None:
        self._gone.set()
        try:
            # Whoever is asked for permission is told that it is over.
            with contextlib.suppress(Exception):
                await self.conn.close()
        finally:
            await self._program.stop()
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    async def _watch(self) -> None:
        """Set `_gone` when it falls silent, or ends while another holds its output open."""
        quiet = asyncio.ensure_future(self._program.quiet.wait())
        exited = asyncio.ensure_future(self._program.exited.wait())
        try:
            await asyncio.wait({quiet, exited}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({quiet}, timeout=LAST_OUTPUT_SECONDS)
        finally:
            quiet.cancel()
            exited.cancel()
        # What was read last is worked on by the SDK's own task.
        await asyncio.sleep(0)
        self._gone.set()

    def _updated(self, session_id: str, update: Update) -> None:
        if self.session_id and session_id != self.session_id:
            return
        if self.offers.heard(update):
            self.moved()
        if self.work is not None:
            self.work.updated(update)

    async def _decide(self, session_id: str, request: PermissionRequest) -> str | None:
        if self.work is None or session_id != self.session_id:
            return None
        return await self.work.decide(request)


def _from_files(harness: Harness) -> dict[str, str]:
    """What the process sees of secrets in files. Read at every start, so that they may change."""
    found: dict[str, str] = {}
    for name, file in harness.env_from_file.items():
        setting = f"acp.harness.{harness.harness_id}.env_from_file.{name}"
        try:
            found[name] = read_secret_file(setting, file)
        except StartError:
            raise AcpBackendUnavailable(
                f"the file that {setting} names cannot be read, or is empty",
                metadata={"harnessId": harness.harness_id, "check": "starts"},
            ) from None
    return found


async def _walls_for(order: Order, walls: sandbox.Sandbox) -> str:
    """Return the program that shuts it in; empty when it is not to be."""
    if order.sandbox == "off" or not needs_sandbox(order.permission_mode):
        return ""
    found = await walls.availability()
    if not found.bwrap and order.sandbox == "require":
        raise AcpSessionInitFailed(
            f"with permissions {order.permission_mode.value} it has to run in a sandbox, and "
            f"{found.problem}; {found.hint or 'see acp doctor'}, or set acp.sandbox = 'auto'",
            metadata={"harnessId": order.harness.harness_id, "cause": "permission_mode"},
        )
    return found.bwrap


def _said(error: RequestError) -> str:
    """Return what an error answer says."""
    parts = [str(error)]
    if isinstance(error.data, dict):
        parts += [value for value in error.data.values() if isinstance(value, str)]
    elif isinstance(error.data, str):
        parts.append(error.data)
    return ": ".join(part for part in parts if part)


def _short(text: str) -> str:
    """Return a text on one line."""
    return "".join(c if c.isprintable() else " " for c in text).strip()[:SAID_CHARS]
