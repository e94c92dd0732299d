"""How to install a harness on a given system, as one command that can be pasted."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Installer:
    """What a harness is installed from."""

    kind: Literal["npm", "pip", "script", "page", "text"]
    package: str
    """Package for `npm` and `pip`, address for `script` and `page`, the hint itself for `text`."""
    python: str | None = None
    """Oldest Python that runs it. Only for `pip`, and only when ours may be too old."""


@dataclass(frozen=True, slots=True)
class System:
    """What matters about a machine for an install command."""

    os: str
    """As `sys.platform`, for example `linux`, `darwin` or `win32`."""
    programs: frozenset[str]
    """Which of `PROGRAMS` are on the search path."""
    root: bool = False
    """True when the caller needs no `sudo`."""


PROGRAMS = frozenset({"npm", "uv", "pipx", "brew", "apt-get", "dnf", "pacman", "apk", "winget"})
"""Programs whose presence changes an install command."""


def install_command(installer: Installer, system: System) -> str:
    """Return the command that installs it on `system`, or a page to open when there is none."""
    match installer.kind:
        case "npm":
            install = f"npm install -g {installer.package}"
            if "npm" in system.programs:
                return install
            return f"{_node(system)} && {install}"
        case "pip":
            return _python_tool(installer, system)
        case "script":
            if system.os == "win32":
                return f"open {installer.package}"
            return f"curl -fsSL {shlex.quote(installer.package)} | bash"
        case "page":
            return f"open {installer.package}"
        case "text":
            return installer.package


def _python_tool(installer: Installer, system: System) -> str:
    package = shlex.quote(installer.package)
    if "uv" in system.programs:
        # Its own environment per tool: the protocol libraries of harnesses contradict each other.
        python = f" --python {installer.python}" if installer.python else ""
        return f"uv tool install{python} {package}"
    if "pipx" in system.programs:
        python = f" --python python{installer.python}" if installer.python else ""
        return f"pipx install{python} {package}"
    python = f"python{installer.python}" if installer.python else "python3"
    first = _packages(system, {"brew": "pipx", "apt-get": "pipx", "dnf": "pipx"})
    if first:
        # Not pip: these systems do not let it install beside their own packages.
        return f"{first} && pipx install --python {python} {package}"
    return f"{python} -m pip install --user {package}"


def _node(system: System) -> str:
    names = {"brew": "node", "winget": "OpenJS.NodeJS.LTS"}
    names |= dict.fromkeys(("apt-get", "dnf", "pacman", "apk"), "nodejs npm")
    return _packages(system, names) or "open https://nodejs.org"


def _packages(system: System, names: Mapping[str, str]) -> str:
    """Return how this system's packages are installed; `names` says them for each of its programs.

    Empty when it has none of those.
    """
    sudo = "" if system.root else "sudo "
    for program, install in (
        ("brew", "brew install"),
        ("apt-get", f"{sudo}apt-get install -y"),
        ("dnf", f"{sudo}dnf install -y"),
        ("pacman", f"{sudo}pacman -S --noconfirm"),
        ("apk", f"{sudo}apk add"),
        ("winget", "winget install"),
    ):
        if program in system.programs and program in names:
            return f"{install} {names[program]}"
    return ""
