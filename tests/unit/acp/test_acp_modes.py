"""Which of its own modes a harness is put in, and when it is not used at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acp_svc.domain.builtin import BUILT_IN
from acp_svc.domain.modes import UNKNOWN, Modes, Refused, Situation, choose, judge, switched
from acp_svc.domain.permissions import PermissionMode

ASK, READS, ALL, DENY = (
    PermissionMode.ASK,
    PermissionMode.APPROVE_READS,
    PermissionMode.APPROVE_ALL,
    PermissionMode.DENY_ALL,
)
CLAUDE = ("default", "acceptEdits", "plan", "auto", "bypassPermissions")
COPILOT = tuple(
    f"https://agentclientprotocol.com/protocol/session-modes#{mode}"
    for mode in ("agent", "plan", "autopilot")
)


def modes_of(harness_id: str) -> Modes:
    return BUILT_IN[harness_id].modes


@pytest.mark.parametrize(
    ("harness_id", "offered", "current", "chosen"),
    [
        ("claude", CLAUDE, "auto", "default"),
        ("gemini", ("default", "autoEdit", "yolo", "plan"), "default", "default"),
        ("vibe", ("ask", "accept-edits", "auto-approve"), "accept-edits", "ask"),
        ("openhands", ("always-ask", "always-approve", "llm-approve"), "llm-approve", "always-ask"),
        ("copilot", COPILOT, COPILOT[2], COPILOT[0]),
        # Its modes are agents, and it asks in all.
        ("opencode", ("build", "plan"), "build", ""),
        # No modes at all.
        ("deepagents", (), "", ""),
    ],
)
def test_a_harness_is_put_in_a_mode_that_asks(
    harness_id: str, offered: tuple[str, ...], current: str, chosen: str
) -> None:
    for permission in (ASK, READS, DENY):
        assert (
            choose(Situation(modes_of(harness_id), permission, offered=offered), "", current)
            == chosen
        )
    # Where nothing has to be asked for, it stays as it is.
    assert choose(Situation(modes_of(harness_id), ALL, offered=offered), "", current) == ""


@pytest.mark.parametrize(
    ("harness_id", "offered", "current"),
    [
        ("claude", ("auto", "bypassPermissions"), "auto"),
        ("fast-agent", (), ""),
        ("codex", ("agent", "agent-full-access"), "agent"),
    ],
)
def test_a_harness_that_would_not_ask_is_refused_unless_all_is_approved(
    harness_id: str, offered: tuple[str, ...], current: str
) -> None:
    for permission in (ASK, READS, DENY):
        refused = choose(Situation(modes_of(harness_id), permission, offered=offered), "", current)
        assert isinstance(refused, Refused)
        assert "approve-all" in refused.message
    assert choose(Situation(modes_of(harness_id), ALL, offered=offered), "", current) == ""


def test_a_mode_that_somebody_asks_for_is_taken_when_it_asks() -> None:
    claude = modes_of("claude")
    assert choose(Situation(claude, ASK, offered=CLAUDE), "plan", "auto") == "plan"
    assert choose(Situation(claude, ALL, offered=CLAUDE), "bypassPermissions", "auto") == (
        "bypassPermissions"
    )
    refused = choose(Situation(claude, ASK, offered=CLAUDE), "acceptEdits", "default")
    assert isinstance(refused, Refused)
    unknown = choose(Situation(claude, ASK, offered=CLAUDE), "nonsense", "default")
    assert isinstance(unknown, Refused)
    assert "default, acceptEdits" in unknown.message
    none = choose(Situation(claude, ASK, offered=()), "nonsense", "")
    assert isinstance(none, Refused)
    assert "none" in none.message


@pytest.mark.parametrize(
    ("version", "sandboxed", "good"),
    [
        ("0.16.0", False, True),
        ("1.6.9", False, True),
        ("1.7.0", False, False),
        ("2.6.0", False, False),
        ("2.6.0", True, True),
        # Who does not say a number is taken for new.
        ("", False, False),
        ("nightly", False, False),
        ("v1.2-beta", False, True),
    ],
)
def test_a_mode_that_edits_unasked_since_a_version_is_good_before_it_and_within_walls(
    version: str, sandboxed: bool, good: bool
) -> None:
    offered = ("read-only", "agent", "agent-full-access")
    situation = Situation(modes_of("codex"), READS, version, sandboxed, offered)
    chosen = choose(situation, "", "agent")
    assert (chosen == "read-only") is good
    assert isinstance(chosen, Refused) is not good
    assert (judge(situation, "", "read-only") is None) is good


def test_another_mode_beside_it_tells_that_it_does_not_edit() -> None:
    offered = ("read-only", "workspace-write", "agent")
    situation = Situation(modes_of("codex"), ASK, "2.6.0", False, offered)
    assert choose(situation, "", "agent") == "read-only"
    assert isinstance(choose(situation, "workspace-write", "agent"), Refused)


@pytest.mark.parametrize(
    ("current", "offered", "chosen"),
    [
        ("code", ("code", "ask"), ""),  # `ask` may be for questions only
        ("auto", ("auto", "ask"), "ask"),
        ("YOLO", ("YOLO", "default"), "default"),
        ("Accept_Edits", ("Accept_Edits", "manual"), "manual"),
        ("https://example.org/modes#autopilot", ("https://example.org/modes#autopilot",), None),
    ],
)
def test_of_an_unknown_harness_the_names_tell(
    current: str, offered: tuple[str, ...], chosen: str | None
) -> None:
    got = choose(Situation(UNKNOWN, ASK, offered=offered), "", current)
    assert got == chosen if chosen is not None else isinstance(got, Refused)


def test_what_it_says_afterwards_is_what_counts() -> None:
    claude = Situation(modes_of("claude"), ASK)
    assert judge(claude, "default", "default") is None
    stays = judge(claude, "default", "auto")
    assert stays is not None
    assert "'auto'" in stays.message
    other = judge(claude, "default", "plan")
    assert other is not None
    assert "is in 'plan'" in other.message
    assert judge(Situation(modes_of("claude"), ALL), "", "auto") is None


def test_options_that_switch_asking_off_are_switched_back() -> None:
    copilot = modes_of("copilot")
    assert switched(Situation(copilot, ASK), {"allow_all": "on", "x": "y"}) == {"allow_all": "off"}
    assert switched(Situation(copilot, ASK), {"allow_all": "off"}) == {}
    assert switched(Situation(copilot, ASK), {}) == {}
    assert switched(Situation(copilot, ALL), {"allow_all": "on"}) == {}


@given(
    st.sampled_from([h.modes for h in BUILT_IN.values()]),
    st.sampled_from([ASK, READS, DENY]),
    st.lists(st.sampled_from([*CLAUDE, "ask", "read-only", "yolo", "agent", "build"]), unique=True),
    st.data(),
    st.booleans(),
)
def test_no_choice_ever_leaves_a_harness_where_it_would_not_ask(
    modes: Modes, permission: PermissionMode, offered: list[str], data: st.DataObject, walls: bool
) -> None:
    current = data.draw(st.sampled_from(offered)) if offered else ""
    own = data.draw(st.sampled_from(["", *offered]))
    situation = Situation(modes, permission, "2.0", walls, tuple(offered))
    chosen = choose(situation, own, current)
    if not isinstance(chosen, Refused):
        assert not chosen or chosen in offered
        assert judge(situation, chosen, chosen or current) is None


def test_the_registry_does_not_contradict_itself() -> None:
    for harness in BUILT_IN.values():
        assert not harness.modes.skips & set(harness.modes.asks), harness.harness_id
        assert harness.login, harness.harness_id
        assert harness.state, harness.harness_id
        assert not any(path.startswith(("/", "~")) for path in harness.state), harness.harness_id
        assert len(set(harness.env_names)) == len(harness.env_names), harness.harness_id
        assert harness.tried or harness.modes in (UNKNOWN, BUILT_IN["goose"].modes)
