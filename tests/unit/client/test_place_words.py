"""Where a run stands, in words."""

from __future__ import annotations

import pytest

from conveyor.scheduler.v1 import lane_pb2
from conveyor_client.cli.places import fate, ordinal, place


def estimate(position: int, left: float | None = None) -> lane_pb2.QueueEstimate:
    found = lane_pb2.QueueEstimate(position=position)
    found.as_of_time.FromSeconds(1000)
    if left is not None:
        found.start_time.FromMilliseconds(1_000_000 + round(left * 1000))
    return found


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (estimate(0), ""),
        (estimate(1, 0), ""),
        (estimate(1, 0.4), ""),
        (estimate(1, 4.24), "next in line, about 4.2 s"),
        (estimate(1), "next in line"),
        (estimate(3, 12.3), "3rd in line, about 12 s"),
        (estimate(22, 125), "22nd in line, about 2 min 5 s"),
    ],
)
def test_a_place(told: lane_pb2.QueueEstimate, words: str) -> None:
    assert place(told) == words


def test_what_the_session_works_on_is_said() -> None:
    told = estimate(1, 3)
    told.session_lane_wait.children.SetInParent()
    assert place(told) == "next in line, about 3.0 s, working on your previous message"


def test_ordinals() -> None:
    numbers = [1, 2, 3, 4, 11, 12, 13, 21, 101, 111, 112, 123]
    assert " ".join(map(ordinal, numbers)) == (
        "1st 2nd 3rd 4th 11th 12th 13th 21st 101st 111th 112th 123rd"
    )


def test_what_became_of_a_message_is_said_unless_it_just_waits() -> None:
    assert fate(lane_pb2.ENQUEUE_OUTCOME_QUEUED) == ""
    said = {fate(outcome) for outcome in lane_pb2.EnqueueOutcome.values()}
    assert len(said) == len(lane_pb2.EnqueueOutcome.values()) - 1
