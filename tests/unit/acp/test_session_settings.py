"""Settings of an open session: what a change means for its process, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acp_svc.domain import settings
from acp_svc.domain.permissions import PermissionMode
from acp_svc.domain.sandboxing import needs_sandbox
from acp_svc.domain.settings import Changes, Step, Wanted
from tests.unit.acp.test_session_rules import NOW, make, opened

HAD = Wanted("/w", PermissionMode.ASK, "", "", {})
wanted = st.builds(
    Wanted,
    st.sampled_from(["/w", "/v"]),
    st.sampled_from(PermissionMode),
    st.sampled_from(["", "plan", "code"]),
    st.sampled_from(["", "a", "b"]),
    st.dictionaries(st.sampled_from(["x", "y"]), st.sampled_from(["1", "2"])),
)


@given(wanted, st.booleans(), st.booleans())
def test_what_is_as_it_should_be_is_left_alone(want: Wanted, shut: bool, on: bool) -> None:
    assert settings.step(want, want, sandboxed=shut, sandbox_on=on).nothing


@given(wanted, wanted, st.booleans(), st.booleans())
def test_every_difference_is_told_or_needs_another_process(
    had: Wanted, want: Wanted, shut: bool, on: bool
) -> None:
    step = settings.step(had, want, sandboxed=shut, sandbox_on=on)
    if had.cwd != want.cwd:
        assert step == Step(reopen=True)
    if (
        shut
        and on
        and needs_sandbox(had.permission_mode)
        and not needs_sandbox(want.permission_mode)
    ):
        assert step.reopen, "what people allow could not be written"
    if on and needs_sandbox(want.permission_mode) and not needs_sandbox(had.permission_mode):
        assert step.reopen, "reading only would not be enforced"
    if not step.reopen:
        assert (step.permission_mode is not None) >= (had.permission_mode != want.permission_mode)
        assert step.harness_mode or want.harness_mode in ("", had.harness_mode)
        told = {**had.options, **dict(step.options)}
        assert {name: told[name] for name in want.options} == want.options
        # Without a mode of its own the permissions choose it.
        if had.harness_mode and not want.harness_mode:
            assert step.permission_mode is want.permission_mode


def test_without_sandboxes_permissions_change_in_place() -> None:
    want = replace(HAD, permission_mode=PermissionMode.DENY_ALL)
    assert settings.step(HAD, want, sandboxed=False, sandbox_on=False) == Step(
        permission_mode=PermissionMode.DENY_ALL
    )
    # A process that could not be shut in need not be let out.
    assert not settings.step(want, HAD, sandboxed=False, sandbox_on=True).reopen


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        (Changes(harness_mode="yolo"), "settings.harness_mode", "only: ask, plan"),
        (Changes(model="b"), "settings.model", "only: a"),
        (Changes(options={"o": "2", "p": "1"}), "settings.options[p]", "only: o"),
    ],
)
def test_what_the_harness_does_not_offer_is_named(changes: Changes, field: str, says: str) -> None:
    problem = settings.problem(opened(make()), changes)
    assert problem is not None
    assert problem[0] == field
    assert says in problem[1]


def test_what_it_offers_is_taken() -> None:
    changes = Changes(harness_mode="plan", model="a", options={"o": "2"}, label="x")
    assert settings.problem(opened(make()), changes) is None
    session = settings.configured(opened(make()), changes, NOW)
    assert settings.wanted(session) == Wanted("/w", PermissionMode.ASK, "plan", "a", {"o": "2"})
    assert session.spec.label == "x"
    # Back to the mode of the permissions.
    assert settings.problem(session, Changes(harness_mode="")) is None


def test_another_directory_leaves_the_old_conversation_behind() -> None:
    told = settings.configured(opened(make(prompted=True)), Changes(cwd="/v"), NOW)
    assert (told.spec.cwd, told.upstream_id, told.prompted) == ("/v", "", False)
    same = settings.configured(opened(make()), Changes(cwd="/w"), NOW)
    assert same.upstream_id == "up"


def test_other_permissions_choose_the_mode_anew() -> None:
    session = settings.configured(opened(make()), Changes(harness_mode="plan"), NOW)
    other = settings.configured(session, Changes(permission_mode=PermissionMode.DENY_ALL), NOW)
    assert other.wanted_mode == ""
    both = Changes(permission_mode=PermissionMode.APPROVE_ALL, harness_mode="plan")
    assert settings.configured(session, both, NOW).wanted_mode == "plan"


def test_what_was_refused_is_as_it_was() -> None:
    before = opened(make())
    changes = Changes(
        permission_mode=PermissionMode.DENY_ALL, model="a", label="l", cwd="/v", options={"o": "2"}
    )
    after = settings.restored(settings.configured(before, changes, 0), before)
    assert after == msgspec.structs.replace(before, active_us=0)
