from __future__ import annotations

from agent_svc.domain import plan
from agent_svc.domain import steps as s
from agent_svc.domain.approval import MOST_QUESTIONS
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


ASKS = ("files__write", "files__move", "sessions_spawn")


def waited(*calls: s.ToolCall) -> list[s.Asked]:
    return [s.Asked(call.id, f"R/{call.id}") for call in calls]


def answered(*said: tuple[str, str, str]) -> s.Began:
    answers = tuple(s.Answer(f"R/{call_id}", option, by) for call_id, option, by in said)
    return s.Began("answered", answers=answers)


def test_what_may_run_runs_and_then_people_are_asked_about_all_the_rest_at_once() -> None:
    answer = reply(1, 2, "", "files__write", "files__read", "sessions_spawn", "files__move")
    write, read, spawn, move = answer.calls
    steps = numbered(1, BEGAN, answer)
    assert plan.next_action(steps, 1, 9, ASKS[:2]) == plan.RunTool(read)
    steps = numbered(1, BEGAN, answer, s.Returned(read.id, "x"))
    assert plan.next_action(steps, 1, 9, ASKS) == plan.AskPeople((write, spawn, move))
    # A child starts when nothing waits for a person any more.
    assert plan.next_action(steps, 1, 9, ASKS[:2]) == plan.AskPeople((write, move))
    steps = numbered(1, BEGAN, answer, s.Returned(read.id, "x"), *waited(write, move))
    questions = (f"R/{write.id}", f"R/{move.id}")
    assert plan.next_action(steps, 1, 9, ASKS[:2]) == plan.WaitForAnswers(questions)


def test_answers_are_followed_and_what_is_still_open_waits_again() -> None:
    answer = reply(1, 2, "", "files__write", "files__move", "files__write", "sessions_spawn")
    write, move, again, spawn = answer.calls
    asked = numbered(1, BEGAN, answer, *waited(write, move, again))
    began = answered((write.id, "allow", "ann"), (move.id, "deny", "ann"))
    steps = asked + numbered(2, began)
    assert plan.next_action(steps, 2, 9, ASKS[:2]) == plan.RunTool(write)
    steps = asked + numbered(2, began, s.Returned(write.id, "done"))
    refused = plan.next_action(steps, 2, 9, ASKS[:2])
    assert isinstance(refused, plan.AnswerCall)
    assert refused.result.call_id == move.id
    assert refused.result.failed
    assert "denied by ann" in refused.result.content
    second = numbered(2, began, s.Returned(write.id, "done"), refused.result)
    assert plan.next_action(asked + second, 2, 9, ASKS) == plan.AskPeople((spawn,))
    waits = plan.WaitForAnswers((f"R/{again.id}",))
    assert plan.next_action(asked + second, 2, 9, ASKS[:2]) == waits
    # Nobody answers in time: denied once, and the child of the same reply starts after all.
    third = [answered((again.id, "deny", ""))]
    late = plan.next_action(asked + second + numbered(3, *third), 3, 9, ASKS[:2])
    assert isinstance(late, plan.AnswerCall)
    assert "in time" in late.result.content
    done = asked + second + numbered(3, *third, late.result)
    assert plan.next_action(done, 3, 9, ASKS[:2]) == plan.SpawnChildren((spawn,))
    child = s.Spawned(spawn.id, "C", "k", "l", wait=True)
    done = asked + second + numbered(3, *third, late.result, child)
    assert plan.next_action(done, 3, 9, ASKS[:2]) == plan.WaitForChildren((child,), "")
    after = done + numbered(4, s.Began("children_settled", told=(told("C", spawn.id),)))
    assert plan.next_action(after, 4, 9, ASKS[:2]) == plan.CallModel(2)


def test_an_option_that_was_not_offered_allows_nothing() -> None:
    answer = reply(1, 2, "", "files__write")
    steps = numbered(1, BEGAN, answer, *waited(*answer.calls))
    steps += numbered(2, answered((answer.calls[0].id, "yes", "ann")))
    assert isinstance(plan.next_action(steps, 2, 9, ASKS), plan.AnswerCall)


def test_no_more_questions_are_asked_than_one_wait_may_name() -> None:
    answer = reply(1, 2, "", *["files__write"] * (MOST_QUESTIONS + 1))
    asking = plan.next_action(numbered(1, BEGAN, answer), 1, 9, ASKS)
    assert asking == plan.AskPeople(answer.calls[:MOST_QUESTIONS])
    steps = numbered(1, BEGAN, answer, *waited(*answer.calls[:MOST_QUESTIONS]))
    waiting = plan.next_action(steps, 1, 9, ASKS)
    assert isinstance(waiting, plan.WaitForAnswers)
    assert len(waiting.question_ids) == MOST_QUESTIONS


def test_a_call_that_was_interrupted_is_not_run_again() -> None:
    answer = reply(1, 2, "", "files__write", "files__read")
    write, read = answer.calls
    steps = numbered(1, BEGAN, answer, s.Calling(write.id))
    assert plan.next_action(steps, 1, 9) == plan.AnswerCall(
        s.Returned(write.id, plan.INTERRUPTED, failed=True)
    )
    steps = numbered(1, BEGAN, answer, s.Calling(write.id), s.Returned(write.id, "ok"))
    assert plan.next_action(steps, 1, 9) == plan.RunTool(read)


def test_waiting_for_people_does_not_give_a_model_more_calls() -> None:
    answer = reply(1, 2, "", "files__write")
    (write,) = answer.calls
    steps = numbered(1, BEGAN, answer, *waited(write))
    steps += numbered(2, answered((write.id, "allow", "ann")), s.Returned(write.id, "ok"))
    assert plan.next_action(steps, 2, 2, ASKS) == plan.CallModel(3)
    assert plan.next_action(steps, 2, 1, ASKS) == plan.StepsExhausted(1)
