"""The real coding agents of these tests: how each is configured to talk to the scripted model.

`scripts/install_agents.py` installs them (`make agents`). One that is not there is skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.harnesses.installed import AGENTS, installed
from tests.harnesses.modelserver import ModelServer

ROOT = Path(__file__).resolve().parents[2]
DEEPAGENTS_SCRIPT = ROOT / "tests/harnesses/deepagents_agent.py"

Prepare = Callable[[Path, Path, ModelServer], Mapping[str, str]]
"""Writes what the agent reads in its home (first) for a workspace (second); gives its variables."""


def _anthropic(_home: Path, _workspace: Path, model: ModelServer) -> Mapping[str, str]:
    return {
        "ANTHROPIC_BASE_URL": model.url,
        "ANTHROPIC_API_KEY": "a-key-of-nobody",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
    }


def _codex(home: Path, workspace: Path, model: ModelServer) -> Mapping[str, str]:
    (home / ".codex").mkdir()
    (home / ".codex/config.toml").write_text(
        f"""\
model = "gpt-5"
model_provider = "scripted"
approval_policy = "on-request"
sandbox_mode = "read-only"
[model_providers.scripted]
name = "scripted"
base_url = "{model.url_v1}"
env_key = "SCRIPTED_KEY"
wire_api = "responses"
request_max_retries = 1
stream_max_retries = 1
[analytics]
enabled = false
[projects."{workspace}"]
trust_level = "trusted"
"""
    )
    return {"SCRIPTED_KEY": "a-key-of-nobody"}


def _qwen(home: Path, _workspace: Path, model: ModelServer) -> Mapping[str, str]:
    settings = {
        "security": {"auth": {"selectedType": "openai"}},
        "privacy": {"usageStatisticsEnabled": False},
        "telemetry": {"enabled": False},
        "general": {"disableAutoUpdate": True, "disableUpdateNag": True},
        "$version": 4,
    }
    (home / ".qwen").mkdir()
    (home / ".qwen/settings.json").write_text(json.dumps(settings))
    return {
        "OPENAI_API_KEY": "a-key-of-nobody",
        "OPENAI_BASE_URL": model.url_v1,
        "OPENAI_MODEL": "fake-model",
    }


@dataclass(frozen=True)
class RealAgent:
    """A coding agent and what these tests have to know about it."""

    harness_id: str
    prepare: Prepare
    remembers: bool = True
    """Its sessions can be opened again after its process is gone."""
    asks_to_read_outside: bool = False
    """Reading outside its working directory needs a permission."""
    own_command: bool = False
    """The package has no command: the registry's own is not used."""

    @property
    def record(self) -> Mapping[str, str]:
        """What the installer wrote. Skips the test when it is not installed."""
        return installed(self.harness_id)

    @property
    def path(self) -> str:
        """A search path on which the agent is found."""
        return os.pathsep.join([self.record["path"], os.environ["PATH"]])


CLAUDE = RealAgent("claude", _anthropic, asks_to_read_outside=True)
CODEX = RealAgent("codex", _codex)
QWEN = RealAgent("qwen", _qwen)
DEEPAGENTS = RealAgent("deepagents", _anthropic, remembers=False, own_command=True)


@dataclass(frozen=True)
class Place:
    """Where an agent lives and works in one test module."""

    agent: RealAgent
    home: Path
    workspace: Path
    toml: str
    """What the configuration of the suite says about it."""


@contextmanager
def placed(agent: RealAgent, model: ModelServer) -> Iterator[Place]:
    """Make a home and a workspace for an agent. Skips when it is not installed."""
    record = agent.record
    # Not in the directory for temporary files, also where the whole repository is: Codex puts no
    # helper programs there, without which its sandbox does not start. No link: paths are compared.
    homes = AGENTS.resolve() / "homes"
    homes.mkdir(exist_ok=True)
    base = Path(tempfile.mkdtemp(prefix=f"{agent.harness_id}-", dir=homes))
    home, workspace = base / "home", base / "work"
    home.mkdir()
    workspace.mkdir()
    (workspace / "notes.txt").write_text("the bird is a heron\n")
    (base / "outside.txt").write_text("the fish is a pike\n")
    (base / "tmp").mkdir()
    env = {"HOME": str(home), "TMPDIR": str(base / "tmp"), **agent.prepare(home, workspace, model)}
    lines = [f"[acp.harness.{agent.harness_id}]"]
    if agent.own_command:
        command = [record["program"], str(DEEPAGENTS_SCRIPT)]
        lines.append(f"command = {json.dumps(command)}")
    lines.append(f"[acp.harness.{agent.harness_id}.env]")
    lines += [f"{name} = {json.dumps(value)}" for name, value in env.items()]
    try:
        yield Place(agent, home, workspace, "\n".join(lines) + "\n")
    finally:
        shutil.rmtree(base, ignore_errors=True)
