"""Makes the doctor's checks in their order. What follows from a check is in `domain.checks`.

It opens a session in each harness that is installed, in an empty directory, and sends no prompt:
prompts cost money.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from acp_svc import machine
from acp_svc.domain.checks import Check, Finding, Made, Status, blocked, completed, excused
from acp_svc.domain.install import install_command
from acp_svc.domain.permissions import PermissionMode
from acp_svc.domain.registry import Harness
from acp_svc.domain.sandboxing import needs_sandbox
from acp_svc.harness.connection import WALLS
from acp_svc.harness.opening import Opening
from acp_svc.harness.peer import Gone, Peer
from acp_svc.harness.types import Order
from svckit.errors import ServiceError
from svckit.grpc import deadline
from svckit.settings_model import AcpSettings

MOST_AT_ONCE = 3
MOST_SECONDS = 55.0
"""For everything; the call itself has a deadline."""
SPARE_SECONDS = 5.0
"""Of that for stopping what was started."""
WORD_CHARS = 200


class Doctor:
    """Examines the service and its harnesses."""

    def __init__(self, settings: AcpSettings, owner: str) -> None:
        self._settings = settings
        self._owner = owner

    async def examine(self, harnesses: Sequence[Harness], wanted: Sequence[str]) -> list[Made]:
        """Check the service, then harness by harness, then what they need.

        A harness that fails does not stop the others. `wanted` are the ids of those that have to
        be there. Starts processes, and leaves none.
        """
        enabled = Made(Check.ENABLED, "", self._enabled())
        off = Check.ENABLED if enabled.finding.status is Status.FAILED else None
        until = time.monotonic() + (deadline.remaining() or MOST_SECONDS) - SPARE_SECONDS
        few = asyncio.Semaphore(MOST_AT_ONCE)

        async def one(harness: Harness) -> list[Made]:
            if off is not None:
                return completed(harness.harness_id, [], off)
            async with few:
                return await self._examine(harness, until)

        found = await asyncio.gather(*(one(harness) for harness in harnesses))
        made = [enabled, *(line for lines in found for line in lines)]
        if off is not None:
            made += [
                Made(check, "", blocked(off)) for check in (Check.WORKSPACE_ROOTS, Check.SANDBOX)
            ]
        else:
            roots = check_roots(self._settings.workspace_roots)
            made.append(Made(Check.WORKSPACE_ROOTS, "", roots))
            began = time.monotonic()
            made.append(Made(Check.SANDBOX, "", await self._sandbox(), time.monotonic() - began))
        return excused(made, wanted)

    def _enabled(self) -> Finding:
        if self._settings.enabled:
            return Finding(Status.OK, "ACP is switched on")
        return Finding(
            Status.FAILED,
            "ACP is switched off",
            "ACP_DISABLED",
            "set acp.enabled = true in the configuration",
        )

    async def _examine(self, harness: Harness, until: float) -> list[Made]:
        examination = _Examination(harness)
        found = machine.find_program(harness.program)
        if found is None:
            examination.failed(
                Check.COMMAND_FOUND,
                f"{harness.program} was not found on the search path",
                "ACP_BACKEND_MISSING",
                install_command(harness.installer, machine.this_system()),
            )
            return examination.lines()
        examination.ok(Check.COMMAND_FOUND, str(found))
        said = await machine.ask_version(found, harness.version_arguments, harness.env)
        if said.text:
            examination.ok(Check.VERSION, said.text)
        else:
            examination.add(
                Check.VERSION,
                Finding(
                    # Some programs have no version to tell and work all the same.
                    Status.WARNING if said.runs else Status.FAILED,
                    f"{harness.program} {said.problem}",
                    "ACP_BACKEND_UNAVAILABLE",
                    f"run `{harness.program} {' '.join(harness.version_arguments)}` to see why",
                ),
            )
        if not examination.over:
            with TemporaryDirectory(prefix="conveyor-doctor-", ignore_cleanup_errors=True) as path:
                await self._try(examination, Path(path), until)
        return examination.lines()

    async def _try(self, examination: _Examination, cwd: Path, until: float) -> None:
        """Start it and open a session."""
        harness = examination.harness
        order = Order(
            session_id="doctor",
            harness=harness,
            cwd=cwd,
            permission_mode=PermissionMode(self._settings.permission_mode),
            sandbox=self._settings.sandbox,
        )
        seconds = max(1.0, min(self._settings.handshake_seconds, until - time.monotonic()))
        try:
            peer = await Peer.start(order, self._owner, WALLS)
        except ServiceError as error:
            shut = error.metadata.get("cause") == "permission_mode"
            if shut:
                for check in (Check.STARTS, Check.INITIALIZE, Check.AUTHENTICATION):
                    examination.add(check, blocked(Check.SANDBOX))
            examination.refused(Check.PERMISSION_MODE if shut else Check.STARTS, error)
            return
        opening = Opening(peer, harness)
        try:
            async with asyncio.timeout(seconds):
                await self._open(examination, opening, order, peer)
        except Exception as error:
            typed = await opening.failed(error, seconds)
            if examination.next is Check.STARTS and not isinstance(error, Gone):
                examination.ok(Check.STARTS, f"process {peer.pid}")
            examination.refused(examination.next, typed)
        finally:
            await peer.stop()

    async def _open(
        self, examination: _Examination, opening: Opening, order: Order, peer: Peer
    ) -> None:
        harness = examination.harness
        await opening.greet()
        examination.ok(Check.STARTS, f"process {peer.pid}")
        name = f"{opening.agent_name} {opening.agent_version}".strip() or "it does not say its name"
        again = "opens sessions again" if opening.resumes or opening.loads else "has no memory"
        examination.ok(Check.INITIALIZE, f"{name}; {again} after a restart")
        if opening.agent_version:
            # What it says of itself is right also of a program that an interpreter runs, and of
            # one that knows no `--version`.
            examination.correct(Check.VERSION, opening.agent_version)
        await opening.enter(order)
        signs = login_signs(harness)
        if signs is None:
            examination.ok(Check.AUTHENTICATION, "it opened a session")
        elif signs:
            examination.ok(Check.AUTHENTICATION, f"it opened a session, and there is {signs}")
        else:
            examination.failed(
                Check.AUTHENTICATION,
                "no sign of a login: it opens sessions without, and then fails at the first prompt",
                "ACP_SESSION_INIT_FAILED",
                harness.login,
            )
            return
        await opening.settle(order)
        mode = peer.offers.mode
        examination.ok(
            Check.PERMISSION_MODE,
            f"{order.permission_mode.value}"
            + (f"; its own mode is {mode!r}" if mode else "")
            + ("; shut in a sandbox" if peer.sandboxed else ""),
        )

    async def _sandbox(self) -> Finding:
        setting = self._settings.sandbox
        if setting == "off":
            return Finding(
                Status.WARNING,
                "switched off: deny-all and approve-reads hold only as far as a harness asks",
                hint='set acp.sandbox = "auto"',
            )
        found = await WALLS.availability(fresh=True)
        if found.bwrap:
            return Finding(
                Status.OK,
                f"{found.bwrap}: deny-all and approve-reads are enforced from outside the harness",
            )
        needed = setting == "require" and needs_sandbox(
            PermissionMode(self._settings.permission_mode)
        )
        return Finding(
            Status.FAILED if needed else Status.WARNING,
            f"{found.problem}: deny-all and approve-reads hold only as far as a harness asks",
            "ACP_SESSION_INIT_FAILED" if needed else "",
            found.hint,
        )


class _Examination:
    """The lines of one harness, up to its first failure."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.over = False
        self._made: list[Made] = []
        self._began = time.monotonic()

    @property
    def next(self) -> Check:
        """The check that is at work."""
        order = list(Check)
        return order[order.index(self._made[-1].check) + 1] if self._made else Check.COMMAND_FOUND

    def add(self, check: Check, finding: Finding) -> None:
        """Add a line; it took as long as the time since the last one."""
        now = time.monotonic()
        self._made.append(Made(check, self.harness.harness_id, finding, now - self._began))
        self._began = now
        self.over = self.over or finding.status is Status.FAILED

    def ok(self, check: Check, message: str) -> None:
        """Add a good one."""
        self.add(check, Finding(Status.OK, message))

    def correct(self, check: Check, message: str) -> None:
        """Put a good finding in the place of one that was made before."""
        self._made = [
            replace(one, finding=Finding(Status.OK, message)) if one.check is check else one
            for one in self._made
        ]

    def failed(self, check: Check, message: str, code: str, hint: str) -> None:
        """Add the failure that ends it."""
        self.add(check, Finding(Status.FAILED, message, code, hint))

    def refused(self, check: Check, error: ServiceError) -> None:
        """Add the failure that ends it, from an error and the last that the harness said."""
        words = error.metadata.get("lastWords", "").splitlines()
        said = f"; it said: {words[-1][:WORD_CHARS]}" if words else ""
        hint = self.harness.login if error.metadata.get("cause") == "auth_required" else ""
        self.failed(check, f"{error.message}{said}", error.reason, hint)

    def lines(self) -> list[Made]:
        """Return all lines."""
        return completed(self.harness.harness_id, self._made)


def login_signs(harness: Harness) -> str | None:
    """Return what says that somebody is logged in; empty for nothing.

    None where the harness tells of itself when nobody is, which is better.
    """
    if not harness.login_env and not harness.login_files:
        return None
    for name in harness.login_env:
        given = harness.env.get(name) or name in harness.env_from_file
        if given or (name in harness.env_names and os.environ.get(name)):
            return name
    home = Path(harness.env.get("HOME") or Path.home())
    for file in harness.login_files:
        if (home / file).exists():
            return f"~/{file}"
    if sys.platform == "darwin":
        return "perhaps one in the key chain"
    return ""


def check_roots(roots: Sequence[str]) -> Finding:
    """Check the directories that sessions may work in."""
    if not roots:
        return Finding(
            Status.FAILED,
            "no directory is allowed, so no session can be opened",
            "ACP_CWD_NOT_ALLOWED",
            'set acp.workspace_roots, for example ["/home/me/projects"]',
        )
    problems = [f"{root} {problem}" for root in roots if (problem := machine.root_problem(root))]
    if problems:
        return Finding(
            Status.FAILED,
            "; ".join(problems),
            "ACP_CWD_NOT_ALLOWED",
            "create the directory, make it writable, or correct acp.workspace_roots",
        )
    return Finding(Status.OK, ", ".join(roots))
