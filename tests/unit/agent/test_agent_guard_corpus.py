"""The detectors on the labelled corpus, and the screen on the same replies as they are written.

The bounds are stated in docs/reference/delegation-guard.md: below them the guard does harm.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_svc.domain.guard.detect import false_claim, invented_result, textual_call
from agent_svc.domain.guard.watch import CODE_CHARS, Screen
from bench.guard import DETECTORS, FACTS, PARTS, WHOLE, delays, rows, score

FREE = FACTS["free"]
ROWS = [row for part in PARTS for row in rows(part)]
CAUGHT = [
    row["reply"]
    for row in ROWS
    if row["facts"] == "free"
    and (false_claim(row["reply"], FREE) or invented_result(row["reply"], FREE))
]


def test_the_corpus_is_large_enough_to_say_something() -> None:
    assert len(ROWS) >= 250
    assert len({row["id"] for row in ROWS}) == len(ROWS)
    assert len({(row["reply"], row["asked"], row["facts"]) for row in ROWS}) == len(ROWS)
    kinds = {row["kind"] for row in ROWS}
    assert kinds >= {"refusal", "textual", "ignored", "invented", "honest", "ordinary", "near-miss"}
    # What is caught and what passes are about as many: precision means something.
    assert 0.4 < sum(bool(row["caught"]) for row in ROWS) / len(ROWS) < 0.7


@pytest.mark.parametrize(("part", "recall"), [("development", 0.98), ("heldout", 0.93)])
def test_precision_and_recall_stay_within_their_bounds(part: str, recall: float) -> None:
    total = score(part)
    for name in (*DETECTORS, WHOLE):
        assert total.precision(name) >= 0.98, total.mistakes
        assert total.recall(name) >= recall, total.mistakes


def test_every_honest_refusal_passes() -> None:
    honest = [row for row in ROWS if row["kind"] == "honest"]
    assert len(honest) >= 20
    wrong = [
        mistake
        for part in PARTS
        for mistake in score(part).mistakes
        if mistake.split()[0] in {row["id"] for row in honest}
    ]
    assert wrong == []


def test_ordinary_replies_stream_nearly_as_they_come() -> None:
    cost = delays()
    assert cost.at_once / cost.words >= 0.6
    assert cost.mean <= 4
    assert cost.most <= 40


def _shown(text: str, sizes: list[int]) -> tuple[str, Screen]:
    screen = Screen(FREE, whole=False)
    shown, position = "", 0
    while position < len(text):
        size = sizes[0] if len(sizes) == 1 else sizes.pop(0)
        shown += screen.feed(text[position : position + size])
        position += size
    return shown, screen


def _leaks(shown: str, text: str) -> str:
    """What was shown of the sentence with the claim: all that follows what is clean by itself."""
    assert text.startswith(shown)
    last = re.split(r"(?<=[.!?…])\s+|\n+", shown)[-1]
    assert false_claim(shown, FREE, verbatim=True) is None
    assert invented_result(shown, FREE, verbatim=True) is None
    return last


@pytest.mark.parametrize("size", [1, 3, 7, 40, 10_000])
def test_of_an_excuse_nothing_is_shown_but_words_that_say_nothing_yet(size: int) -> None:
    assert len(CAUGHT) > 80
    for text in CAUGHT:
        leaked = _leaks(_shown(text, [size])[0], text)
        assert len(leaked.split()) <= 5, (leaked, text)
        assert not re.search(r"(?i)agent|session|permi|authori|not|n't|sorry|unab|\bI\b", leaked)


BEFORE = st.lists(
    st.sampled_from(
        [
            *(
                "The weather is fine. ",
                "Oslo has 4 degrees! ",
                "- one\n- two\n",
                "Here you go:\n\n",
            ),
            *("I looked at both offers. ", "It is not far. ", 'He said "hello." ', "See `a. b`. "),
            *("```\nx = 1\n```\n", "1. Read it.\n", "Well… ", "> quoted\n\n", "Sub-agents help. "),
        ]
    ),
    max_size=5,
).map("".join)


@settings(max_examples=60)
@given(BEFORE, st.sampled_from(CAUGHT), BEFORE, st.lists(st.integers(1, 30), min_size=1))
def test_an_excuse_among_clean_sentences_is_not_shown(
    before: str, excuse: str, after: str, sizes: list[int]
) -> None:
    text = f"{before}{excuse} {after}"
    if not (false_claim(text, FREE) or invented_result(text, FREE)):
        return  # what stands around it made it a quotation
    shown, _ = _shown(text, [*sizes, 5])
    _leaks(shown, text)
    assert len(shown) < len(before) + len(excuse)


@settings(max_examples=60)
@given(BEFORE, st.lists(st.integers(1, 30), min_size=1))
def test_what_is_clean_is_shown_whole_and_in_order(text: str, sizes: list[int]) -> None:
    shown, screen = _shown(text, [*sizes, 5])
    assert text.startswith(shown)
    assert shown + screen.rest() == text
    assert screen.rest() == ""


def test_a_call_written_as_text_is_not_shown() -> None:
    texts = [row for row in ROWS if "textual_call" in row["caught"]]
    for row in texts:
        shown, _ = _shown(row["reply"], [4])
        assert textual_call(shown, FREE.tools) == []
        assert "sessions_" not in shown, row
        assert not re.search(r"[{<\[]\s*$|\"name\"|<tool|TOOL_CALLS", shown), (shown, row)


def test_code_is_shown_once_it_is_no_call() -> None:
    """A reply of code streams: it waits for the end of its block, or for some lines of it."""
    short = "Here:\n```python\nprint(1)\n```\nThat is all there is. "
    assert _shown(short, [3])[0].strip() == short.strip()
    lines = "".join(f"value_{n} = compute({n})\n" for n in range(60))
    shown, _ = _shown(f"Here:\n```python\n{lines}", [5])
    assert len(shown) > len(lines) - 40
    assert len(_shown(f"Here:\n```python\n{lines[: CODE_CHARS // 2]}", [5])[0]) < 20


def test_the_whole_reply_waits_where_delegation_was_asked_for() -> None:
    screen: Any = Screen(FREE, whole=True)
    assert screen.feed("Sure. Here is the answer. ") == ""
    assert screen.feed("It is 42.\n\n") == ""
    assert screen.rest() == "Sure. Here is the answer. It is 42.\n\n"
