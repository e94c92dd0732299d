"""How permissions are decided, against the options that real harnesses offer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acp_svc.domain.permissions import (
    ALLOWING,
    REJECTING,
    Option,
    PermissionMode,
    Rule,
    answered,
    choose,
    decide,
    memory_key,
    question,
    reads,
    to_remember,
)
from acp_svc.domain.toolcalls import Diff, Patch, ToolCall, patched

ONCE, ALWAYS, NO, NEVER = "allow_once", "allow_always", "reject_once", "reject_always"

# What real harnesses offer: (id, kind) in their order. Names and ids follow no rule at all.
DIALECTS = {
    "claude": [("allow_always", ALWAYS), ("allow", ONCE), ("reject", NO)],
    "codex 0.16": [("approved", ONCE), ("approved-for-session", ALWAYS), ("abort", NO)],
    "gemini": [("proceed_always", ALWAYS), ("proceed_once", ONCE), ("cancel", NO)],
    "opencode": [("once", ONCE), ("always", ALWAYS), ("reject", NO)],
    "qwen": [("proceed_always_x", ALWAYS), ("proceed_always", ALWAYS), ("p", ONCE), ("c", NO)],
    "vibe": [("allow", ONCE), ("allow-tool", ALWAYS), ("allow-all", ALWAYS), ("reject", NO)],
    "openhands": [("accept", ONCE), ("risk_based", ONCE), ("always", ALWAYS), ("reject", NO)],
    "fast-agent": [("allow_once", ONCE), ("a", ALWAYS), ("r", NO), ("reject_always", NEVER)],
    "kimi": [("approve", ONCE), ("approve_for_session", ALWAYS), ("reject", NO)],
    "only for good": [("always", ALWAYS), ("never", NEVER)],
    "only yes": [("yes", ONCE)],
    "only no": [("no", NO), ("never", NEVER)],
    "nothing": [],
}


def offered(name: str) -> list[Option]:
    return [Option(option_id, option_id.title(), kind) for option_id, kind in DIALECTS[name]]


any_options = st.one_of(
    st.sampled_from(sorted(DIALECTS)).map(offered),
    st.lists(
        st.builds(
            Option,
            st.text(max_size=100),
            st.text(max_size=300),
            st.sampled_from([ONCE, ALWAYS, NO, NEVER, "allow", "later", ""]),
        ),
        max_size=40,
    ),
)
any_call = st.builds(
    ToolCall,
    st.just("c1"),
    title=st.sampled_from(["", "Read a", "Write a", "rm -rf /"]),
    kind=st.sampled_from(["", "read", "search", "edit", "execute", "think", "switch_mode", "odd"]),
    diffs=st.sampled_from([(), (Diff("/a", None, "x"),)]),
    arguments=st.sampled_from([None, {"command": "ls"}, {"file": "a"}, "text"]),
)
any_mode = st.sampled_from(PermissionMode)
FEW = settings(max_examples=40)


@FEW
@given(any_mode, any_call, any_options, st.booleans())
def test_nothing_is_allowed_but_by_an_option_that_allows(
    mode: PermissionMode, call: ToolCall, options: list[Option], said: bool
) -> None:
    decision = decide(mode, call, options, {memory_key(call): said} if memory_key(call) else {})
    if decision is None:
        assert mode is PermissionMode.ASK
        assert choose(options, allow=True) is not None
        return
    if decision.option is not None:
        assert decision.option in options
        assert decision.option.kind in (ALLOWING if decision.allowed else REJECTING)
    else:
        assert not decision.allowed


@FEW
@given(any_call, any_options)
def test_each_mode_does_what_it_says(call: ToolCall, options: list[Option]) -> None:
    denied = decide(PermissionMode.DENY_ALL, call, options, {})
    assert denied is not None
    assert not denied.allowed
    can = choose(options, allow=True) is not None
    all_allowed = decide(PermissionMode.APPROVE_ALL, call, options, {})
    assert all_allowed is not None
    assert all_allowed.allowed is can
    by_reading = decide(PermissionMode.APPROVE_READS, call, options, {})
    assert by_reading is not None
    assert by_reading.allowed is (can and reads(call))
    asked = decide(PermissionMode.ASK, call, options, {})
    assert (asked is None) is (can and not reads(call))
    if can and reads(call):
        assert asked == by_reading


@FEW
@given(any_options)
def test_what_holds_once_goes_before_what_holds_for_good(options: list[Option]) -> None:
    for allow, kinds in ((True, ALLOWING), (False, REJECTING)):
        chosen = choose(options, allow=allow)
        fitting = [o for kind in kinds for o in options if o.kind == kind]
        assert chosen == (fitting[0] if fitting else None)


@pytest.mark.parametrize(
    ("dialect", "allow", "expected"),
    [
        ("claude", True, "allow"),
        ("gemini", True, "proceed_once"),
        ("qwen", True, "p"),
        ("openhands", True, "accept"),  # not `risk_based`, which changes its mode
        ("fast-agent", False, "r"),
        ("only for good", True, "always"),
        ("only for good", False, "never"),
        ("only yes", False, None),
        ("only no", True, None),
        ("nothing", True, None),
    ],
)
def test_the_first_of_the_wanted_kind_is_chosen(
    dialect: str, allow: bool, expected: str | None
) -> None:
    chosen = choose(offered(dialect), allow=allow)
    assert (chosen.option_id if chosen else None) == expected


def test_without_options_nobody_is_asked_and_the_harness_is_told_cancelled() -> None:
    decision = decide(PermissionMode.ASK, ToolCall("c"), [], {})
    assert decision is not None
    assert (decision.allowed, decision.rule, decision.option) == (False, Rule.NO_OPTION, None)


@FEW
@given(any_call, any_options)
def test_a_question_fits_the_contract_and_its_default_denies(
    call: ToolCall, options: list[Option]
) -> None:
    asked = question(call, options)
    assert 1 <= len(asked.title) <= 256
    assert "\n" not in asked.title
    assert asked.kind in ("read", "edit", "delete", "move", "search", "execute", "fetch", "other")
    assert 1 <= len(asked.offers) <= 32
    ids = [offer.option_id for offer in asked.offers]
    assert len(set(ids)) == len(ids)
    for offer in asked.offers:
        assert 1 <= len(offer.option_id) <= 64
        assert 1 <= len(offer.name) <= 128
        assert offer.kind in (*ALLOWING, *REJECTING)
    expired = answered(asked, asked.default_id, "")
    assert (expired.allowed, expired.rule) == (False, Rule.EXPIRED)
    # An answer that was never offered, and none at all.
    for unknown in ("", "yes-please"):
        assert not answered(asked, unknown, "ann").allowed


@FEW
@given(any_call, any_options)
def test_an_answer_is_the_option_that_the_harness_offered_under_it(
    call: ToolCall, options: list[Option]
) -> None:
    asked = question(call, options)
    for offer in asked.offers:
        decision = answered(asked, offer.option_id, "ann")
        assert decision.rule is Rule.ASKED
        assert decision.responder == "ann"
        assert decision.allowed is (offer.kind in ALLOWING)
        if decision.option is not None:
            assert decision.option in options
            assert (decision.option.kind in ALLOWING) is decision.allowed


def test_what_was_said_for_the_rest_of_the_session_holds_for_the_same_thing_only() -> None:
    run = ToolCall("c1", title="`ls`", kind="execute", arguments={"command": "ls"})
    asked = question(run, offered("claude"))
    always = next(o.option_id for o in asked.offers if o.kind == ALWAYS)
    remembered = to_remember(asked, always, run)
    assert remembered is not None
    assert to_remember(asked, asked.default_id, run) is None
    said = dict([remembered])
    again = decide(PermissionMode.ASK, patched(run, Patch("c2")), offered("claude"), said)
    assert again is not None
    assert (again.allowed, again.rule) == (True, Rule.REMEMBERED)
    assert again.option is not None
    assert again.option.option_id == "allow"
    other = ToolCall("c3", title="`ls`", kind="execute", arguments={"command": "rm -rf /"})
    assert decide(PermissionMode.ASK, other, offered("claude"), said) is None


def test_the_same_edit_is_one_of_the_same_file() -> None:
    one, other = (
        ToolCall("c", title="Edit", kind="edit", locations=(path,), arguments={"text": text})
        for path, text in (("/a", "x"), ("/b", "x"))
    )
    assert memory_key(one) != memory_key(other)
    assert memory_key(one) == memory_key(patched(one, Patch("c", arguments={"text": "y"})))


def test_a_request_that_names_nothing_is_not_remembered() -> None:
    assert memory_key(ToolCall("c")) == ""
    assert memory_key(ToolCall("c", kind="execute")) == ""


def test_arguments_so_long_that_they_were_cut_are_not_remembered() -> None:
    assert memory_key(ToolCall("c", title="t", kind="execute", arguments="x" * 60_000)) == ""


def test_a_bare_request_is_completed_by_what_was_told_before() -> None:
    told = patched(None, Patch("c1", title="Read a", kind="read", locations=("/w/a",)))
    bare = patched(told, Patch("c1"))
    assert reads(bare)
    assert question(bare, offered("vibe")).title == "Read a"
    # Without anything told before it is no reading.
    assert not reads(patched(None, Patch("c1")))


def test_a_reading_that_brings_a_diff_is_none() -> None:
    assert not reads(ToolCall("c", kind="read", diffs=(Diff("/a", "x", "y"),)))
