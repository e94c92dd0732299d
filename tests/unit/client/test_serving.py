"""What an editor is shown of a request, piece by piece."""

from __future__ import annotations

import base64
import itertools
from typing import Any

import pytest
from acp.helpers import (
    audio_block,
    embedded_text_resource,
    image_block,
    resource_block,
    resource_link_block,
    text_block,
)
from hypothesis import given
from hypothesis import strategies as st

from conveyor.common.v1 import content_pb2, question_pb2
from conveyor.events.v1 import event_pb2
from conveyor.gateway.v1 import gateway_service_pb2 as gateway_pb
from conveyor.scheduler.v1 import run_pb2
from conveyor_client.serving.agent import COMMANDS
from conveyor_client.serving.content import BadContent, blocks_of, message_of
from conveyor_client.serving.showing import Shown, permission
from gateway_svc.domain.commands.grammar import FORMS, GROUPS

HERE, BELOW = "acp-client:1", "acp-client:1:subagent:R2"


def delta(text: str, offset: int, message_id: str = "m", key: str = HERE) -> Any:
    piece = event_pb2.MessageDelta(message_id=message_id, text=text, offset=offset, session_key=key)
    return gateway_pb.ChatResponse(delta=piece)


def event(key: str = HERE, run_id: str = "R1", **payload: Any) -> Any:
    told = event_pb2.Event(session_key=key, run_id=run_id, **payload)
    return gateway_pb.ChatResponse(event=told)


def reply(text: str, message_id: str = "m", kind: int = event_pb2.MESSAGE_KIND_REPLY) -> Any:
    parts = [content_pb2.ContentPart(text=text)]
    message = content_pb2.Message(message_id=message_id, parts=parts)
    return event(message_completed=event_pb2.MessageCompleted(message=message, kind=kind))


def shown(*items: Any) -> list[dict[str, Any]]:
    told = Shown(HERE)
    return [update.model_dump(exclude_none=True) for item in items for update in told.updates(item)]


def text_of(updates: list[dict[str, Any]]) -> str:
    return "".join(update["content"]["text"] for update in updates)


@given(st.text(min_size=1, max_size=30), st.lists(st.integers(0, 30), max_size=6), st.booleans())
def test_pieces_repeated_pieces_and_the_whole_show_a_text_once(
    text: str, cuts: list[int], again: bool
) -> None:
    at = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    pieces = [delta(text[a:b], a) for a, b in itertools.pairwise(at)]
    items = [*pieces, *(pieces if again else []), reply(text), *pieces]
    assert text_of(shown(*items)) == text


def test_a_new_attempt_follows_what_was_shown_of_the_old_one() -> None:
    items = [delta("Hello wor", 0), delta("Good day", 0), reply("Good day")]
    assert text_of(shown(*items)) == "Hello wor\n\nGood day"


def test_the_words_of_a_child_are_not_the_answer() -> None:
    assert shown(delta("inside", 0, key=BELOW)) == []


def test_text_between_tool_calls_is_not_told_twice() -> None:
    inner = event_pb2.MESSAGE_KIND_INTERNAL
    assert text_of(shown(delta("Let me look.", 0), reply("Let me look.", "m-1", inner))) == (
        "Let me look."
    )


def test_a_child_is_a_tool_call_from_its_spawn_to_its_end() -> None:
    spawned = event_pb2.ChildSpawned(child_run_id="R2", label="research", queue="acp")
    announced = event_pb2.ChildAnnounced()
    result = announced.announcement.result
    result.run_id, result.status, result.text = "R2", run_pb2.RUN_STATE_FAILED, ""
    result.error.message = "out of budget"
    begun, ended = shown(event(child_spawned=spawned), event(child_announced=announced))
    assert (begun["title"], begun["status"]) == ("coding agent: research", "in_progress")
    assert (ended["tool_call_id"], ended["status"]) == (begun["tool_call_id"], "failed")
    assert ended["content"][0]["content"]["text"] == "out of budget"


def test_tool_calls_of_a_harness_are_patched_by_their_id() -> None:
    def call(status: int) -> Any:
        did = event_pb2.HarnessToolCall(
            tool_call_id="t", title="Write a.txt", tool_kind="edit", locations=["/w/a.txt"]
        )
        did.status = status  # type: ignore[assignment]
        return event(harness_updated=event_pb2.HarnessUpdated(tool_call=did))

    begun, ended = shown(
        call(event_pb2.HARNESS_ITEM_STATUS_PENDING), call(event_pb2.HARNESS_ITEM_STATUS_COMPLETED)
    )
    assert (begun["session_update"], begun["kind"], begun["status"]) == (
        "tool_call",
        "edit",
        "pending",
    )
    assert (ended["session_update"], ended["status"]) == ("tool_call_update", "completed")


def test_a_question_keeps_its_options_and_their_kinds() -> None:
    question = question_pb2.Question(question_id="q", title="Write a.txt", tool_kind="edit")
    question.arguments["path"] = "a.txt"
    for option, kind in (("a", "ALLOW_ONCE"), ("b", "REJECT_ALWAYS")):
        number = question_pb2.QuestionOptionKind.Value(f"QUESTION_OPTION_KIND_{kind}")
        question.options.add(option_id=option, name=option.upper(), kind=number)
    call, options = permission(question)
    assert (call.title, call.kind, call.raw_input) == ("Write a.txt", "edit", {"path": "a.txt"})
    assert [(o.option_id, o.kind) for o in options] == [("a", "allow_once"), ("b", "reject_always")]


def test_content_goes_in_and_comes_back() -> None:
    image = base64.b64encode(b"\x89PNG").decode()
    message = message_of(
        [
            text_block("look"),
            image_block(image, "image/png"),
            resource_link_block("a.py", "file:///w/a.py", mime_type="text/x-python"),
            resource_block(embedded_text_resource("file:///w/b.py", "print()")),
        ]
    )
    kinds = [part.WhichOneof("part") for part in message.parts]
    assert kinds == ["text", "blob", "resource", "text"]
    back = [block.model_dump(exclude_none=True) for block in blocks_of(message)]
    assert back[0]["text"] == "look"
    assert back[1]["data"] == image
    assert (back[2]["uri"], back[2]["name"]) == ("file:///w/a.py", "a.py")
    assert back[3]["text"] == "file:///w/b.py:\n\nprint()"


def test_bytes_that_are_no_base64_are_refused() -> None:
    with pytest.raises(BadContent, match="base64"):
        message_of([audio_block("not base64!", "audio/wav")])


def test_an_editor_offers_commands_that_exist() -> None:
    assert COMMANDS.keys() <= {form.name for form in FORMS} | GROUPS.keys()
