from __future__ import annotations

import json

from agent_svc.domain import compaction, results
from agent_svc.domain import steps as s
from agent_svc.domain.content import text_message
from agent_svc.domain.demo import demo, demo_weak
from agent_svc.domain.prompt import Answered, Prompt, Said, ToolAnswer
from tests.unit.agent.builders import asked, numbered, prompt_of, says, told

CLASSIC = "Do three things: research a market trend, analyse competitors, draft a summary"


def arguments(calls: tuple[tuple[str, str], ...]) -> list[dict[str, object]]:
    return [json.loads(text) for _, text in calls]


def test_several_things_are_delegated_and_joined() -> None:
    reply = demo(says(CLASSIC))
    assert [name for name, _ in reply.calls] == ["sessions_spawn"] * 3
    assert [a["task"] for a in arguments(reply.calls)] == [
        "research a market trend",
        "analyse competitors",
        "draft a summary",
    ]
    assert "wait" not in arguments(reply.calls)[0]
    calls = s.name_calls(1, 2, reply.calls)
    steps = numbered(
        1,
        s.Began("first"),
        s.Replied(reply.text, calls),
        *(s.Spawned(c.id, f"C{c.id}", "k", "l", wait=True) for c in calls),
    )
    ends = tuple(told(f"C{c.id}", c.id, f"result of {c.id}") for c in calls)
    began = s.Began("children_settled", told=ends)
    joined = demo(prompt_of(steps + numbered(2, began), turn=2, inputs=[asked(CLASSIC)]))
    assert joined.calls == ()
    assert joined.text.startswith("All 3 sub-agents are done.")
    for call in calls:
        assert f"result of {call.id}" in joined.text


def test_messages_that_came_together_get_one_answer() -> None:
    inputs = [asked("[[reply: one]]", "q1"), asked("[[reply: two]]", "q2"), asked("and so on")]
    assert demo(prompt_of(numbered(1, s.Began("first")), inputs=inputs)).text == "one\n\ntwo"
    plain = demo(prompt_of(numbered(1, s.Began("first")), inputs=[asked("buy"), asked("milk")]))
    assert plain.text == "Done: buy milk"


def test_a_leaf_does_it_all_by_itself() -> None:
    reply = demo(says(CLASSIC, delegating=False))
    assert reply.calls == ()
    assert reply.text.splitlines()[0] == "1. research a market trend: done."
    assert demo(says("[[spawn: x]]", delegating=False)).calls == ()


def test_directives() -> None:
    reply = demo(says("[[sleep: 5s]] [[spawn: a]] [[spawn-background: b]] [[acp claude: c]]"))
    assert reply.sleep_seconds == 5
    assert [a.get("wait") for a in arguments(reply.calls)] == [True, False, True]
    assert arguments(reply.calls)[2]["runtime"] == "acp"
    assert arguments(reply.calls)[2]["agent_id"] == "claude"
    assert demo(says("[[reply: hi]]")).text == "hi"
    assert demo(says("[[fail: broken]]")).failure == "broken"
    assert demo(says("[[sleep: 200ms]]")).text == "Waited 200ms."
    yielding = demo(says("[[spawn: a]] [[yield: later]]"))
    assert [name for name, _ in yielding.calls] == ["sessions_spawn", "sessions_yield"]
    assert arguments(yielding.calls)[1] == {"message": "later"}


def test_another_agent_is_named_after_the_verb() -> None:
    reply = demo(says("[[spawn writer: a poem]] [[spawn-background: dig]]"))
    asked_for = [(a.get("agent_id"), a["wait"]) for a in arguments(reply.calls)]
    assert asked_for == [("writer", True), (None, False)]


def test_a_conversation_is_summed_up_by_what_was_said() -> None:
    told = "<conversation>\nSummary of what came before: hello\n\nCustomer: a boat\nred\n\n"
    prompt = Prompt(compaction.SYSTEM, [Said(f"{told}Assistant: [[fail: no]]\n</conversation>")])
    assert demo(prompt).text == demo_weak(prompt).text == "The customer said: hello; a boat"
    assert demo(prompt).failure == ""


def test_reply_directive_comes_after_the_results() -> None:
    text = "[[spawn: a]] [[reply: all done]]"
    first = demo(says(text))
    calls = s.name_calls(1, 2, first.calls)
    child = s.Spawned(calls[0].id, "C", "k", "l", wait=True)
    steps = numbered(1, s.Began("first"), s.Replied("", calls), child)
    steps += numbered(2, s.Began("children_settled", told=(told("C", calls[0].id),)))
    assert demo(prompt_of(steps, turn=2, inputs=[asked(text)])).text == "all done"


def test_a_closing_turn_quotes_what_it_answers() -> None:
    text = "[[spawn-background: dig]] [[reply: started]]"
    calls = s.name_calls(1, 2, demo(says(text)).calls)
    steps = numbered(
        1,
        s.Began("first"),
        s.Replied("", calls),
        s.Spawned(calls[0].id, "C", "k", "l", wait=False),
        s.Replied("started"),
    )
    began = s.Began("children_settled", 0, True, (told("C", calls[0].id, "gold"),))
    reply = demo(prompt_of(steps + numbered(2, began), turn=2, inputs=[asked(text)]))
    assert reply.text.startswith(f"> {text}\n")
    assert "gold" in reply.text
    assert reply.calls == ()


def test_a_steered_message_is_noted_while_children_work() -> None:
    calls = s.name_calls(1, 2, [("sessions_spawn", "{}")])
    child = s.Spawned(calls[0].id, "C", "k", "l", wait=True)
    steered = s.Steered("q2", text_message("m", "user", "hurry up"))
    steps = numbered(1, s.Began("first"), s.Replied("", calls), child)
    steps += numbered(2, s.Began("steered"), steered)
    reply = demo(prompt_of(steps, turn=2))
    assert reply.text == "Noted while sub-agents are at work: hurry up"


def test_a_refused_spawn_is_said() -> None:
    calls = s.name_calls(1, 2, [("sessions_spawn", "{}")])
    refused = s.Returned(calls[0].id, "No sub-agent was started: too deep", failed=True)
    steps = numbered(1, s.Began("first"), s.Replied("", calls), refused)
    reply = demo(prompt_of(steps, inputs=[asked("[[spawn: a]]")]))
    assert reply.text == "I could not delegate this: No sub-agent was started: too deep"


def test_demo_weak_ignores_tools_or_invents_a_refusal() -> None:
    assert "not authorised" in demo_weak(says("Spawn three sub-agents")).text
    ignored = demo_weak(says(CLASSIC))
    assert ignored.calls == ()
    assert "myself" in ignored.text


def test_failed_children_are_named() -> None:
    calls = s.name_calls(1, 2, [("sessions_spawn", "{}")] * 2)
    children = [s.Spawned(call.id, f"C{call.id}", "k", "l", wait=True) for call in calls]
    ends = (
        told("C1.2.1", "1.2.1", "gold"),
        s.ToldChild("C1.2.2", "1.2.2", "failed", "dig", error="no luck"),
    )
    steps = numbered(1, s.Began("first"), s.Replied("", calls), *children)
    steps += numbered(2, s.Began("children_settled", told=ends))
    joined = demo(prompt_of(steps, turn=2)).text
    assert joined.splitlines() == [
        "1 of 2 sub-agents succeeded.",
        "1. C1.2.1: gold",
        "2. dig: failed (no luck)",
    ]


def test_labels_leave_the_signs_of_directives_out() -> None:
    reply = demo(says("[[spawn: [[sleep: 2s]] [[spawn: dig deep down there now]]]]"))
    assert arguments(reply.calls)[0]["label"] == "2s dig deep down"


def test_a_tool_is_called_as_told_and_what_it_returned_is_said() -> None:
    text = '[[tool time__now: {"zone": ["UTC"]}]] and [[tool files__read:]]'
    first = demo(says(text, delegating=False))
    assert first.calls == (("time__now", '{"zone": ["UTC"]}'), ("files__read", "{}"))
    calls = s.name_calls(1, 2, first.calls)
    answers = [
        ToolAnswer("1.2.1", "time__now", results.show_tool("time__now", "12:00\n(noon)")),
        ToolAnswer("1.2.2", "files__read", "There is no tool 'files__read' here.", failed=True),
    ]
    last = demo(Prompt("sys", [Said(text), Answered("", calls), *answers], ()))
    assert last.text == (
        "time__now: 12:00\n(noon)\nfiles__read failed: There is no tool 'files__read' here."
    )
