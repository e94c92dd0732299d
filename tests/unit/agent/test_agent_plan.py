from __future__ import annotations

from agent_svc.domain import plan
from agent_svc.domain import steps as s
from tests.unit.agent.builders import numbered, reply, told

BEGAN = s.Began("first")


def test_a_turn_begins_with_the_model() -> None:
    assert plan.next_action(numbered(1, BEGAN), 1, 9) == plan.CallModel(2)


def test_a_reply_without_calls_ends_the_turn() -> None:
    answer = reply(1, 2, "done")
    assert plan.next_action(numbered(1, BEGAN, answer), 1, 9) == plan.EndWithReply(answer)


def test_other_tools_run_before_children_start_and_then_it_waits_for_all() -> None:
    answer = reply(1, 2, "on it", "sessions_spawn", "agents_list", "sessions_spawn")
    one, other, two = answer.calls
    steps = numbered(1, BEGAN, answer)
    assert plan.next_action(steps, 1, 9) == plan.RunTool(other)
    steps = numbered(1, BEGAN, answer, s.Returned(other.id, "main"))
    assert plan.next_action(steps, 1, 9) == plan.SpawnChildren((one, two))
    children = [s.Spawned(call.id, f"C{call.id}", "k", "l", wait=True) for call in (one, two)]
    steps = numbered(1, BEGAN, answer, s.Returned(other.id, "main"), *children)
    assert plan.next_action(steps, 1, 9) == plan.WaitForChildren(tuple(children), "on it")


def test_a_crash_between_two_children_starts_only_the_missing_one() -> None:
    answer = reply(1, 2, "", "sessions_spawn", "sessions_spawn")
    steps = numbered(1, BEGAN, answer, s.Spawned(answer.calls[0].id, "C", "k", "l", wait=True))
    assert plan.next_action(steps, 1, 9) == plan.SpawnChildren((answer.calls[1],))


def test_background_children_do_not_stop_the_turn() -> None:
    answer = reply(1, 2, "", "sessions_spawn")
    steps = numbered(1, BEGAN, answer, s.Spawned("1.2.1", "C", "k", "l", wait=False))
    assert plan.next_action(steps, 1, 9) == plan.CallModel(4)


def test_a_refused_spawn_goes_back_to_the_model() -> None:
    answer = reply(1, 2, "", "sessions_spawn")
    steps = numbered(1, BEGAN, answer, s.Returned("1.2.1", "no", failed=True))
    assert plan.next_action(steps, 1, 9) == plan.CallModel(4)


def test_a_yield_is_judged_after_the_children_and_wins_over_waiting() -> None:
    answer = reply(1, 2, "", "sessions_yield", "sessions_spawn")
    give_back, spawn = answer.calls
    assert plan.next_action(numbered(1, BEGAN, answer), 1, 9) == plan.SpawnChildren((spawn,))
    child = s.Spawned(spawn.id, "C", "k", "l", wait=True)
    steps = numbered(1, BEGAN, answer, child)
    assert plan.next_action(steps, 1, 9) == plan.RunTool(give_back)
    steps = numbered(1, BEGAN, answer, child, s.Yielded(give_back.id, "later"))
    assert plan.next_action(steps, 1, 9) == plan.GiveLaneBack((child,), "later")


def test_a_new_wait_takes_in_what_is_still_live_from_before() -> None:
    first = reply(1, 2, "", "sessions_spawn", "sessions_spawn")
    old = [s.Spawned(call.id, f"C{call.id}", "k", "l", wait=True) for call in first.calls]
    second = reply(2, 2, "", "sessions_spawn")
    new = s.Spawned("2.2.1", "C3", "k", "l", wait=True)
    steps = numbered(1, BEGAN, first, *old) + numbered(
        2, s.Began("steered", told=(told("C1.2.1", "1.2.1"),)), second, new
    )
    assert plan.next_action(steps, 2, 9) == plan.WaitForChildren((old[1], new), "")


def test_a_model_that_goes_round_in_circles_is_stopped() -> None:
    steps = numbered(1, BEGAN, reply(1, 2, "", "agents_list"), s.Returned("1.2.1", "main"))
    assert plan.next_action(steps, 1, 1) == plan.StepsExhausted(1)


def test_records_survive_storage() -> None:
    records = [
        s.Began("steered", 7, True, (told("C", "1.2.1"),), ("x",), True),
        reply(1, 2, "hi", "agents_list"),
        s.Returned("1.2.1", "main"),
        s.Spawned("1.2.2", "C", "k", "l", wait=False),
        s.Yielded("1.2.3", "later"),
    ]
    assert [s.decode(s.encode(record)) for record in records] == records
    assert [s.kind_of(record) for record in records] == [
        "began",
        "replied",
        "returned",
        "spawned",
        "yielded",
    ]
