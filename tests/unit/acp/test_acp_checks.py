"""The order of the doctor's checks, and what they come to."""

from __future__ import annotations

import pytest

from acp_svc.domain.checks import (
    HARNESS_CHECKS,
    Check,
    Finding,
    Made,
    Status,
    completed,
    excused,
    healthy,
)

OK, WARNING, FAILED, SKIPPED = Status.OK, Status.WARNING, Status.FAILED, Status.SKIPPED


def line(check: Check, harness_id: str, status: Status, code: str = "") -> Made:
    return Made(check, harness_id, Finding(status, "said", code))


def good(harness_id: str) -> list[Made]:
    return [line(check, harness_id, OK) for check in HARNESS_CHECKS]


def missing(harness_id: str) -> list[Made]:
    first = line(Check.COMMAND_FOUND, harness_id, FAILED, "ACP_BACKEND_MISSING")
    return completed(harness_id, [first])


SERVICE = [line(Check.ENABLED, "", OK), line(Check.WORKSPACE_ROOTS, "", OK)]


def test_what_follows_a_failure_is_not_checked_and_says_why() -> None:
    lines = completed(
        "x", [line(Check.COMMAND_FOUND, "x", OK), line(Check.VERSION, "x", FAILED, "CODE")]
    )
    assert [one.check for one in lines] == list(HARNESS_CHECKS)
    assert [one.finding.status for one in lines] == [OK, FAILED, *[SKIPPED] * 4]
    assert lines[-1].finding.message == "not checked, because the check before failed: version"
    off = completed("x", [], Check.ENABLED)
    assert {one.finding.status for one in off} == {SKIPPED}
    assert "enabled" in off[0].finding.message


def test_a_check_cannot_be_forgotten() -> None:
    with pytest.raises(AssertionError):
        completed("x", [line(Check.COMMAND_FOUND, "x", OK)])


def test_with_one_good_harness_those_nobody_named_may_be_missing() -> None:
    made = excused([*SERVICE, *good("a"), *missing("b")], wanted=())
    assert healthy(made)
    assert next(one.finding.status for one in made if one.harness_id == "b") is WARNING
    # The install command stays where it is.
    assert made[len(SERVICE) + len(HARNESS_CHECKS)].finding.code == "ACP_BACKEND_MISSING"


def test_a_harness_that_was_named_has_to_be_there() -> None:
    made = excused([*SERVICE, *good("a"), *missing("b")], wanted=("b",))
    assert not healthy(made)


def test_without_any_good_harness_nothing_is_excused() -> None:
    broken = completed(
        "c",
        [
            line(Check.COMMAND_FOUND, "c", OK),
            line(Check.VERSION, "c", OK),
            line(Check.STARTS, "c", FAILED, "ACP_BACKEND_UNAVAILABLE"),
        ],
    )
    for found in ([*missing("a"), *missing("b")], [*missing("a"), *broken], broken):
        made = excused([*SERVICE, *found], wanted=())
        assert not healthy(made)
        assert WARNING not in {one.finding.status for one in made}
    # Nor is one that is there and does not work, beside one that does.
    assert not healthy(excused([*SERVICE, *good("a"), *broken], wanted=()))


@pytest.mark.parametrize(
    ("made", "verdict"),
    [
        ([], False),
        ([line(Check.ENABLED, "", OK)], True),
        ([line(Check.ENABLED, "", OK), line(Check.SANDBOX, "", WARNING)], True),
        ([line(Check.ENABLED, "", FAILED)], False),
        ([line(Check.ENABLED, "", OK), line(Check.SANDBOX, "", SKIPPED)], False),
    ],
)
def test_only_a_complete_and_clean_examination_is_healthy(made: list[Made], verdict: bool) -> None:
    assert healthy(made) is verdict
