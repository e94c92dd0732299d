"""What a harness tells, as it is cut, put together and counted."""

from __future__ import annotations

import json
import time

import pytest
from acp import schema
from hypothesis import given, settings
from hypothesis import strategies as st

from acp_svc import reading
from acp_svc.domain.cutting import bounded, clean, line
from acp_svc.domain.metering import Meter, Spent, Totals, together
from acp_svc.domain.toolcalls import (
    Diff,
    Patch,
    ToolCall,
    command_in,
    diff_text,
    shown_arguments,
    shown_output,
)
from acp_svc.domain.updates import (
    LEFT_OUT,
    MESSAGE_BYTES,
    MOST_CALLS,
    MOST_EVENTS,
    Between,
    Entry,
    LeftOut,
    Planned,
    Said,
    Shown,
    Story,
    Thinking,
    Thought,
    closing_words,
)
from svckit.content import arguments_struct
from svckit.usage import MOST_TOKENS

FEW = settings(max_examples=40)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


@FEW
@given(st.text(st.characters(exclude_categories=[])), st.integers(0, 50))
def test_a_cut_text_is_whole_characters_within_the_limit(text: str, limit: int) -> None:
    cut = clean(text, limit)
    assert len(cut.encode()) <= limit
    assert text.encode(errors="replace").decode().startswith(cut)
    assert len(line(text, 20)) <= 20


@FEW
@given(json_values, st.integers(0, 500))
def test_a_bounded_value_is_one_that_an_event_can_hold(value: object, limit: int) -> None:
    cut = bounded(value, limit)
    text = json.dumps({"value": cut}, allow_nan=False)
    # Cutting marks what it cuts.
    assert "text" not in arguments_struct(text).fields
    assert len(text.encode()) <= 30 * limit + 5000


def test_a_large_value_is_cut_quickly() -> None:
    huge = {"file_path": "/a", "content": "x" * 10_000_000, "lines": list(range(1_000_000))}
    began = time.process_time()
    cut = bounded(huge, 8192)
    assert time.process_time() - began < 3
    assert isinstance(cut, dict)
    assert cut["file_path"] == "/a"
    assert len(json.dumps(cut)) < 9000


def test_text_is_shown_as_it_comes_and_the_last_is_the_reply() -> None:
    story = Story()
    assert story.take(Said("I look ")) == ("I look ", False)
    assert story.take(Said("at it.")) == ("at it.", False)
    assert story.take(Patch("c1", title="Read a", status="pending")) == ("", True)
    story.take(Patch("c1", status="completed", texts=("found",)))
    assert story.take(Said("Done.")) == ("Done.", False)
    assert story.due() == [
        Between("I look at it."),
        Shown("c1", "Read a", "other", "completed", (), "found"),
    ]
    assert story.end() == "Done."
    assert story.due() == []


def test_who_says_nothing_after_the_last_call_replies_with_what_was_said_before_it() -> None:
    story = Story()
    story.take(Said("I deploy now."))
    story.take(Patch("c1", title="Deploy"))
    assert story.end() == "I deploy now."


def test_another_message_begins_with_a_blank_line() -> None:
    story = Story()
    story.take(Said("One.", "m1"))
    assert story.take(Said("Two.", "m2")) == ("\n\nTwo.", False)
    assert story.end() == "One.\n\nTwo."


def test_thoughts_are_told_when_they_are_finished() -> None:
    story = Story()
    story.take(Thought("What "))
    story.take(Thought("now?"))
    assert story.due() == []
    story.take(Said("This."))
    assert story.due() == [Thinking("What now?")]
    story.take(Thought("Hm.", "t1"))
    story.take(Thought("Ah.", "t2"))
    assert story.due() == [Thinking("Hm.")]
    story.end()
    assert story.due() == [Thinking("Ah.")]


def test_a_plan_is_told_once_per_change() -> None:
    plan = Planned((Entry("look", "pending"),))
    story = Story()
    story.take(plan)
    story.take(plan)
    assert story.due() == [plan]
    story.take(plan)
    assert story.due() == []


@FEW
@given(st.lists(st.tuples(st.integers(0, 400), st.sampled_from(["pending", "in_progress"]))))
def test_updates_between_two_looks_are_told_together(pieces: list[tuple[int, str]]) -> None:
    story = Story()
    for number, status in pieces:
        story.take(Patch(f"c{number}", title="t", status=status))
    told = story.due()
    assert len(told) == len({number for number, _ in pieces})
    last = {f"c{number}": status for number, status in pieces}
    assert {s.call_id: s.status for s in told if isinstance(s, Shown)} == last


def test_a_prompt_that_never_stops_telling_writes_a_bounded_number_of_events() -> None:
    story = Story()
    told = []
    for number in range(4 * MOST_EVENTS):
        story.take(Patch(f"c{number // 4}", title="t", status="pending"))
        story.take(Patch(f"c{number // 4}", status="in_progress"))
        told += story.due()
        story.take(Planned((Entry(str(number), "pending"),)))
        story.take(Thought("hm"))
        story.take(Said("and "))
        told += story.due()
    for number in range(MOST_EVENTS):
        story.take(Patch(f"c{number}", status="completed"))
    told += story.due()
    calls = [one for one in told if isinstance(one, Shown)]
    ended = {one.call_id for one in calls if one.status == "completed"}
    assert told.count(LeftOut()) == 1
    assert len(told) - len(ended) <= MOST_EVENTS
    # What was told as begun was told as ended.
    assert {one.call_id for one in calls} == ended


def test_a_call_after_thousands_is_still_known_when_it_asks() -> None:
    story = Story()
    story.take(Patch("first", title="Watch", status="in_progress"))
    for number in range(3 * MOST_CALLS):
        story.take(Patch(f"c{number}", kind="edit", status="completed"))
        story.due()
    story.take(Patch("late", title="Read notes.txt", kind="read"))
    # The request names only the call.
    assert story.call(Patch("late")).kind == "read"
    assert story.call(Patch("first")).title == "Watch"
    assert max(len(story._calls), len(story._shown)) <= MOST_CALLS


def test_ten_megabytes_of_text_are_cut_and_not_shown_twice() -> None:
    story = Story()
    shown, _ = story.take(Said("x" * 10_000_000))
    assert len(shown) == MESSAGE_BYTES
    assert story.take(Said("more")) == ("", False)
    assert story.end() == shown + LEFT_OUT


def test_ten_megabytes_in_a_tool_call_are_cut() -> None:
    big = "y" * 10_000_000
    given = schema.ToolCallProgress(
        session_update="tool_call_update",
        tool_call_id="c" * 5000,
        title=big,
        status="completed",
        raw_input={"command": big},
        raw_output={"output": big},
        locations=[schema.ToolCallLocation(path=big), schema.ToolCallLocation(path="a.txt")],
        content=[
            schema.FileEditToolCallContent(type="diff", path="a.txt", old_text=big, new_text=big),
            schema.ContentToolCallContent(
                type="content", content=schema.TextContentBlock(type="text", text=big)
            ),
        ],
    )
    patch = reading.patch(given, "/w")
    story = Story()
    story.take(patch)
    (shown,) = story.due()
    assert isinstance(shown, Shown)
    assert len(shown.call_id) == 128
    assert len(shown.title) == 256
    assert shown.locations == ("/w/a.txt",)
    assert len(shown.output.encode()) <= 8192
    assert len(json.dumps(shown_arguments(story.call(patch)))) < 9000


def test_what_a_harness_sends_is_read() -> None:
    text = schema.TextContentBlock(type="text", text="hi")
    chunk = schema.AgentMessageChunk(
        session_update="agent_message_chunk", content=text, message_id="m1"
    )
    assert reading.update(chunk, "/w") == Said("hi", "m1")
    link = schema.ResourceContentBlock(type="resource_link", name="a.txt", uri="file:///w/a.txt")
    chunk = schema.AgentMessageChunk(session_update="agent_message_chunk", content=link)
    assert reading.update(chunk, "/w") == Said("[a.txt](file:///w/a.txt)")
    start = schema.ToolCallStart(
        session_update="tool_call",
        tool_call_id="c1",
        title="Read",
        kind="read",
        locations=[schema.ToolCallLocation(path="a.txt", line=3)],
    )
    assert reading.update(start, "/w") == Patch(
        "c1", title="Read", kind="read", locations=("/w/a.txt",)
    )
    mode = schema.CurrentModeUpdate(session_update="current_mode_update", current_mode_id="x")
    assert reading.update(mode, "/w") is None


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ({"command": "ls -l"}, "ls -l"),
        ({"cmd": ["bash", "-lc", "echo hi"]}, "bash -lc 'echo hi'"),
        ({"command": ""}, ""),
        ({"file_path": "/a"}, ""),
        ("ls", ""),
        (None, ""),
    ],
)
def test_the_command_is_found_among_the_arguments(arguments: object, command: str) -> None:
    assert command_in(arguments) == command


def test_people_see_the_command_first_and_the_diff_instead_of_the_content() -> None:
    run = ToolCall("c", arguments={"description": "lists", "command": "ls"})
    assert list(shown_arguments(run).items()) == [("command", "ls"), ("description", "lists")]
    edit = ToolCall(
        "c",
        arguments={"file_path": "/w/a", "content": "new\n"},
        diffs=(Diff("/w/a", "old\n", "new\n"),),
    )
    assert shown_arguments(edit) == {
        "diff": "--- /w/a\n+++ /w/a\n@@ -1 +1 @@\n-old\n+new",
        "file_path": "/w/a",
    }
    created = ToolCall("c", diffs=(Diff("/w/a", None, "new"),))
    assert "--- /dev/null" in str(shown_arguments(created)["diff"])


def test_a_large_diff_takes_no_time() -> None:
    old = "\n".join("same" for _ in range(30_000))
    began = time.process_time()
    assert "too large to compare" in diff_text(Diff("/a", old, old + "\nmore"))
    assert time.process_time() - began < 3


def test_output_is_what_was_told_or_else_what_was_returned() -> None:
    assert shown_output(ToolCall("c", texts=("a", "b"), output={"x": 1})) == "a\nb"
    assert shown_output(ToolCall("c", output={"x": 1})) == '{"x": 1}'
    assert shown_output(ToolCall("c")) == ""


def test_a_title_is_made_where_the_harness_gives_none() -> None:
    assert ToolCall("c", arguments={"command": "ls"}).shown_title == "Run ls"
    assert ToolCall("c", kind="edit", locations=("/a",)).shown_title == "Edit /a"
    assert ToolCall("c", title="two\nlines").shown_title == "two lines"
    assert ToolCall("c").shown_title == "Use a tool that the harness does not name"


def test_only_growth_counts_and_never_twice() -> None:
    meter = Meter(fresh=True)
    meter.begin()
    assert meter.told(1000, 250_000) == Spent(read=1000, cost_micros=250_000)
    assert meter.told(1000, 250_000) is None
    assert meter.told(1500, None) == Spent(read=500)
    # The context was summarised; the cost goes on.
    assert meter.told(300, 300_000) == Spent(cost_micros=50_000)
    assert meter.ended(Totals(read=4000, written=200, cached=1000)) == Spent(
        read=2500, cached=1000, written=200
    )
    meter.begin()
    assert meter.told(500, 300_000) == Spent(read=200)
    assert meter.ended(Totals(read=100, written=7)) == Spent(written=7)


def test_a_session_that_was_opened_again_counts_from_its_first_report_on() -> None:
    meter = Meter(fresh=False)
    meter.begin()
    assert meter.told(90_000, 5_000_000) is None
    assert meter.told(90_100, 5_100_000) == Spent(read=100, cost_micros=100_000)


def test_a_cost_that_began_anew_counts_whole() -> None:
    meter = Meter(fresh=True)
    meter.begin()
    meter.told(10, 500)
    assert meter.told(10, 200) == Spent(cost_micros=200)


def test_a_prompt_without_a_price_says_so() -> None:
    meter = Meter(fresh=True)
    meter.begin()
    assert meter.ended(None) == Spent(priced=False)
    meter.begin()
    meter.told(10, 500)
    assert meter.ended(None) is None


def test_the_reply_says_why_there_is_no_more() -> None:
    assert closing_words("Claude", "end_turn", "Done.", []) == "Done."
    assert closing_words("Claude", "refusal", "No.", []) == "No.\n\n(Claude refused to go on.)"
    silent = closing_words("OpenCode", "end_turn", " ", ["Write a.txt"])
    assert silent == "OpenCode ended its turn without a word. Not allowed: Write a.txt."


def test_many_reports_at_once_are_one() -> None:
    parts = [Spent(read=2, cost_micros=5), Spent(read=1, written=3, cached=1)]
    assert together(parts) == Spent(read=3, written=3, cached=1, cost_micros=5)
    assert not together([*parts, Spent(priced=False)]).priced


def test_a_harness_that_says_any_number_is_not_believed() -> None:
    """What it used was not reported at all then, and its span took others along."""
    told = schema.UsageUpdate(session_update="usage_update", size=1, used=10**30)
    assert reading.usage(told) == (MOST_TOKENS, None)
    ended = schema.Usage(input_tokens=10**30, output_tokens=0, total_tokens=1)
    assert reading.totals(ended) == Totals(read=MOST_TOKENS, written=0, cached=0)
