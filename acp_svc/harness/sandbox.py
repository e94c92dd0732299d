"""Whether this machine can shut a harness in, and what is inside for one session."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from acp_svc.domain.registry import Harness
from acp_svc.domain.sandboxing import (
    CONTROL_DIRECTORIES,
    CONTROL_SOCKETS,
    PROGRAM,
    Walls,
    probe,
    shut_in,
)

PROBE_SECONDS = 10.0
MOST_IN_HOME = 1000
"""Entries; each is a mount."""
_TRUST_SECONDS = 60.0
"""How long the answer for this machine is believed: somebody may install what is missing."""
_MANAGERS = {
    "apt-get": "install -y",
    "dnf": "install -y",
    "pacman": "-S --noconfirm",
    "apk": "add",
}


@dataclass(frozen=True, slots=True)
class Availability:
    """What this machine can do."""

    bwrap: str
    """Path of the program. Empty when it cannot be used."""
    problem: str = ""
    """Why not, for people."""
    hint: str = ""
    """What to do about it."""


class Sandbox:
    """Looks at the machine, seldom. One for all sessions."""

    def __init__(self) -> None:
        self._known: Availability | None = None
        self._until = 0.0

    async def availability(self, *, fresh: bool = False) -> Availability:
        """Return what this machine can do; `fresh` looks again."""
        if fresh or self._known is None or time.monotonic() > self._until:
            self._known = await _look()
            self._until = time.monotonic() + _TRUST_SECONDS
        return self._known


async def _look() -> Availability:
    bwrap = shutil.which(PROGRAM)
    if bwrap is None:
        return Availability("", f"{PROGRAM} was not found", _install())
    try:
        process = await asyncio.create_subprocess_exec(
            *probe(bwrap),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env={"PATH": os.environ.get("PATH", os.defpath)},
        )
    except OSError:
        return Availability("", f"{PROGRAM} cannot be started", _install())
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            code = await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
        return Availability("", f"{PROGRAM} did not answer")
    if code:
        return Availability(
            "",
            f"{PROGRAM} may not make a sandbox here",
            "allow user namespaces (sysctl kernel.unprivileged_userns_clone), "
            "or give the container that right",
        )
    return Availability(bwrap)


def _install() -> str:
    for manager, words in _MANAGERS.items():
        if shutil.which(manager):
            return f"{manager} {words} bubblewrap"
    return "install bubblewrap"


def walled(
    bwrap: str, harness: Harness, command: Sequence[str], cwd: Path, env: Mapping[str, str]
) -> list[str]:
    """Return the command that runs a harness shut in. Makes its own directories where they miss.

    Blocking, but short.
    """
    home = Path(env.get("HOME") or Path.home()).resolve()
    state = [home / name for name in harness.state]
    state += [Path(env[name]).expanduser() for name in harness.state_env if env.get(name)]
    for path in state:
        # A file cannot be told from a directory by its name alone, but by having an ending.
        if not path.exists() and not path.suffix:
            with suppress(OSError):
                path.mkdir(parents=True, mode=0o700)
    inside = _entries(home)
    read = [home, Path(command[0]), *(Path(word) for word in command[1:] if word.startswith("/"))]
    return shut_in(
        command,
        Walls(
            bwrap=bwrap,
            cwd=cwd.resolve(),
            state=tuple(path.resolve() for path in state if path.exists()),
            needed=tuple(one for path in read if path.exists() for one in (path, path.resolve())),
            home=home if inside is not None else None,
            in_home=tuple(path for path in inside or () if not path.is_symlink()),
            links_in_home=tuple(
                (path, os.readlink(path)) for path in inside or () if path.is_symlink()
            ),
            hidden=tuple(p for p in map(Path, CONTROL_SOCKETS) if p.exists()),
            emptied=tuple(p for p in map(Path, CONTROL_DIRECTORIES) if p.is_dir()),
            as_root=os.geteuid() == 0,
        ),
    )


def _entries(home: Path) -> list[Path] | None:
    """Return what is in a home directory; None when it is not one, or holds too much."""
    try:
        found = list(home.iterdir())
    except OSError:
        return None
    return sorted(found) if len(found) <= MOST_IN_HOME and home != home.parent else None
