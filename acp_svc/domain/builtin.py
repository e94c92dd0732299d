"""The harnesses this release knows, as data.

A command here is always an installed program, never `npx package` or `uvx package`: those fetch
code from the network at the moment a session starts, which hides a missing installation behind a
slow and unpinned download. Whoever wants that writes it into `[acp.harness.<id>] command`.

Modes, options, errors and resuming were measured with the versions in `tried`, driven by a scripted
model; the rest is from the harnesses' own documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from acp_svc.domain.install import Installer
from acp_svc.domain.modes import Modes, Partly
from acp_svc.domain.registry import Harness

_ANTHROPIC = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL")
_OPENAI = ("OPENAI_API_KEY", "OPENAI_BASE_URL")
_COPILOT_MODE = "https://agentclientprotocol.com/protocol/session-modes#"


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
        "the mode is set explicitly. Reads in its directory are never asked for. A missing login "
        "shows only at the first prompt.",
        env_names=(
            *_ANTHROPIC,
            "ANTHROPIC_MODEL",
            "CLAUDE_CODE_OAUTH_TOKEN",
            "CLAUDE_CODE_USE_BEDROCK",
            "CLAUDE_CODE_USE_VERTEX",
            "CLAUDE_CONFIG_DIR",
        ),
        login="run `claude` once and log in, or set ANTHROPIC_API_KEY",
        login_env=(
            "ANTHROPIC_API_KEY",
            "ANTHROPIC_AUTH_TOKEN",
            "CLAUDE_CODE_OAUTH_TOKEN",
            "CLAUDE_CODE_USE_BEDROCK",
            "CLAUDE_CODE_USE_VERTEX",
        ),
        login_files=(".claude/.credentials.json",),
        modes=Modes(
            asks=("default",), skips=frozenset({"auto", "acceptEdits", "bypassPermissions"})
        ),
        state=(".claude", ".claude.json", ".cache/claude", ".cache/claude-cli-nodejs"),
        state_env=("CLAUDE_CONFIG_DIR",),
        tried="claude-agent-acp 0.49.0 and 0.101.0",
    ),
    Harness(
        "codex",
        "Codex",
        ("codex-acp",),
        _npm("@agentclientprotocol/codex-acp"),
        "Resumes sessions. Its default mode lets a reviewer model decide instead of asking, and "
        "from 1.7 on mode `read-only` edits files of its directory unasked, unless there is a mode "
        "`workspace-write` beside it; then it is used with permissions `approve-all`, or within a "
        "sandbox. A rejected permission ends the turn as cancelled. With a home directory among "
        "the temporary files its own sandbox does not start, and its commands fail.",
        env_names=(*_OPENAI, "CODEX_API_KEY", "CODEX_HOME"),
        login="run `codex login`, or set OPENAI_API_KEY",
        modes=Modes(
            asks=("read-only",),
            skips=frozenset(
                {"agent", "agent-full-access", "auto", "full-access", "workspace-write"}
            ),
            partly=MappingProxyType({"read-only": Partly((1, 7), unless="workspace-write")}),
        ),
        state=(".codex",),
        state_env=("CODEX_HOME",),
        tried="@zed-industries/codex-acp 0.16.0 and @agentclientprotocol/codex-acp 2.6.0",
    ),
    Harness(
        "gemini",
        "Gemini CLI",
        ("gemini", "--acp"),
        _npm("@google/gemini-cli"),
        "Asks before commands and edits. A session killed while it works may not load again. "
        "A second prompt cancels the first.",
        env_names=(
            "GEMINI_API_KEY",
            "GOOGLE_API_KEY",
            "GOOGLE_CLOUD_LOCATION",
            "GOOGLE_CLOUD_PROJECT",
            "GOOGLE_GEMINI_BASE_URL",
        ),
        login="run `gemini` once and log in, or set GEMINI_API_KEY",
        modes=Modes(asks=("default",), skips=frozenset({"autoEdit", "auto_edit", "yolo"})),
        state=(".gemini",),
        tried="0.61.0",
    ),
    Harness(
        "copilot",
        "GitHub Copilot CLI",
        ("copilot", "--acp"),
        _npm("@github/copilot"),
        "Resumes sessions and asks before commands and edits. Proprietary licence.",
        env_names=(
            "COPILOT_GITHUB_TOKEN",
            "COPILOT_MODEL",
            "COPILOT_OFFLINE",
            "COPILOT_PROVIDER_API_KEY",
            "COPILOT_PROVIDER_BASE_URL",
            "COPILOT_PROVIDER_TYPE",
            "GH_TOKEN",
        ),
        login="run `copilot login`",
        modes=Modes(
            asks=(f"{_COPILOT_MODE}agent",),
            skips=frozenset({f"{_COPILOT_MODE}autopilot"}),
            switches=MappingProxyType({"allow_all": "off"}),
        ),
        state=(".copilot", ".cache/copilot"),
        tried="1.0.102",
    ),
    Harness(
        "cursor",
        "Cursor Agent",
        ("cursor-agent", "acp"),
        _script("https://cursor.com/install"),
        "Needs a Cursor account.",
        env_names=("CURSOR_API_KEY",),
        login="run `cursor-agent login`, or set CURSOR_API_KEY",
        state=(".cursor", ".config/cursor", ".cache/cursor-agent"),
    ),
    Harness(
        "opencode",
        "OpenCode",
        ("opencode", "acp"),
        _npm("opencode-ai"),
        "Resumes sessions. Asks only when it is configured to, which its environment here does. "
        "Writes files through the client even when that is not offered. Its modes are agents.",
        env={"OPENCODE_PERMISSION": '{"edit":"ask","bash":"ask","webfetch":"ask"}'},
        env_names=(*_ANTHROPIC, *_OPENAI, "OPENCODE_API_KEY", "OPENCODE_CONFIG"),
        login="run `opencode auth login`",
        modes=Modes(),
        state=(
            ".cache/opencode",
            ".config/opencode",
            ".local/share/opencode",
            ".local/state/opencode",
        ),
        tried="1.18.33",
    ),
    Harness(
        "qwen",
        "Qwen Code",
        ("qwen", "--acp"),
        _npm("@qwen-code/qwen-code"),
        "Loads sessions again and asks before commands and edits. "
        "A second prompt cancels the first.",
        env_names=(*_OPENAI, "DASHSCOPE_API_KEY", "OPENAI_MODEL"),
        login="run `qwen` once and log in, or set OPENAI_API_KEY",
        modes=Modes(asks=("default",), skips=frozenset({"auto-edit", "auto_edit", "yolo"})),
        state=(".qwen",),
        tried="0.15.10",
    ),
    Harness(
        "kimi",
        "Kimi CLI",
        ("kimi", "acp"),
        _pip("kimi-cli==1.5", python="3.13"),
        "Pinned: later versions demand an account before a session, and the newest is no longer "
        "maintained. Very long prompts end its process.",
        env_names=("KIMI_API_KEY", "KIMI_BASE_URL", "KIMI_MODEL_NAME"),
        login="run `kimi` once and log in",
        state=(".kimi", ".local/share/kimi"),
        tried="1.5",
    ),
    Harness(
        "vibe",
        "Mistral Vibe",
        ("vibe-acp",),
        _pip("mistral-vibe", python="3.12"),
        "Loads sessions again. Its default mode edits without asking; mode `ask` is set. "
        "A permission request names only the tool call.",
        env_names=("MISTRAL_API_KEY", "VIBE_HOME"),
        login="run `vibe --setup`, or set MISTRAL_API_KEY",
        modes=Modes(asks=("ask", "default"), skips=frozenset({"accept-edits", "auto-approve"})),
        state=(".vibe",),
        state_env=("VIBE_HOME",),
        tried="3.0.2",
    ),
    Harness(
        "fast-agent",
        "fast-agent",
        ("fast-agent", "acp"),
        _pip("fast-agent-mcp<0.10.45", python="3.12"),
        "Asks only when the client offers files and terminals, which this one does not: its tools "
        "run unasked, so it is used with permissions `approve-all` only.",
        env_names=(*_ANTHROPIC, *_OPENAI),
        login="set the key of its model provider, for example ANTHROPIC_API_KEY",
        modes=Modes(never="it runs its tools without asking"),
        state=(".fast-agent", ".config/fast-agent", ".cache/fast-agent"),
        tried="0.10.44",
    ),
    Harness(
        "goose",
        "Goose",
        ("goose", "acp"),
        _script(
            "https://github.com/block/goose/releases/download/stable/download_cli.sh",
        ),
        "Needs a configured model provider (`goose configure`). Asks only when it is configured "
        "to, which its environment here does.",
        env={"GOOSE_MODE": "approve"},
        env_names=(*_ANTHROPIC, *_OPENAI, "GOOSE_MODEL", "GOOSE_PROVIDER"),
        login="run `goose configure`",
        modes=Modes(asks=("approve",), skips=frozenset({"auto", "smart_approve"})),
        state=(".cache/goose", ".config/goose", ".local/share/goose", ".local/state/goose"),
    ),
    Harness(
        "deepagents",
        "Deep Agents",
        ("deepagents-acp",),
        _pip("deepagents-acp"),
        "The package has no command of its own: write a script that serves your agent and name it "
        "in acp.harness.deepagents.command. It asks for the tools that the script says. "
        "Sessions are not resumed.",
        env_names=(*_ANTHROPIC, *_OPENAI),
        login="set the key of its model provider, for example ANTHROPIC_API_KEY",
        state=(".deepagents",),
        tried="0.0.13",
    ),
    Harness(
        "openhands",
        "OpenHands",
        ("openhands", "acp"),
        _pip("openhands", python="3.12"),
        "Loads sessions again and asks before every tool in mode `always-ask`. Slow to start; "
        "leaves a terminal server outside its process group, which is ended with it.",
        env_names=("LLM_API_KEY", "LLM_BASE_URL", "LLM_MODEL"),
        login="run `openhands` once and set up its model",
        modes=Modes(asks=("always-ask",), skips=frozenset({"always-approve", "llm-approve"})),
        state=(".openhands",),
        tried="1.16.0",
    ),
    Harness(
        "auggie",
        "Auggie CLI",
        ("auggie", "--acp"),
        _npm("@augmentcode/auggie"),
        "Needs an Augment account. Not tried with this release.",
        env_names=("AUGMENT_API_TOKEN", "AUGMENT_API_URL", "AUGMENT_SESSION_AUTH"),
        login="run `auggie login`",
        state=(".augment",),
    ),
    Harness(
        "droid",
        "Factory Droid",
        ("droid", "exec", "--output-format", "acp"),
        _page("https://docs.factory.ai"),
        "Needs a Factory account. Not tried with this release.",
        env_names=("FACTORY_API_KEY",),
        login="run `droid` once and log in, or set FACTORY_API_KEY",
        state=(".factory",),
    ),
    Harness(
        "kiro",
        "Kiro CLI",
        ("kiro-cli-chat", "acp"),
        _page("https://kiro.dev"),
        "Needs a Kiro account. Not tried with this release.",
        login="run `kiro-cli login`",
        state=(".kiro", ".local/share/kiro-cli"),
    ),
    Harness(
        "qoder",
        "Qoder CLI",
        ("qodercli", "--acp"),
        _page("https://qoder.com"),
        "Needs a Qoder account. Not tried with this release.",
        env_names=("QODER_PERSONAL_ACCESS_TOKEN",),
        login="run `qodercli` once and log in",
        state=(".qoder",),
    ),
)

BUILT_IN: Mapping[str, Harness] = MappingProxyType({h.harness_id: h for h in _BUILT_IN})
"""The registry by harness id, in the order it is listed."""
