"""Contents in spans: bounded, readable, and never a reason for a batch to be lost."""

from __future__ import annotations

import json

from conveyor.common.v1 import content_pb2
from svckit import captured


def test_of_a_long_conversation_the_end_is_kept() -> None:
    messages = [captured.message("user", [captured.text(f"{n} " * 3_000)]) for n in range(10)]
    told = json.loads(captured.dump(messages))
    assert told[-1] == messages[-1]
    assert told[0]["parts"][0]["content"] == captured.LEFT_OUT
    assert len(captured.dump(messages).encode()) < captured.ATTRIBUTE_BYTES + 200
    assert captured.dump([]) == "[]"


def test_half_a_surrogate_pair_stops_nothing() -> None:
    """Models write them, and text with one cannot be sent."""
    half = "\ud83d"
    parts = [captured.text(half), captured.tool_call("1", half, '"\\ud83d"')]
    for told in (captured.dump([captured.message("assistant", parts)]), captured.plain(half)):
        told.encode()


def test_arguments_are_read_where_they_can_be() -> None:
    assert captured.tool_call("1", "t", '{"a": 1}')["arguments"] == {"a": 1}
    assert captured.tool_call("1", "t", "{not json")["arguments"] == "{not json"
    assert len(captured.tool_call("1", "t", f'"{"x" * 20_000}"')["arguments"]) == 8_000
    assert captured.tool_result("1", "ok")["result"] == "ok"


def test_of_what_is_no_text_only_the_kind_is_told() -> None:
    image = content_pb2.Blob(media_type="image/png", data=b"s3cret")
    said = content_pb2.Message(
        parts=[content_pb2.ContentPart(text="look"), content_pb2.ContentPart(blob=image)]
    )
    told = captured.dump([captured.spoken("user", said)])
    assert json.loads(told)[0]["parts"] == [
        {"type": "text", "content": "look"},
        {"type": "image/png"},
    ]
    assert captured.words(said, said) == "look\n\nlook"
