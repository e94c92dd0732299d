"""Slash commands as people type them: what is one, what is a slip, and what is for the agent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyor.common.v1 import content_pb2
from conveyor.scheduler.v1 import lane_pb2
from gateway_svc.domain.commands.form import Form, Kind
from gateway_svc.domain.commands.grammar import (
    BY_ALIAS,
    ELSEWHERE,
    FIRST_WORDS,
    FORMS,
    GROUPS,
)
from gateway_svc.domain.commands.guide import TOPICS, help_text
from gateway_svc.domain.commands.parsing import Command, read, read_message, read_strictly
from gateway_svc.domain.commands.problem import Problem
from gateway_svc.domain.commands.queueing import MODES, queue_answer

COLLECT, FOLLOWUP = lane_pb2.QUEUE_MODE_COLLECT, lane_pb2.QUEUE_MODE_FOLLOWUP


def message(*texts: str) -> content_pb2.Message:
    return content_pb2.Message(parts=[content_pb2.ContentPart(text=text) for text in texts])


def command(text: str) -> Command:
    found = read(text)
    assert isinstance(found, Command), found
    return found


def problem(text: str) -> str:
    found = read(text)
    assert isinstance(found, Problem), found
    assert "\n" not in found.text
    return found.text


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_every_form_has_an_example_that_can_be_done(form: Form) -> None:
    assert command(form.example).form is form
    for alias in form.aliases:
        given_words = form.example.split()[1:]
        rest = given_words if form.example.startswith(f"/{alias} ") else given_words[1:]
        assert BY_ALIAS[alias] is form
        if rest:
            assert command(" ".join([f"/{alias}", *rest])).form is form


def test_every_first_word_is_in_the_general_help() -> None:
    told = {word for _, words in TOPICS for word in words}
    assert told == set(FIRST_WORDS) - {"help"}
    assert set(ELSEWHERE.values()) <= set(FIRST_WORDS)
    assert not set(ELSEWHERE) & set(FIRST_WORDS)


@pytest.mark.parametrize(
    ("text", "name", "arguments"),
    [
        ("/queue", "queue", {}),
        ("  /Queue COLLECT\n", "queue", {"mode": "collect"}),
        ("/status@our_bot", "status", {}),
        ("/stop", "stop", {}),
        ("/stop ALL", "stop", {"all": "all"}),
        ("/help", "help", {}),
        ("/help subagents kill", "help", {"command": "subagents kill"}),
        ("/model openai:gpt-5", "model", {"name": "openai:gpt-5"}),
        ("/subagents", "subagents list", {}),
        ("/subagents list 2", "subagents list", {"page": "2"}),
        ("/subagents\nlist", "subagents list", {}),
        ("/subagents info market trend", "subagents info", {"target": "market trend"}),
        ("/kill all", "subagents kill", {"target": "all"}),
        ("/kill “market trend”", "subagents kill", {"target": "market trend"}),
        ("/kill #2", "subagents kill", {"target": "#2"}),
        ("/steer 1 look  here", "subagents steer", {"target": "1", "message": "look  here"}),
        (
            '/tell "market trend" look here',
            "subagents steer",
            {"target": "market trend", "message": "look here"},
        ),
        (
            '/subagents send 1 "quoted" and more',
            "subagents send",
            {"target": "1", "message": '"quoted" and more'},
        ),
        ("/subagents log trend 5", "subagents log", {"target": "trend", "lines": "5"}),
        (
            "/subagents spawn helper compare\nthree hotels --model demo",
            "subagents spawn",
            {"agent": "helper", "task": "compare\nthree hotels", "model": "demo"},
        ),
        (
            "/subagents spawn helper —model=demo compare",
            "subagents spawn",
            {"agent": "helper", "task": "compare", "model": "demo"},
        ),
        ("/flow", "flow list", {}),
        ("/flow cancel 3", "flow cancel", {"flow": "3"}),
        ("/approve", "approve", {}),
        ("/approve always", "approve", {"always": "always"}),
        ("/approve 2 Always", "approve", {"question": "2", "always": "always"}),
        ("/deny #1", "deny", {"question": "#1"}),
        ("/why", "why", {}),
        ("/acp", "acp help", {}),
        ("/acp spawn claude", "acp spawn", {"harness": "claude"}),
        (
            "/acp spawn claude --bind here --permissions ASK fix --mode and it",
            "acp spawn",
            {
                **{"harness": "claude", "bind": "here", "permissions": "ask"},
                "task": "fix --mode and it",
            },
        ),
        (
            "/acp spawn —label “my docs” claude fix it —cwd=/srv/a –bind here",
            "acp spawn",
            {
                **{"harness": "claude", "label": "my docs", "cwd": "/srv/a"},
                **{"bind": "here", "task": "fix it"},
            },
        ),
        (
            "/acp spawn claude -- explain --bind here",
            "acp spawn",
            {"harness": "claude", "task": "explain --bind here"},
        ),
        (
            '/acp spawn claude "explain --bind here" --label docs',
            "acp spawn",
            {"harness": "claude", "task": "explain --bind here", "label": "docs"},
        ),
        (
            "/acp spawn claude —explain this",
            "acp spawn",
            {"harness": "claude", "task": "—explain this"},
        ),
        ("/acp steer look at --cwd first", "acp steer", {"message": "look at --cwd first"}),
        (
            "/acp steer --session docs run it",
            "acp steer",
            {"session": "docs", "message": "run it"},
        ),
        ("/acp cancel my docs", "acp cancel", {"target": "my docs"}),
        ("/acp timeout 20 min", "acp timeout", {"time": "1200"}),
        ("/acp timeout 90 --session 2", "acp timeout", {"time": "90", "session": "2"}),
        ("/acp timeout", "acp timeout", {}),
        ("/acp permissions Ask", "acp permissions", {"mode": "ask"}),
        ("/acp set effort very high", "acp set", {"key": "effort", "value": "very high"}),
        ("/acp set-mode plan --session #1", "acp set-mode", {"mode": "plan", "session": "#1"}),
    ],
)
def test_what_is_read(text: str, name: str, arguments: dict[str, str]) -> None:
    found = command(text)
    assert (found.name, dict(found.arguments)) == (name, arguments)
    assert read_message(message(text)) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "hello",
        "the /queue is long",
        "/etc/hosts is broken",
        "/etc/queue",
        "//status",
        "/queue/all",
        "/summarize this page",
        "/2",
        "/ status",
        "/dance",
        "/news of today",
        "/cancel my order of last week please",
        "/start with the numbers of May",
        "a\n/status",
    ],
)
def test_what_merely_begins_with_a_slash_is_for_the_agent(text: str) -> None:
    assert read(text) is None
    assert read_message(message(text)) is None


def test_a_message_of_several_parts_is_none() -> None:
    assert read_message(message("/queue", "collect")) is None
    assert read_message(content_pb2.Message()) is None


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("/stauts", "/status"),
        ("/STAUTS", "/status"),
        ("/queu", "/queue"),
        ("/queued", "/queue"),
        ("/subagent list", "/subagents"),
        ("/aprove 2", "/approve"),
        ("/modle", "/model"),
        ("/agnets", "/agents"),
        ("/task", "/tasks"),
        ("/kil 1", "/kill"),
        ("/ster market look at Europe", "/steer"),
        ("/reset", "/new"),
        ("/cancel", "/stop"),
        ("/start", "/help"),
        ("/news", "/new"),
    ],
)
def test_a_slip_gets_a_hint(text: str, meant: str) -> None:
    assert f"did you mean `{meant}`?" in problem(text)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("/queue loud", ("“loud” is no queue mode", "`/queue collect`")),
        ("/queue collect now", ("takes no “now”", "`/queue collect`")),
        ("/queue " + "x" * 500, ("is no queue mode", "`/queue collect`")),
        ("/stop everything", ("takes no “everything”", "`/stop [all]`", "`/stop all`")),
        ("/subagents steer 1", ("needs a message", "/steer 1 look at Europe only")),
        ("/steer", ("needs a sub-agent", "/steer 1")),
        ("/kill", ("needs a sub-agent", "`/kill 1`")),
        ("/subagents kil 1", ("“kil” is nothing that `/subagents` does", "`/kill 1`")),
        ("/subagents 1", ("say list, info, log", "for example")),
        ("/subagents list two", ("“two” is not a page", "/subagents list")),
        ("/subagents log 1 0", ("“0” is not a number of lines",)),
        ("/subagents spawn helper", ("needs a task", "[--model model]")),
        ("/model a b", ("takes no “b”", "`/model [name]`")),
        ("/new idea", ("`/new` takes no “idea”",)),
        ("/approve 1 2", ("takes no “2”", "`/approve 2`")),
        ("/flow shw 1", ("“shw” is nothing", "`/flow show 1`")),
        ("/acp spawn", ("needs a harness", "<harness>")),
        ("/acp spawn claude --bind", ("`--bind` needs here or off", "`--bind here`")),
        ("/acp spawn claude --cwd --bind here", ("`--cwd` needs a directory",)),
        ("/acp spawn claude --label —bind here fix", ("`--label` needs a label",)),
        ('/acp spawn claude --label "" fix', ("`--label` needs a label",)),
        ("/acp spawn claude --cwd -- fix --label", ("`--cwd` needs a directory",)),
        ("/acp spawn claude --bind there fix", ("“there” is no binding: say here or off",)),
        (
            "/acp spawn claude fix --mode fast",
            ("“fast” is no mode: say persistent or oneshot", "In quot"),
        ),
        ("/acp spawn claude --bind here fix --bind off", ("`--bind` is there twice",)),
        ("/acp spawn claude --yolo fix", ("knows no “--yolo”: there is `--bind`", "`--cwd`")),
        ("/acp spwan claude", ("“spwan” is nothing that `/acp` does", "/acp spawn claude")),
        ("/acp permissions all", ("“all” is no permission mode", "approve-reads")),
        ("/acp timeout soon", ("“soon” is not a time: say `90s`",)),
    ],
)
def test_what_is_malformed_is_answered_in_one_line_with_an_example(
    text: str, parts: tuple[str, ...]
) -> None:
    told = problem(text)
    assert len(told) < 240
    for part in parts:
        assert part in told


def test_a_caller_with_nothing_but_commands_is_always_told() -> None:
    for text in ("/nothing", "hello", "", "/etc/hosts", "/"):
        found = read_strictly(text)
        assert isinstance(found, Problem)
        assert "did you mean `/" in found.text
    assert read_strictly("/status") == command("/status")


texts = st.one_of(
    st.text(max_size=60),
    st.text("/ \n\t\"'“”#@-0123456789abcdefghijklmnopqrstuvwxyz", max_size=60),
    st.builds(
        lambda word, rest: f"/{word}{rest}", st.sampled_from(FIRST_WORDS), st.text(max_size=40)
    ),
    st.builds(
        lambda form, rest: f"/{form.name} {rest}", st.sampled_from(FORMS), st.text(max_size=40)
    ),
)


@given(texts)
def test_reading_never_fails_and_says_one_line(text: str) -> None:
    for found in (read(text), read_strictly(text)):
        if isinstance(found, Problem):
            assert found.text.splitlines() == [found.text]
            assert len(found.text) < 400
        elif isinstance(found, Command):
            names = {argument.name: argument for argument in found.form.arguments}
            options = {option.name for option in found.form.options}
            assert all(found.arguments.values())
            for name, value in found.arguments.items():
                if name in options:
                    continue
                argument = names.pop(name)
                if argument.kind is Kind.CHOICE:
                    assert value in argument.choices
                if argument.kind is Kind.COUNT:
                    assert int(value) >= 1
            assert not any(argument.required for argument in names.values())


def test_a_long_text_about_options_is_read_at_once() -> None:
    for piece in ("--bind here x ", '--cwd "', "--bind here ", "— ", "--label “a "):
        found = read(f"/acp spawn claude explain {piece * 20_000}")
        assert isinstance(found, Command | Problem)


@given(st.text(min_size=1, max_size=80))
def test_no_text_without_a_slash_in_front_is_swallowed(text: str) -> None:
    if not text.strip().startswith("/"):
        assert read(text) is None
    assert read(f"/{text.strip()}/x") is None or " " in text or not text.isprintable()
    assert read(f"//{text}") is None


names = st.one_of(st.sampled_from(FIRST_WORDS), st.text("abcxyz.-_9", min_size=1, max_size=8))


@given(st.lists(names, min_size=2, max_size=5), st.text("ab /", max_size=20))
def test_no_path_is_swallowed(parts: list[str], rest: str) -> None:
    assert read(f"/{'/'.join(parts)} {rest}") is None


@given(st.text(min_size=1, max_size=60))
def test_what_is_told_to_a_sub_agent_or_as_a_task_arrives_as_it_was_typed(text: str) -> None:
    said = " ".join(text.split())
    if not said or said[0] in "\"'“„«‘" or "--" in said or "—" in said or "–" in said:
        return
    assert command(f"/steer 1 {said}").get("message") == said
    assert command(f"/subagents spawn main {said}").get("task") == said


def test_help_is_short_and_answers_for_every_command() -> None:
    general = help_text("")
    assert isinstance(general, str)
    assert len(general.splitlines()) <= 12
    for word in (*FIRST_WORDS, *(form.name for form in FORMS), "/Stop"):
        told = help_text(word)
        assert isinstance(told, str), word
        assert len(told.splitlines()) <= 12
    assert "`/flow show <flow>`" in str(help_text("flow"))
    assert "or `/steer`, or `/tell`" in str(help_text("tell"))
    slip = help_text("stauts")
    assert isinstance(slip, Problem)
    assert "`/status`" in slip.text
    assert set(GROUPS) <= set(FIRST_WORDS)


def test_the_answer_says_the_mode_and_the_way_back() -> None:
    assert queue_answer(COLLECT, FOLLOWUP) == (
        "Queue mode collect: a message for a busy conversation is answered together with the "
        "others that wait. `/queue reset` goes back to followup."
    )
    assert "reset" not in queue_answer(lane_pb2.QUEUE_MODE_UNSPECIFIED, FOLLOWUP)
    assert "reset" not in queue_answer(COLLECT, COLLECT)
    queue = next(form for form in FORMS if form.name == "queue")
    assert set(queue.arguments[0].choices) == {*MODES, "reset"}
