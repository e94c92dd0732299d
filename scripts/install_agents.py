"""Installs real coding agents for the tests of `tests/real`, each in an environment of its own.

`scripts/install_agents.py` installs all it knows below `.agents/`, named ones when it is given
names. Versions are pinned. What is there already is left alone, so a second call takes no time.
An agent that cannot be had here is skipped with its reason, and the exit code is 1; the others are
there nevertheless. Standard library only: it runs before anything else is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
AGENTS = Path(os.environ.get("AGENTS_DIR") or ROOT / ".agents")
RECORD = "installed.json"
"""In the directory of each installed agent, written last: `{"pin": …, "path": …, "program": …}`."""
NODE_MAJOR = 20
LINES_OF_A_FAILURE = 3


class Unavailable(Exception):
    """An agent cannot be had here; the text says why."""


@dataclass(frozen=True)
class Agent:
    """One agent: where it comes from and what it brings."""

    name: str
    about: str
    kind: str
    """`npm` or `pip`."""
    pin: str
    """The package and its version; for pip the file of `scripts/agents` that pins everything."""
    program: str
    """What has to be there afterwards, relative to the agent's directory."""


BIN = "node_modules/.bin"
KNOWN = (
    Agent(
        "claude",
        "Claude Code",
        "npm",
        "@agentclientprotocol/claude-agent-acp@0.49.0",
        f"{BIN}/claude-agent-acp",
    ),
    Agent("codex", "Codex", "npm", "@zed-industries/codex-acp@0.16.0", f"{BIN}/codex-acp"),
    Agent("qwen", "Qwen Code", "npm", "@qwen-code/qwen-code@0.15.10", f"{BIN}/qwen"),
    # Not an agent but a client of agents: it drives ours. The newest version that Node.js 20 runs.
    Agent("acpx", "the command-line client acpx", "npm", "acpx@0.1.15", f"{BIN}/acpx"),
    Agent("deepagents", "Deep Agents (LangChain)", "pip", "deepagents.txt", "bin/python"),
)


class Clock:
    """What is left of the time for everything."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self.seconds = seconds

    def left(self) -> float:
        """Seconds left; raises when there are none."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise Unavailable(f"the {self.seconds:g} s for all agents are over")
        return left


def installed(agent: Agent) -> bool:
    """True when this very version is there, whole."""
    place = AGENTS / agent.name
    try:
        record = json.loads((place / RECORD).read_text())
    except (OSError, ValueError):
        return False
    return record.get("pin") == _pinned(agent) and (place / agent.program).exists()


def _pinned(agent: Agent) -> str:
    """What an installation is compared with: of a file of versions, its text."""
    if agent.kind == "pip":
        return (ROOT / "scripts/agents" / agent.pin).read_text()
    return agent.pin


def install(agent: Agent, clock: Clock) -> None:
    """Install one agent from nothing. Raises `Unavailable`."""
    place = AGENTS / agent.name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    {"npm": _npm, "pip": _pip}[agent.kind](agent, place, clock)
    if not (place / agent.program).exists():
        raise Unavailable(f"the package holds no {agent.program}, at least not for this machine")
    record = {
        "pin": _pinned(agent),
        "path": str((place / agent.program).parent),
        "program": str(place / agent.program),
    }
    (place / RECORD).write_text(json.dumps(record, indent=1) + "\n")


def _npm(agent: Agent, place: Path, clock: Clock) -> None:
    npm = shutil.which("npm")
    node = shutil.which("node")
    if npm is None or node is None:
        raise Unavailable(f"no {'npm' if npm is None else 'node'} here; it needs Node.js")
    version = _run([node, "--version"], place, clock).strip()
    if int(version.lstrip("v").split(".")[0]) < NODE_MAJOR:
        raise Unavailable(f"Node.js {version} is too old; it needs {NODE_MAJOR} or newer")
    # Without the scripts of packages: nothing of a package runs before a test starts it.
    options = ["--no-audit", "--no-fund", "--ignore-scripts", "--no-update-notifier"]
    _run([npm, "install", *options, "--loglevel=error", "--prefix", ".", agent.pin], place, clock)


def _pip(agent: Agent, place: Path, clock: Clock) -> None:
    _run([sys.executable, "-m", "venv", "."], place, clock)
    pins = ROOT / "scripts/agents" / agent.pin
    options = ["--disable-pip-version-check", "--no-input", "-qq", "--only-binary=:all:"]
    pip = ["./bin/python", "-m", "pip", "install", *options]
    # The pins name every package: nothing is left to resolve.
    _run([*pip, "--no-deps", "--no-compile", "--requirement", str(pins)], place, clock)


def _run(command: Sequence[str], place: Path, clock: Clock) -> str:
    """Run a command and return what it printed. Raises `Unavailable` with its last lines."""
    process = subprocess.Popen(
        command,
        cwd=place,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    what = f"{Path(command[0]).name} {next((w for w in command[1:] if w[0] != '-'), '')}".strip()
    try:
        output, _ = process.communicate(timeout=clock.left())
    except subprocess.TimeoutExpired:
        # The whole group: npm and pip have children of their own.
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise Unavailable(
            f"{what} was not done in the {clock.seconds:g} s that all agents have"
        ) from None
    if process.returncode:
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        said = " | ".join(lines[-LINES_OF_A_FAILURE:])
        raise Unavailable(f"{what} ended with code {process.returncode}: {said[:400]}")
    return output


def _one(agent: Agent, clock: Clock) -> tuple[bool, str]:
    if installed(agent):
        return True, "is there"
    began = time.monotonic()
    try:
        clock.left()
        install(agent, clock)
    except (Unavailable, OSError, ValueError) as err:
        # Half of an agent would be worse than none.
        shutil.rmtree(AGENTS / agent.name, ignore_errors=True)
        return False, f"skip: {err}"
    return True, f"installed in {time.monotonic() - began:.0f} s"


def _all(agents: Iterable[Agent], clock: Clock, say: Callable[[str], None]) -> bool:
    """Install them side by side; true when all are there."""
    chosen = list(agents)
    good = True
    # Mostly a wait for the network, then one for the disk: more at once are not quicker.
    with ThreadPoolExecutor(max_workers=3) as pool:
        for agent, (there, text) in zip(
            chosen, pool.map(lambda agent: _one(agent, clock), chosen), strict=True
        ):
            good &= there
            version = agent.pin if agent.kind == "npm" else f"scripts/agents/{agent.pin}"
            say(f"{agent.name:11} {text} ({agent.about}, {version})")
    return good


def main() -> None:
    """Entry point; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = [agent.name for agent in KNOWN]
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(names))
    parser.add_argument(
        "--seconds", type=float, default=240.0, help="for everything together (default: 240)"
    )
    given = parser.parse_args()
    if unknown := sorted(set(given.names) - set(names)):
        parser.error(f"no such agent: {', '.join(unknown)}; there are {', '.join(names)}")
    chosen = [agent for agent in KNOWN if not given.names or agent.name in given.names]
    AGENTS.mkdir(parents=True, exist_ok=True)
    if not _all(chosen, Clock(given.seconds), lambda line: print(line, flush=True)):
        sys.exit(1)


if __name__ == "__main__":
    main()
