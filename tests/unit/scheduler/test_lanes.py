"""Who gets the next slot."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from typing import NoReturn

import hypothesis.strategies as st
import pytest
from hypothesis import given

from scheduler_svc.domain.kernel import Config, Kernel
from scheduler_svc.domain.lanes import ReadyQueue, Session
from scheduler_svc.domain.records import SECOND, RetryPolicy, Run
from scheduler_svc.rpc.scheduler import _global_lane


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


CUSTOMERS = ("a", "b", "c", "d")
WEIGHTS = st.dictionaries(st.sampled_from(CUSTOMERS), st.integers(1, 5))


@given(WEIGHTS, st.integers(1, 60))
def test_shares_follow_the_weights_within_one_round(weights: dict[str, int], served: int) -> None:
    queue = ReadyQueue(weights)
    for n in range(300):
        queue.push(run(f"{n}", CUSTOMERS[n % 4], n))
    got = Counter(CUSTOMERS[int(queue.pop()) % 4] for _ in range(served))
    whole = sum(weights.get(customer, 1) for customer in CUSTOMERS)
    for customer in CUSTOMERS:
        share = weights.get(customer, 1) / whole
        assert abs(got[customer] - served * share) < len(CUSTOMERS)
        # Whole rounds are exact: nobody gets less than that.
        assert got[customer] >= served // whole * weights.get(customer, 1)


@given(st.integers(0, 300))
def test_a_flood_over_many_sessions_delays_another_customer_by_one_dispatch(served: int) -> None:
    queue = ReadyQueue()
    for n in range(1000):
        queue.push(run(f"flood-{n}", "flood", n))
    for _ in range(served):
        queue.pop()
    queue.push(run("one", "other", 5000))
    assert "one" in (queue.pop(), queue.pop())


@given(st.integers(2, 100), st.integers(0, 30))
def test_a_heavy_customer_delays_another_by_at_most_its_weight(weight: int, served: int) -> None:
    queue = ReadyQueue({"flood": weight})
    for n in range(200):
        queue.push(run(f"flood-{n}", "flood", n))
    for _ in range(served):
        queue.pop()
    queue.push(run("one", "other", 5000))
    assert "one" in [queue.pop() for _ in range(weight + 1)]


@given(st.lists(st.sampled_from([*CUSTOMERS, "pop"]), max_size=60), st.integers(1, 100))
def test_equal_weights_are_plain_round_robin(steps: list[str], weight: int) -> None:
    queue = ReadyQueue(dict.fromkeys(CUSTOMERS, weight))
    plain: OrderedDict[str, list[str]] = OrderedDict()

    def served() -> str:
        if not plain:
            return ""
        customer, runs = plain.popitem(last=False)
        first = runs.pop(0)
        if runs:
            plain[customer] = runs
        return first

    for n, step in enumerate([*steps, *["pop"] * len(steps)]):
        if step == "pop":
            assert queue.pop() == served()
        else:
            queue.push(run(f"{n}", step, n))
            plain.setdefault(step, []).append(f"{n}")


@given(WEIGHTS, st.lists(st.booleans(), min_size=30, max_size=80))
def test_a_customer_that_leaves_and_joins_again_gains_nothing(
    weights: dict[str, int], leaves: list[bool]
) -> None:
    """Two queues, one history: in the second one a takes its runs out and puts them in again."""
    stays, comes_and_goes = ReadyQueue(weights), ReadyQueue(weights)
    runs = {f"{n}": run(f"{n}", CUSTOMERS[n % 4], n) for n in range(400)}
    waiting = [each for each in runs.values() if each.customer_key == "a"]
    for each in runs.values():
        stays.push(each)
        comes_and_goes.push(each)
    got, expected = 0, 0
    for leave in leaves:
        if leave:
            for each in waiting:
                comes_and_goes.remove(each.run_id)
            for each in waiting:
                comes_and_goes.push(each)
        expected += runs[stays.pop()].customer_key == "a"
        popped = runs[comes_and_goes.pop()]
        if popped.customer_key == "a":
            waiting.remove(popped)
            got += 1
        assert got <= expected


def test_a_customer_served_late_is_not_owed_the_rounds_it_was_away() -> None:
    queue = ReadyQueue()
    for n in range(100):
        queue.push(run(f"a-{n}", "a", n))
    for _ in range(50):
        queue.pop()
    for n in range(10):
        queue.push(run(f"b-{n}", "b", n))
    assert Counter(queue.pop()[0] for _ in range(10)) == {"a": 5, "b": 5}


_STEP = st.one_of(
    st.just(("pop", "", 0, 0)),
    st.tuples(st.just("push"), st.sampled_from(CUSTOMERS), st.integers(0, 1), st.integers(-9, 9)),
    st.tuples(st.just("remove"), st.just(""), st.integers(0, 40), st.just(0)),
    st.tuples(st.just("again"), st.just(""), st.integers(0, 40), st.just(0)),
)


@given(WEIGHTS, st.lists(_STEP, max_size=60), st.integers(0, 70))
def test_upcoming_is_what_successive_pops_give(
    weights: dict[str, int], steps: list[tuple[str, str, int, int]], n: int
) -> None:
    queue, runs, inside = ReadyQueue(weights), [], set[str]()
    for number, (kind, customer, which, priority) in enumerate(steps):
        if kind == "push":
            new = run(f"{number}", customer, number, turn=which, priority=priority)
            runs.append(new)
            queue.push(new)
            inside.add(new.run_id)
        elif kind == "pop":
            inside.discard(queue.pop())
        elif which < len(runs):
            queue.remove(runs[which].run_id)
            inside.discard(runs[which].run_id)
            if kind == "again":
                queue.push(runs[which])
                inside.add(runs[which].run_id)
    ahead = queue.upcoming(n)
    assert queue.upcoming(n) == ahead, "it changes nothing"
    order = drain(queue)
    assert set(order) == inside
    assert len(order) == len(inside)
    assert ahead == order[:n]


def test_what_comes_and_goes_leaves_nothing_behind() -> None:
    """A paused lane whose waiting runs are cancelled for weeks."""
    queue = ReadyQueue()
    stays = [run(f"stays-{n}", "a", n) for n in range(3)]
    for each in stays:
        queue.push(each)
    for n in range(2000):
        for customer in ("a", f"passes-by-{n}"):
            queue.push(run(f"{customer}-{n}", customer, n))
            queue.remove(f"{customer}-{n}")
    line = queue._first
    standing = sum(len(ring) for ring in line._rings.values())
    assert standing + sum(len(c.heap) for c in line._customers.values()) < 200
    assert drain(queue) == ["stays-0", "stays-1", "stays-2"]


def test_a_poll_that_finds_nothing_does_not_change_what_comes_next() -> None:
    """It forgot how many resumed turns had gone, so that idle workers changed the order."""
    queue = ReadyQueue()
    for n in range(3):
        queue.push(run(f"resumed-{n}", "a", n, turn=1))
    assert drain(queue) == ["resumed-0", "resumed-1", "resumed-2"]
    assert queue.pop() == ""
    queue.push(run("resumed-3", "a", 3, turn=1))
    queue.push(run("first", "b", 4))
    assert drain(queue) == ["first", "resumed-3"]


@pytest.mark.parametrize("kind", ["customers", "runs"])
def test_a_step_does_not_cost_more_when_many_wait(kind: str) -> None:
    def step(waiting: int) -> float:
        queue = ReadyQueue()
        for n in range(waiting):
            queue.push(run(f"{n}", f"c{n}" if kind == "customers" else "c", n))
        best = 1.0
        for _ in range(20):
            begun = time.perf_counter()
            queue.upcoming(10)
            popped = [queue.pop() for _ in range(10)]
            best = min(best, time.perf_counter() - begun)
            for run_id in popped:
                queue.push(run(run_id, f"c{run_id}" if kind == "customers" else "c", 0))
        return best

    # The logarithm grows 2.5 times; looking at all of them would be a thousand times.
    assert step(50_000) < 20 * step(50)


class NotLookedThrough(dict[str, Session]):
    """Sessions, of which there may be a hundred thousand."""

    def values(self) -> NoReturn:
        raise AssertionError("a list of lanes looks at every session")


def test_a_list_of_global_lanes_does_not_look_at_every_session() -> None:
    k = Kernel(Config(lanes={"main": 1}, lease_ttl=SECOND))
    for n, (turn, ready) in enumerate(((0, 5), (0, 9), (1, 3), (1, 7)), 1):
        waiting = run(f"r{n}", "c", n, turn=turn)
        waiting.ready_since = ready * SECOND
        k.runs[waiting.run_id] = waiting
        k.lanes["main"].queue("agent").push(waiting)
    k.sessions = NotLookedThrough()
    assert _global_lane(k, k.lanes["main"]).oldest_waiting_time.seconds == 3
    k.lanes["main"].queue("agent").remove("r3")
    assert _global_lane(k, k.lanes["main"]).oldest_waiting_time.seconds == 5
