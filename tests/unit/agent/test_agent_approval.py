from __future__ import annotations

import pytest

from agent_svc.domain import approval
from agent_svc.domain import steps as s
from tests.unit.agent.builders import numbered, reply


@pytest.mark.parametrize(
    ("tool", "rule"),
    [
        ("files__read", "allow"),
        ("files__write", "deny"),
        ("files__write_all", "ask"),
        ("time__now", "allow"),
        ("sessions_spawn", "ask"),
    ],
)
def test_the_longest_name_that_fits_decides(tool: str, rule: str) -> None:
    overrides: dict[str, approval.Rule] = {
        "*": "ask",
        "time__now": "allow",
        "files__*": "allow",
        "files__w*": "ask",
        "files__write": "deny",
    }
    assert approval.rule_of(tool, "deny", overrides) == rule
    assert approval.rule_of("other", "deny", {"files__*": "allow"}) == "deny"


def test_only_answers_for_the_rest_of_the_conversation_are_kept() -> None:
    answer = reply(1, 2, "", "a__one", "a__two", "a__three", "a__four")
    asked = [s.Asked(call.id, f"R/{call.id}") for call in answer.calls]
    options = ("allow-always", "deny-always", "allow", "deny")
    answers = tuple(
        s.Answer(f"R/{call.id}", option, "ann")
        for call, option in zip(answer.calls, options, strict=True)
    )
    steps = numbered(1, s.Began("first"), answer, *asked)
    steps += numbered(2, s.Began("answered", answers=answers)) + numbered(3, s.Began("answered"))
    assert approval.standing_answers(steps, 2) == {"a__one": "allow", "a__two": "deny"}
    assert approval.standing_answers(steps, 3) == {}
    assert "rest of this conversation by ann" in approval.verdicts(steps)["1.2.2"].refusal
