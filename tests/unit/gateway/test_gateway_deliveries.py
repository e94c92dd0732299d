"""What a push channel tells of the end of a sub-agent."""

from __future__ import annotations

import pytest
from google.rpc import status_pb2

from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import announcement_pb2 as ann
from conveyor.scheduler.v1 import run_pb2
from gateway_svc.domain.deliveries import EXCERPT_CHARS, AnnounceStyle, status_line, told

SUCCEEDED = run_pb2.RUN_STATE_SUCCEEDED


def ended(
    status: run_pb2.RunState.ValueType = SUCCEEDED,
    *,
    seconds: float | None = 12.9,
    live: int = 2,
    children: int = 3,
    label: str = "research a market trend",
    text: str = "",
    error: str = "",
) -> ann.Announcement:
    result = ann.ChildResult(status=status, label=label, text=text)
    if seconds is not None:
        result.duration.FromMilliseconds(round(seconds * 1000))
    if error:
        result.error.CopyFrom(status_pb2.Status(message=error))
    return ann.Announcement(result=result, live_siblings=live, children=children)


@pytest.mark.parametrize(
    ("announcement", "line"),
    [
        (ended(), "✓ research a market trend: done in 12 s (1 of 3)"),
        (ended(live=0), "✓ research a market trend: done in 12 s (3 of 3)"),
        (ended(live=0, children=1), "✓ research a market trend: done in 12 s"),
        (ended(seconds=0.42, label="x"), "✓ x: done in 0.4 s (1 of 3)"),
        (ended(seconds=59.99, label="x"), "✓ x: done in 59 s (1 of 3)"),
        (ended(seconds=60, label="x"), "✓ x: done in 1 min (1 of 3)"),
        (ended(seconds=125, label="x"), "✓ x: done in 2 min 5 s (1 of 3)"),
        (ended(seconds=7325, label="x"), "✓ x: done in 2 h 2 min (1 of 3)"),
        (ended(run_pb2.RUN_STATE_FAILED, label="x"), "✗ x: failed after 12 s (1 of 3)"),
        (ended(run_pb2.RUN_STATE_EXPIRED, label="x"), "✗ x: ran out of time after 12 s (1 of 3)"),
        # Never started, so it took no time.
        (ended(run_pb2.RUN_STATE_CANCELLED, seconds=None, label="x"), "– x: cancelled (1 of 3)"),
        (ended(label="two\nlines"), "✓ two lines: done in 12 s (1 of 3)"),
        (ended(label=""), "✓ sub-agent: done in 12 s (1 of 3)"),
        # From a scheduler of an earlier release.
        (ended(children=0, label="x"), "✓ x: done in 12 s"),
    ],
)
def test_the_status_line(announcement: ann.Announcement, line: str) -> None:
    assert status_line(announcement) == line


def test_full_adds_the_beginning_of_what_was_said_or_why_it_failed() -> None:
    def full(announcement: ann.Announcement) -> str:
        event = event_pb2.Event(child_announced=event_pb2.ChildAnnounced(announcement=announcement))
        found = told(event, AnnounceStyle.FULL)
        assert found is not None
        return found.text.partition("\n")[2]

    assert full(ended(text=" Trend: up.\n\nBy 4 %. ")) == "Trend: up.\n\nBy 4 %."
    assert full(ended()) == ""
    long = full(ended(text="a" * 2000))
    assert len(long) == EXCERPT_CHARS
    assert long.endswith("a…")
    failed = ended(run_pb2.RUN_STATE_FAILED, text="half of it", error="the tool broke")
    assert full(failed) == "the tool broke"
