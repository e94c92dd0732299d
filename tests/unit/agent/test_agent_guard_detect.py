"""The detectors of the delegation guard: what each is about. The corpus measures how well."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_svc.domain.guard.detect import (
    Facts,
    asks_to_delegate,
    false_claim,
    invented_result,
    textual_call,
    verdict,
)
from agent_svc.domain.guard.watch import Screen

TOOLS = frozenset({"sessions_spawn", "sessions_yield", "agents_list"})
FREE = Facts(TOOLS)
EXCUSE = "I do not have permission to spawn sessions."


def test_an_excuse_is_false_where_the_run_may_delegate() -> None:
    found = false_claim(EXCUSE, FREE)
    assert found is not None
    assert (found.trigger, found.subject) == ("false_claim", "permission")
    assert found.excerpt == EXCUSE


@pytest.mark.parametrize(
    "facts",
    [
        Facts(frozenset(), depth=1, max_depth=1),
        Facts(frozenset({"time__now"})),
        Facts(TOOLS, refused=True),
    ],
)
def test_an_honest_refusal_passes(facts: Facts) -> None:
    assert false_claim(EXCUSE, facts) is None
    assert verdict(EXCUSE, facts, asks_to_delegate("Spawn two sub-agents.")) is None


def test_a_limit_is_claimed_truly_only_where_it_is_reached() -> None:
    said = "I cannot start another sub-agent: the maximum is reached."
    assert false_claim(said, Facts(TOOLS, children=5, max_children=5)) is None
    assert false_claim(said, Facts(TOOLS, children=4, max_children=5)) is not None
    said = "The token budget for sub-agents is used up."
    assert false_claim(said, Facts(TOOLS, budget_exhausted=True)) is None
    assert false_claim(said, FREE) is not None


def test_an_honest_refusal_answers_an_instruction() -> None:
    """At the cap of children nothing was ignored: the reply says why it did not."""
    asked = asks_to_delegate("Use a sub-agent for this.")
    said = "I cannot start another sub-agent: the maximum is reached."
    assert asked is not None
    assert verdict(said, Facts(TOOLS, children=5), asked) is None
    found = verdict("Done: 42.", Facts(TOOLS, children=5), asked)
    assert found is not None
    assert found.trigger == "ignored_instruction"


def test_a_call_keeps_its_arguments_whatever_its_format() -> None:
    task = 'Say "hi", then\nstop (at 3 % or {so}).'
    arguments = {"task": task, "wait": False}
    written = json.dumps({"name": "sessions_spawn", "arguments": arguments})
    formats = [
        written,
        f"<tool_call>\n{written}\n</tool_call>",
        f"```json\n{written}\n```",
        f"[TOOL_CALLS][{written}]",
        f"sessions_spawn(task={task!r}, wait=False)",
        f"```tool_code\nprint(default_api.sessions_spawn(task={task!r}, wait=False))\n```",
        f"<function=sessions_spawn>{json.dumps(arguments)}</function>",
        f'<invoke name="sessions_spawn"><parameter name="task">{task}</parameter>'
        '<parameter name="wait">false</parameter></invoke>',
        f"Action: sessions_spawn\nAction Input: {json.dumps(arguments)}",
    ]
    for text in formats:
        ((name, found),) = textual_call(text, TOOLS)
        assert (name, json.loads(found)) == ("sessions_spawn", arguments), text


def test_a_call_of_a_tool_that_is_not_offered_is_plain_text() -> None:
    assert textual_call('{"name": "send_mail", "arguments": {"to": "a"}}', TOOLS) == []
    assert textual_call('{"name": "sessions_spawn", "arguments": {"task": "a b"}}', ()) == []


def test_what_was_said_last_about_delegating_holds() -> None:
    use, dont = "Use two sub-agents.", "On second thought, don't use sub-agents."
    asked = asks_to_delegate(use)
    assert asked is not None
    assert asked.count == 2
    assert asks_to_delegate(use, dont) is None
    assert asks_to_delegate(use, dont, use) is not None


def test_a_result_is_invented_only_where_nobody_worked() -> None:
    said = "Both sub-agents have reported back."
    assert invented_result(said, FREE) is not None
    assert invented_result(said, Facts(TOOLS, started=2)) is None
    assert invented_result(said, Facts(TOOLS, before=True)) is None


_PIECES = st.sampled_from(
    [
        *("I ", "can't ", "sub-agents ", "spawn ", "sessions_spawn", "(", ")", "{", "}", '"', "'"),
        *("```", "\n", "<tool_call>", "</tool_call>", '{"name": "sessions_spawn"', ", ", "task="),
        *("[", "]", ".", "?", "\\", "name", ":", "permission ", "don't have ", "<function=", ">"),
    ]
)


@settings(max_examples=40)
@given(st.lists(_PIECES | st.text(max_size=5), max_size=40).map("".join))
def test_any_text_is_judged(text: str) -> None:
    found = verdict(text, FREE, asks_to_delegate(text))
    for name, arguments in textual_call(text, TOOLS):
        assert name in TOOLS
        assert isinstance(json.loads(arguments), dict)
    assert found is None or len(found.excerpt) <= 300


def test_huge_texts_are_judged_in_no_time() -> None:
    """They are judged in the turn loop, beside everybody's heartbeats: what is looked at is
    bounded. A message of a megabyte took nine seconds."""
    began = time.process_time()
    for text in ("I can't use " * 50_000, "{" * 100_000 + "sessions_spawn", "sub-agents " * 50_000):
        verdict(text, FREE, None)
        asks_to_delegate(text)
    long = "Please compare the offers in this table and tell me which is best. " * 16_000
    assert asks_to_delegate(long) is None
    assert asks_to_delegate(long + "Use two sub-agents.") is not None
    assert time.process_time() - began < 6


@pytest.mark.parametrize(
    "unit",
    ["a", "\n", "```a\n", "to=x ", "<sessions_spawn>", "<tool_call>sessions_spawn<arg_key>", "}{["],
)
def test_calls_are_looked_for_in_no_time_in_texts_that_only_begin_them(unit: str) -> None:
    """A hexadecimal dump or a page of empty lines beside the name of the tool took minutes."""
    began = time.process_time()
    for start in ("sessions_spawn ", "<tool_call>sessions_spawn "):
        for length in (29_000, 190_000):
            textual_call(start + unit * (length // len(unit)), TOOLS)
    assert time.process_time() - began < 4


@pytest.mark.parametrize("mark", ["„", "“", "«", '"', "`"])
def test_quotations_that_never_end_are_judged_in_no_time(mark: str) -> None:
    """Each mark was looked for the end of, through all that follow: 30,000 took half a minute."""
    began = time.process_time()
    text = "sub-agents " + mark * 29_001
    verdict(text, FREE, None)
    asks_to_delegate(text)
    assert time.process_time() - began < 2


def test_a_reply_without_an_end_is_screened_in_no_time() -> None:
    """Every piece was judged against all that came before it: fifty seconds for 40 kB."""
    screen = Screen(FREE, whole=False)
    text = "abcdefgh" * 2_000
    began = time.process_time()
    shown = "".join(screen.feed(text[at : at + 4]) for at in range(0, len(text), 4))
    assert time.process_time() - began < 5
    assert shown + screen.rest() == text
    assert len(shown) > len(text) - 2_000, "and it is not held back for ever"
