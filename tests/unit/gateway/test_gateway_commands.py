"""Slash commands as people type them."""

from __future__ import annotations

import pytest

from conveyor.common.v1 import content_pb2
from conveyor.scheduler.v1 import lane_pb2
from gateway_svc.domain.commands import command_of, queue_answer, read_queue

COLLECT, FOLLOWUP = lane_pb2.QUEUE_MODE_COLLECT, lane_pb2.QUEUE_MODE_FOLLOWUP


def message(*texts: str) -> content_pb2.Message:
    return content_pb2.Message(parts=[content_pb2.ContentPart(text=text) for text in texts])


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("/queue", True),
        ("  /Queue collect\n", True),
        ("/queued", False),
        ("/que", False),
        ("the /queue is long", False),
        ("/etc/queue", False),
        ("", False),
    ],
)
def test_a_message_is_a_command_when_its_first_word_is_one(text: str, is_one: bool) -> None:
    assert bool(command_of(message(text))) == is_one


def test_a_message_of_several_parts_is_none() -> None:
    assert not command_of(message("/queue", "collect"))
    assert not command_of(content_pb2.Message())


@pytest.mark.parametrize(
    ("text", "sets"),
    [
        ("/queue", None),
        ("/queue collect", COLLECT),
        ("/queue  INTERRUPT ", lane_pb2.QUEUE_MODE_INTERRUPT),
        ("/queue reset", lane_pb2.QUEUE_MODE_UNSPECIFIED),
    ],
)
def test_what_queue_does(text: str, sets: int | None) -> None:
    command = read_queue(text)
    assert (command.sets, command.problem) == (sets, "")


@pytest.mark.parametrize("text", ["/queue loud", "/queue collect now", "/queue " + "x" * 500])
def test_what_is_no_mode_is_answered_in_one_line_with_an_example(text: str) -> None:
    command = read_queue(text)
    assert command.sets is None
    assert "`/queue collect`" in command.problem
    assert "\n" not in command.problem
    assert len(command.problem) < 200


def test_the_answer_says_the_mode_and_the_way_back() -> None:
    assert queue_answer(COLLECT, FOLLOWUP) == (
        "Queue mode collect: a message for a busy conversation is answered together with the "
        "others that wait. `/queue reset` goes back to followup."
    )
    assert "reset" not in queue_answer(lane_pb2.QUEUE_MODE_UNSPECIFIED, FOLLOWUP)
    assert "reset" not in queue_answer(COLLECT, COLLECT)
