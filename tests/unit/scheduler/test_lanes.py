"""Who gets the next slot."""

from __future__ import annotations

from scheduler_svc.domain.lanes import ReadyQueue
from scheduler_svc.domain.records import SECOND, RetryPolicy, Run


def run(name: str, customer: str, at: int = 0, *, turn: int = 0, priority: int = 0) -> Run:
    run.order += 1  # type: ignore[attr-defined]
    return Run(
        run_id=name,
        flow_id=name,
        order=run.order,  # type: ignore[attr-defined]
        session_key=name,
        customer_key=customer,
        queue="agent",
        lane="main",
        create_time=at * SECOND,
        turn=turn,
        priority=priority,
    )


run.order = 0  # type: ignore[attr-defined]


def drain(queue: ReadyQueue) -> list[str]:
    found = []
    while queue:
        found.append(queue.pop())
    return found


def test_customers_take_turns_however_much_one_sends() -> None:
    queue = ReadyQueue()
    for n in range(4):
        queue.push(run(f"flood-{n}", "flood", n))
    queue.push(run("one", "other", 9))
    assert drain(queue) == ["flood-0", "one", "flood-1", "flood-2", "flood-3"]


def test_a_customer_gets_first_come_first_served_and_priority_is_an_offset() -> None:
    queue = ReadyQueue()
    queue.push(run("late", "c", 20))
    queue.push(run("early", "c", 10))
    queue.push(run("urgent", "c", 25, priority=30))
    assert drain(queue) == ["urgent", "early", "late"]


def test_resumed_turns_go_first_but_every_fourth_is_a_first_turn() -> None:
    queue = ReadyQueue()
    for n in range(5):
        queue.push(run(f"resumed-{n}", f"r{n}", turn=1))
    for n in range(2):
        queue.push(run(f"first-{n}", f"f{n}"))
    assert drain(queue) == [
        "resumed-0",
        "resumed-1",
        "resumed-2",
        "first-0",
        "resumed-3",
        "resumed-4",
        "first-1",
    ]


def test_what_was_removed_is_not_served_and_may_come_back() -> None:
    queue = ReadyQueue()
    first, second = run("a", "c", 1), run("b", "c", 2)
    queue.push(first)
    queue.push(second)
    queue.remove("a")
    queue.remove("never there")
    assert len(queue) == 1
    queue.push(first)
    assert drain(queue) == ["a", "b"]
    assert queue.pop() == ""


def test_pauses_grow_up_to_their_bound() -> None:
    policy = RetryPolicy(initial_backoff=1 * SECOND, max_backoff=5 * SECOND)
    assert [policy.backoff(n) // SECOND for n in (1, 2, 3, 4, 9)] == [1, 2, 4, 5, 5]
