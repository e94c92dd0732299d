from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from acp_svc.domain.builtin import BUILT_IN
from acp_svc.domain.catalog import Catalog, CatalogError, Override
from acp_svc.domain.checks import Check
from acp_svc.domain.install import Installer, System, install_command
from acp_svc.domain.modes import Modes
from acp_svc.domain.preflight import Refusal, choose_harness, directory_refusal
from acp_svc.domain.registry import Harness
from acp_svc.machine import first_line
from acp_svc.rpc import convert
from conveyor.acp.v1 import doctor_pb2

NPM = Installer("npm", "@scope/agent")
PIP = Installer("pip", "agent<2", python="3.12")


@pytest.mark.parametrize(
    ("installer", "system", "command"),
    [
        (NPM, System("linux", frozenset({"npm"})), "npm install -g @scope/agent"),
        (
            NPM,
            System("linux", frozenset({"apt-get"})),
            "sudo apt-get install -y nodejs npm && npm install -g @scope/agent",
        ),
        (
            NPM,
            System("linux", frozenset({"apt-get"}), root=True),
            "apt-get install -y nodejs npm && npm install -g @scope/agent",
        ),
        (
            NPM,
            System("darwin", frozenset({"brew"})),
            "brew install node && npm install -g @scope/agent",
        ),
        (
            PIP,
            System("linux", frozenset({"uv", "pipx"})),
            "uv tool install --python 3.12 'agent<2'",
        ),
        (PIP, System("linux", frozenset({"pipx"})), "pipx install --python python3.12 'agent<2'"),
        (
            PIP,
            System("linux", frozenset({"apt-get"})),
            "sudo apt-get install -y pipx && pipx install --python python3.12 'agent<2'",
        ),
        (PIP, System("linux", frozenset()), "python3.12 -m pip install --user 'agent<2'"),
        (
            Installer("script", "https://x.test/i"),
            System("linux", frozenset()),
            "curl -fsSL https://x.test/i | bash",
        ),
        (
            Installer("script", "https://x.test/i"),
            System("win32", frozenset()),
            "open https://x.test/i",
        ),
        (Installer("text", "ask Ann"), System("linux", frozenset()), "ask Ann"),
    ],
)
def test_the_install_command_fits_the_system(
    installer: Installer, system: System, command: str
) -> None:
    assert install_command(installer, system) == command


def test_the_registry_holds_what_the_design_names() -> None:
    named = "claude codex gemini copilot cursor opencode qwen kimi vibe fast-agent goose deepagents"
    assert set(named.split()) <= set(BUILT_IN)
    for harness_id, harness in BUILT_IN.items():
        assert harness.harness_id == harness_id
        assert harness.command
        assert harness.notes
        # Nothing that fetches code when a session starts.
        assert harness.program not in ("npx", "uvx", "pipx", "bunx")


def test_configuration_changes_and_adds_harnesses() -> None:
    catalog = Catalog.build(
        {
            "gemini": Override(("my gemini --flag",), {"A": "b"}, "ask Ann"),
            "own": Override(("/opt/own", "serve it")),
        },
        allowed=("gemini", "own"),
        default="own",
    )
    gemini = catalog.harnesses["gemini"]
    assert gemini.command == ("my", "gemini", "--flag")
    assert gemini.env == {"A": "b"}
    assert gemini.installer == Installer("text", "ask Ann")
    assert gemini.notes == BUILT_IN["gemini"].notes
    assert catalog.harnesses["own"].command == ("/opt/own", "serve it")
    assert catalog.usable("claude") is None
    assert catalog.usable("") is catalog.harnesses["own"]
    assert [h.harness_id for h in catalog.to_examine()] == ["own"]


def test_without_a_default_all_allowed_are_examined() -> None:
    assert len(Catalog.build({}).to_examine()) == len(BUILT_IN)
    two = Catalog.build({}, allowed=("qwen", "codex"))
    assert {h.harness_id for h in two.to_examine()} == {"qwen", "codex"}


def test_what_the_configuration_knows_of_its_modes_is_taken_for_all() -> None:
    own = Override(("own", "acp"), asks=("gentle",), skips=("solo",), state=(".own-state",))
    harness = Catalog.build({"own": own, "claude": Override(skips=("auto",))}).harnesses["own"]
    assert harness.modes == Modes(("gentle",), frozenset({"solo"}))
    assert harness.state == (".own-state",)
    plain = Catalog.build({"own": Override(("own",))}).harnesses["own"]
    assert plain.modes.guessed
    assert ".own" in plain.state


@pytest.mark.parametrize(
    ("overrides", "allowed", "default", "key"),
    [
        ({"own": Override(env={"A": "b"})}, (), "", "acp.harness.own.command"),
        ({"own": Override(("'unclosed",))}, (), "", "acp.harness.own.command"),
        ({}, ("nobody",), "", "acp.allowed_harnesses"),
        ({}, ("codex",), "claude", "acp.default_harness"),
    ],
)
def test_an_impossible_catalog_names_its_key(
    overrides: dict[str, Override], allowed: tuple[str, ...], default: str, key: str
) -> None:
    with pytest.raises(CatalogError, match=key.replace(".", r"\.")):
        Catalog.build(overrides, allowed=allowed, default=default)


def test_every_check_and_status_of_the_contract_has_a_word() -> None:
    assert set(convert.CHECKS) == set(Check)
    assert set(convert.CHECKS.values()) == set(doctor_pb2.DoctorCheckKind.values()) - {0}
    assert set(convert.STATUSES.values()) == set(doctor_pb2.DoctorStatus.values()) - {0}
    assert [convert.CHECKS[check] for check in Check] == sorted(convert.CHECKS.values())


def test_the_harness_of_a_prompt_is_chosen_or_refused() -> None:
    catalog = Catalog.build({}, allowed=("codex",), default="codex")
    chosen = choose_harness(catalog, True, "")
    assert isinstance(chosen, Harness)
    assert chosen.harness_id == "codex"
    for enabled, harness_id, reason in (
        (False, "codex", "ACP_DISABLED"),
        (True, "claude", "ACP_HARNESS_NOT_FOUND"),
        (True, "nobody", "ACP_HARNESS_NOT_FOUND"),
    ):
        refusal = choose_harness(catalog, enabled, harness_id)
        assert isinstance(refusal, Refusal)
        assert refusal.reason == reason
    no_default = choose_harness(Catalog.build({}), True, "")
    assert isinstance(no_default, Refusal)
    assert "acp.default_harness" in no_default.message


@pytest.mark.parametrize(
    ("cwd", "resolved", "allowed"),
    [
        ("/w/a", "/w/a", True),
        ("/w", "/w", True),
        ("/w/../etc", "/etc", False),
        ("/w/link", "/etc", False),
        ("/wide", "/wide", False),
        ("a", "/w/a", False),
    ],
)
def test_a_working_directory_must_be_inside_a_root(cwd: str, resolved: str, allowed: bool) -> None:
    refusal = directory_refusal(cwd, PurePosixPath(resolved), [PurePosixPath("/w")])
    assert (refusal is None) is allowed
    if refusal is not None:
        assert refusal.metadata == {"cwd": cwd}


def test_the_version_is_one_harmless_line() -> None:
    assert first_line("\n \x1b[1mtool\x07 1.2\r\nmore") == "[1mtool 1.2"
    assert len(first_line("x" * 500)) == 120
    assert first_line("\n\n") == ""
