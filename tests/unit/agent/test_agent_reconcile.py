from __future__ import annotations

from agent_svc.domain import steps as s
from agent_svc.domain.reconcile import FAILURE, Adoption, Standing, adoptions
from tests.unit.agent.builders import numbered, reply, told

BEGAN = s.Began("first")
ANSWERED = numbered(1, BEGAN, reply(1, 2, "done"))
BACKGROUND = numbered(
    1,
    BEGAN,
    reply(1, 2, "", "sessions_spawn"),
    s.Spawned("1.2.1", "C", "k", "l", wait=False),
    reply(1, 4, "started"),
)
CLOSING = BACKGROUND + numbered(
    2, s.Began("children_settled", told=(told("C", "1.2.1"),)), reply(2, 2, "joined")
)


def test_a_reply_becomes_history_once_its_turn_was_accepted() -> None:
    assert adoptions(ANSWERED, [], Standing("live", 0), depth=0) == []
    for state in ("live", "succeeded"):
        found = adoptions(ANSWERED, [], Standing(state, 1), depth=0)
        assert found == [Adoption(1, "answered", "done")]
    assert adoptions(ANSWERED, [1], Standing("succeeded", 1), depth=0) == []


def test_a_reply_that_crossed_a_cancellation_adds_nothing() -> None:
    for turn in (0, 1):
        assert adoptions(ANSWERED, [], Standing("cancelled", turn), depth=0) == []


def test_a_background_reply_counts_although_the_run_was_cancelled_later() -> None:
    assert adoptions(BACKGROUND, [], Standing("cancelled", 1), depth=0) == [
        Adoption(1, "answered", "started")
    ]


def test_a_failed_root_adds_one_line_and_a_failed_child_none() -> None:
    steps = numbered(1, BEGAN)
    line = [Adoption(FAILURE, "failed", None)]
    assert adoptions(steps, [], Standing("failed", 1), depth=0) == line
    assert adoptions(steps, [], Standing("expired", 0), depth=0) == line
    assert adoptions(steps, [FAILURE], Standing("failed", 1), depth=0) == []
    assert adoptions(steps, [], Standing("failed", 1), depth=1) == []
    assert adoptions(ANSWERED, [], Standing("failed", 1), depth=0) == line


def test_a_closing_turn_adds_to_what_was_said_before() -> None:
    assert adoptions(CLOSING, [], Standing("succeeded", 2), depth=0) == [
        Adoption(1, "answered", "started"),
        Adoption(2, "closing", "joined"),
    ]
    assert adoptions(CLOSING, [1], Standing("succeeded", 2), depth=0) == [
        Adoption(2, "closing", "joined")
    ]


def test_a_background_reply_counts_although_the_run_failed_later() -> None:
    assert adoptions(BACKGROUND, [], Standing("failed", 1), depth=0) == [
        Adoption(1, "answered", "started"),
        Adoption(FAILURE, "failed", None),
    ]


def test_a_yield_counts_as_what_was_said_and_a_wait_says_nothing() -> None:
    answer = reply(1, 2, "", "sessions_spawn", "sessions_yield")
    child = s.Spawned("1.2.1", "C", "k", "l", wait=True)
    waited = numbered(1, BEGAN, answer, child)
    assert adoptions(waited, [], Standing("live", 1), depth=0) == []
    yielded = numbered(1, BEGAN, answer, child, s.Yielded("1.2.2", "later"))
    assert adoptions(yielded, [], Standing("live", 1), depth=0) == [
        Adoption(1, "answered", "later")
    ]
