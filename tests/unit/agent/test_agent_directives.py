from __future__ import annotations

import pytest

from agent_svc.domain.directives import Directive, directives, seconds, things


def test_all_directives_in_order() -> None:
    text = "a [[spawn: x]] [[acp claude: fix it]] [[acp-background codex: test]]"
    text += " [[ sleep : 2s ]] [[reply: done]]"
    assert directives(text) == [
        Directive("spawn", "", "x"),
        Directive("acp", "claude", "fix it"),
        Directive("acp-background", "codex", "test"),
        Directive("sleep", "", "2s"),
        Directive("reply", "", "done"),
    ]


def test_brackets_nest() -> None:
    inner = "[[spawn: [[reply: leaf]]]] [[reply: middle]]"
    (outer,) = directives(f"[[spawn: {inner}]]")
    assert outer.text == inner
    assert [order.verb for order in directives(outer.text)] == ["spawn", "reply"]


@pytest.mark.parametrize("text", ["[[unknown: x]]", "[[spawn: x", "plain", "[[]]", "[[spawn]]"])
def test_anything_else_is_plain_text(text: str) -> None:
    assert directives(text) == []


@pytest.mark.parametrize(
    ("text", "value"),
    [("5s", 5.0), ("200ms", 0.2), ("1m", 60.0), (" 2 ", 2.0), ("9999m", 3600.0), ("x", None)],
)
def test_durations(text: str, value: float | None) -> None:
    assert seconds(text) == value


def test_the_classic_request_is_three_things() -> None:
    text = "Do three things: research a market trend, analyse competitors, draft a summary"
    assert things(text) == ["research a market trend", "analyse competitors", "draft a summary"]


@pytest.mark.parametrize(
    "text",
    [
        "Please:\n1. one\n2. two\n3) three",
        "Please:\n- one\n* two\n• three.",
        "Please do this: one, two and three.",
        "Please do this: one, two, and three",
    ],
)
def test_lists(text: str) -> None:
    assert things(text) == ["one", "two", "three"]


@pytest.mark.parametrize("text", ["one thing", "note: one thing", "a, b and c", ""])
def test_one_thing_is_no_list(text: str) -> None:
    assert things(text) == []
