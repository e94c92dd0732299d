"""The harnesses this release knows, as data.

A command here is always an installed program, never `npx package` or `uvx package`: those fetch
code from the network at the moment a session starts, which hides a missing installation behind a
slow and unpinned download. Whoever wants that writes it into `[acp.harness.<id>] command`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from acp_svc.domain.install import Installer


@dataclass(frozen=True, slots=True)
class Harness:
    """A harness as it can be started: from this registry, changed or added by configuration."""

    harness_id: str
    display_name: str
    command: tuple[str, ...]
    """The program and its arguments. Never empty, never holds a credential."""
    installer: Installer
    notes: str
    """What it can and cannot do, for people."""
    version_arguments: tuple[str, ...] = ("--version",)
    env: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """What its process sees beside the short list every harness gets. May hold secrets."""
    env_names: tuple[str, ...] = ()
    """Names of the service's own variables that its process sees as well."""

    @property
    def program(self) -> str:
        """What has to be found on the search path (or at this path) for it to be installed."""
        return self.command[0]


def _npm(package: str) -> Installer:
    return Installer(kind="npm", package=package)


def _pip(package: str, python: str | None = None) -> Installer:
    return Installer(kind="pip", package=package, python=python)


def _script(url: str) -> Installer:
    return Installer(kind="script", package=url)


def _page(url: str) -> Installer:
    return Installer(kind="page", package=url)


_BUILT_IN: tuple[Harness, ...] = (
    Harness(
        "claude",
        "Claude Code",
        ("claude-agent-acp",),
        _npm("@agentclientprotocol/claude-agent-acp"),
        "Resumes sessions. Newer versions start in a mode that does not ask for permission; "
        "the mode is set explicitly. A missing login shows only at the first prompt.",
    ),
    Harness(
        "codex",
        "Codex",
        ("codex-acp",),
        _npm("@agentclientprotocol/codex-acp"),
        "Resumes sessions. Its default mode lets a reviewer model decide instead of asking. "
        "A rejected permission ends the turn as cancelled.",
    ),
    Harness(
        "gemini",
        "Gemini CLI",
        ("gemini", "--acp"),
        _npm("@google/gemini-cli"),
        "Asks before commands and edits. A session killed while it works may not load again. "
        "A second prompt cancels the first.",
    ),
    Harness(
        "copilot",
        "GitHub Copilot CLI",
        ("copilot", "--acp"),
        _npm("@github/copilot"),
        "Resumes sessions and asks before commands and edits. Proprietary licence.",
    ),
    Harness(
        "cursor",
        "Cursor Agent",
        ("cursor-agent", "acp"),
        _script("https://cursor.com/install"),
        "Needs a Cursor account.",
    ),
    Harness(
        "opencode",
        "OpenCode",
        ("opencode", "acp"),
        _npm("opencode-ai"),
        "Resumes sessions. Asks only when its own configuration says `permission: ask`. "
        "Writes files through the client even when that is not offered.",
    ),
    Harness(
        "qwen",
        "Qwen Code",
        ("qwen", "--acp"),
        _npm("@qwen-code/qwen-code"),
        "Loads sessions again and asks before commands and edits. "
        "A second prompt cancels the first.",
    ),
    Harness(
        "kimi",
        "Kimi CLI",
        ("kimi", "acp"),
        _pip("kimi-cli==1.5", python="3.13"),
        "Pinned: later versions demand an account before a session, and the newest is no longer "
        "maintained. Very long prompts end its process.",
    ),
    Harness(
        "vibe",
        "Mistral Vibe",
        ("vibe-acp",),
        _pip("mistral-vibe", python="3.12"),
        "Loads sessions again. Its default mode edits without asking; mode `ask` is set. "
        "A permission request names only the tool call.",
    ),
    Harness(
        "fast-agent",
        "fast-agent",
        ("fast-agent", "acp"),
        _pip("fast-agent-mcp<0.10.45", python="3.12"),
        "Asks only when the client offers files and terminals; otherwise its tools run unasked.",
    ),
    Harness(
        "goose",
        "Goose",
        ("goose", "acp"),
        _script(
            "https://github.com/block/goose/releases/download/stable/download_cli.sh",
        ),
        "Needs a configured model provider (`goose configure`).",
    ),
    Harness(
        "deepagents",
        "Deep Agents",
        ("deepagents-acp",),
        _pip("deepagents-acp"),
        "The package has no command of its own: write a script that serves your agent and name it "
        "in acp.harness.deepagents.command. Sessions are not resumed.",
    ),
    Harness(
        "openhands",
        "OpenHands",
        ("openhands", "acp"),
        _pip("openhands", python="3.12"),
        "Loads sessions again and asks before every tool in mode `always-ask`. Slow to start; "
        "leaves a terminal server outside its process group.",
    ),
    Harness(
        "auggie",
        "Auggie CLI",
        ("auggie", "--acp"),
        _npm("@augmentcode/auggie"),
        "Needs an Augment account. Not tried with this release.",
    ),
    Harness(
        "droid",
        "Factory Droid",
        ("droid", "exec", "--output-format", "acp"),
        _page("https://docs.factory.ai"),
        "Needs a Factory account. Not tried with this release.",
    ),
    Harness(
        "kiro",
        "Kiro CLI",
        ("kiro-cli-chat", "acp"),
        _page("https://kiro.dev"),
        "Needs a Kiro account. Not tried with this release.",
    ),
    Harness(
        "qoder",
        "Qoder CLI",
        ("qodercli", "--acp"),
        _page("https://qoder.com"),
        "Needs a Qoder account. Not tried with this release.",
    ),
)

BUILT_IN: Mapping[str, Harness] = MappingProxyType({h.harness_id: h for h in _BUILT_IN})
"""The registry by harness id, in the order it is listed."""
