"""The ladder of the guard: which rung follows, what is told of it, and what a model is shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_svc import turnevents
from agent_svc.domain import plan
from agent_svc.domain import steps as s
from agent_svc.domain.guard import ladder
from agent_svc.domain.guard.facts import Facts, Finding, Instruction
from agent_svc.domain.prompt import Answered, Said, unanswered
from agent_svc.domain.reconcile import Standing, adoptions
from agent_svc.sightings import entries
from tests.unit.agent.builders import numbered, prompt_of, reply

FOUND = Finding("false_claim", "permission", "I may not.")
CALLS = s.name_calls(1, 3, [("sessions_spawn", '{"task": "x"}')])


def rung(step: s.GuardStep, said: str = "facts", calls: tuple[s.ToolCall, ...] = ()) -> s.Guarded:
    return s.Guarded("false_claim", step, "weak", "I may not.", calls, said)


@given(
    st.lists(st.booleans(), max_size=8),
    st.sampled_from(["", "strong"]),
    st.integers(0, 8),
)
def test_every_rung_is_taken_at_most_once_and_the_last_one_ends(
    textual: list[bool], fallback: str, may_ask: int
) -> None:
    """However often the model fails, the ladder ends, and never above its model calls."""
    taken: list[s.Guarded] = []
    order = ["insist", "force_tool", "fall_back_model", "deliver_with_note"]
    for number in range(8):
        calls = CALLS if number < len(textual) and textual[number] else ()
        model = "strong" if any(r.step == "fall_back_model" for r in taken) else "weak"
        rungs = ladder.Rungs(can_ask=number < may_ask, fallback=fallback)
        step = ladder.next_rung(FOUND, model, calls, taken, rungs)
        taken.append(rung(step))
        if step in ("parse_call", "deliver_with_note"):
            break
    steps = [record.step for record in taken]
    assert len(steps) == len(set(steps))
    assert steps[-1] in ("parse_call", "deliver_with_note")
    climbed = [step for step in steps if step != "parse_call"]
    assert climbed == [step for step in order if step in climbed]
    assert ("fall_back_model" in steps) <= bool(fallback)


def test_a_fallback_that_gave_the_reply_itself_is_not_asked_again() -> None:
    taken = [rung("insist"), rung("force_tool")]
    rungs = ladder.Rungs(can_ask=True, fallback="weak")
    assert ladder.next_rung(FOUND, "weak", (), taken, rungs) == "deliver_with_note"


def test_what_is_insisted_on_are_the_facts_of_the_run() -> None:
    facts = Facts(frozenset({"sessions_spawn"}), depth=1, max_depth=3, max_children=7)
    told = ladder.words("insist", FOUND, facts, Instruction("use a sub-agent"))
    assert "depth 1" in told
    assert "down to depth 3" in told
    assert "0 of at most 7" in told
    assert "«use a sub-agent»" in told
    for trigger in ("false_claim", "ignored_instruction", "textual_call", "invented_result"):
        found = Finding(trigger, "tool", "")
        assert ladder.words("deliver_with_note", found, facts, None).startswith("⚠ ")


STORY: list[s.Record] = [
    s.Began("first"),
    s.Replied("I may not. (1)"),
    rung("insist", "the facts"),
    s.Replied("I may not. (2)"),
    rung("force_tool", "call it"),
]


def test_the_model_sees_the_argument_while_it_is_to_answer_it() -> None:
    steps = numbered(1, *STORY)
    assert isinstance(plan.next_action(steps, 1, 32), plan.CallModel)
    assert ladder.pending(steps) == STORY[-1]
    texts = [message.text for message in prompt_of(steps).messages if not hasattr(message, "tool")]
    assert texts == [
        "hello",
        "I may not. (1)",
        "[runtime] the facts",
        "I may not. (2)",
        "[runtime] call it",
    ]


@pytest.mark.parametrize(
    "after",
    [
        (rung("insist"), s.Replied("", CALLS)),
        (rung("insist"), s.Replied("I may not. (2)"), rung("fall_back_model", "")),
        (rung("parse_call", "", CALLS),),
        (rung("insist"), s.Replied("plain answer")),
    ],
    ids=["called", "stronger model", "read", "answered"],
)
def test_once_it_is_settled_the_argument_never_happened(after: tuple[s.Record, ...]) -> None:
    steps = numbered(1, s.Began("first"), s.Replied("I may not. (1)"), *after)
    prompt = prompt_of(steps)
    assert "may not" not in str(prompt)
    assert not [m for m in prompt.messages if isinstance(m, Said) and m.origin == "runtime"]
    assert not unanswered(prompt.messages)
    if any(s.calls_of(record) for record in after):
        assert [m.calls for m in prompt.messages if isinstance(m, Answered)] == [CALLS]


def test_a_caught_reply_is_nothing_the_conversation_remembers() -> None:
    steps = numbered(1, *STORY)
    assert s.reply_of(steps, 1) is None
    assert adoptions(steps, [], Standing("live", 1), depth=0) == []
    noted = [*steps, s.Step(1, 6, s.Replied("I may not. (3)"))]
    noted.append(s.Step(1, 7, rung("deliver_with_note", "⚠ It may.")))
    (exchange,) = adoptions(noted, [], Standing("succeeded", 1), depth=0)
    assert exchange.text == "I may not. (3)\n\n⚠ It may."
    action = plan.next_action(noted, 1, 32)
    assert isinstance(action, plan.EndWithReply)
    assert action.reply.text == exchange.text


def test_calls_that_were_read_run_like_any() -> None:
    steps = numbered(1, s.Began("first"), s.Replied("<call>"), rung("parse_call", "", CALLS))
    assert plan.next_action(steps, 1, 32) == plan.SpawnChildren(CALLS)
    steps.append(s.Step(1, 4, s.Spawned(CALLS[0].id, "C1", "s:C1", "x", True)))
    action = plan.next_action(steps, 1, 32)
    assert isinstance(action, plan.WaitForChildren)
    assert action.said == ""


def test_a_rung_that_waits_for_a_limit_is_still_pending_in_the_next_turn() -> None:
    steps = [*numbered(1, *STORY), s.Step(2, 1, s.Began("limit_granted"))]
    assert ladder.pending(steps) == STORY[-1]
    assert plan.next_action(steps, 2, 32) == plan.CallModel(2)
    # A turn that began for another reason is another matter.
    other = [*numbered(1, *STORY), s.Step(2, 1, s.Began("steered"))]
    assert ladder.pending(other) is None


def test_what_came_of_a_rung_is_told_once_it_is_known() -> None:
    def told(*records: s.Record, ended: bool = False) -> list[tuple[str, bool]]:
        steps = numbered(1, *STORY[:3], *records)
        return [(t.record.step, t.resolved) for t in ladder.outcomes(steps, ended=ended)]

    assert told() == []
    assert told(s.Replied("?")) == []
    assert told(s.Replied("?"), ended=True) == [("insist", True)]
    assert told(reply(1, 4, "", "sessions_spawn")) == [("insist", True)]
    assert told(s.Replied("no"), rung("force_tool")) == [("insist", False)]
    assert told(rung("force_tool")) == [("insist", False)]
    assert told(s.Replied("<call>"), rung("parse_call", "", CALLS)) == [
        ("insist", True),
        ("parse_call", True),
    ]


def test_a_parent_that_reads_a_childs_log_reads_no_excuse() -> None:
    excuse = turnevents.caught_text("R", 1, 2, "I may not spawn.")
    said = turnevents.said_between("R", 1, 4, "I look at it.")
    assert [entry.text for entry in entries([excuse, said])] == ["I look at it."]


def test_a_reply_delivered_after_a_rung_that_failed_is_part_of_the_conversation() -> None:
    """The rung before the note was taken for the guard's last word: the customer had an answer
    that neither the history nor the list of messages knew."""
    note = rung("deliver_with_note", "⚠ not true")
    steps = numbered(1, s.Began("first"), s.Replied("I may not."), rung("insist"), note)
    ends = plan.next_action(steps, 1, 10)
    assert isinstance(ends, plan.EndWithReply)
    assert s.reply_of(steps, 1) == ends.reply


def test_a_rung_that_fails_after_a_wait_for_a_limit_ends_the_turn_with_its_note() -> None:
    """The model was asked again and again, and the run failed with the caught reply in hand."""
    waited = numbered(1, s.Began("first"), s.Replied("I may not."), rung("insist"))
    resumed = [*waited, *numbered(2, s.Began("limit_granted"))]
    assert isinstance(plan.next_action(resumed, 2, 10), plan.CallModel)
    noted = [*resumed, s.Step(2, 2, rung("deliver_with_note", "⚠ not true"))]
    ends = plan.next_action(noted, 2, 10)
    assert isinstance(ends, plan.EndWithReply)
    assert ends.reply.text == "I may not.\n\n⚠ not true"
    assert s.reply_of(noted, 2) == ends.reply
    assert s.reply_of(noted, 1) is None
