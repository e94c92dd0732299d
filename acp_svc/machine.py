"""Looks at this machine: programs, versions, directories. Decides nothing.

Harness processes started here see a short list of variables only: what else is in our environment
may be a secret of another service.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from acp_svc.domain.install import PROGRAMS, System
from svckit.programs import environment

VERSION_SECONDS = 10.0
"""How long a program may take to say its version. Some start a whole runtime for it."""


def this_system() -> System:
    """Describe this machine for install commands."""
    found = frozenset(program for program in PROGRAMS if shutil.which(program))
    return System(sys.platform, found, root=hasattr(os, "geteuid") and os.geteuid() == 0)


def find_program(program: str) -> Path | None:
    """Return where a program is, by name on the search path or as a path."""
    found = shutil.which(os.path.expanduser(program))
    return Path(found) if found else None


@dataclass(frozen=True, slots=True)
class Version:
    """What came of asking for a version: the text, or the problem."""

    text: str = ""
    problem: str = ""
    runs: bool = True
    """False when the system could not even start the program."""


async def ask_version(program: Path, arguments: Sequence[str], env: Mapping[str, str]) -> Version:
    """Run a program for its version and return the first line it prints."""
    try:
        process = await asyncio.create_subprocess_exec(
            program,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=environment(os.environ, env),
            start_new_session=True,
        )
    except OSError as error:
        return Version(problem=f"cannot be started: {error.strerror}", runs=False)
    try:
        async with asyncio.timeout(VERSION_SECONDS):
            assert process.stdout is not None
            # Read to the end, so that a talkative program is not blocked; keep the beginning.
            output = await process.stdout.read(4096)
            while await process.stdout.read(65536):
                pass
            code = await process.wait()
    except TimeoutError:
        return Version(problem=f"did not say its version within {VERSION_SECONDS:.0f} s")
    finally:
        await _end_group(process)
    if code != 0:
        return Version(problem=f"did not say its version: exit code {code}")
    line = first_line(output.decode(errors="replace"))
    return Version(text=line) if line else Version(problem="said nothing when asked its version")


def first_line(output: str) -> str:
    """Return the first line with something on it, without control characters, at most 120 long."""
    for line in output.splitlines():
        words = "".join(c for c in line if c.isprintable()).strip()
        if words:
            return words[:120]
    return ""


async def _end_group(process: asyncio.subprocess.Process) -> None:
    # The whole group: wrappers start the real program and do not pass a signal on.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def root_problem(root: str) -> str | None:
    """Return what is wrong with an allowed working directory, or None."""
    path = Path(os.path.expanduser(root))
    if not path.is_absolute():
        return "is not an absolute path"
    if not path.exists():
        return "does not exist"
    if not path.is_dir():
        return "is not a directory"
    if not os.access(path, os.W_OK | os.X_OK):
        return "cannot be written"
    return None


def resolve(path: str) -> Path:
    """Return a path with links and `..` followed, as far as it exists."""
    # Not `Path.resolve`, which fails on links that go round in circles.
    return Path(os.path.realpath(os.path.expanduser(path)))
