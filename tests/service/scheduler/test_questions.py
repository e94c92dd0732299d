"""Questions from the outside: asked under the lease, answered once, on every store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from grpc import aio

from conveyor.common.v1 import question_pb2
from conveyor.events.v1 import event_log_service_pb2 as events
from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import announcement_pb2, run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as pb
from conveyor.scheduler.v1 import worker_service_pb2 as ws
from scheduler_svc.app import config as rules
from scheduler_svc.app import make_store
from scheduler_svc.domain import admission, asking, leasing, turns
from scheduler_svc.domain.emits import Asked
from scheduler_svc.domain.questions import Option, Question, QuestionState
from scheduler_svc.domain.records import (
    SECOND,
    NewRun,
    ResumeReason,
    RunState,
    Wait,
    WaitKind,
)
from scheduler_svc.engine import Engine
from scheduler_svc.retention import remove_old
from scheduler_svc.store.base import EventQuery, LaneStore, QuestionQuery
from scheduler_svc.store.memory import MemoryStore
from svckit.clock import FakeClock
from svckit.grpc.status import from_rpc_error
from svckit.settings_model import RetentionSettings
from svckit.testing import eventually
from tests.history import assert_holds, of_store

from .conftest import Driver, driver, message, settings

ALLOW = question_pb2.QUESTION_OPTION_KIND_ALLOW_ONCE
DENY = question_pb2.QUESTION_OPTION_KIND_REJECT_ONCE
OPTIONS = (("yes", "Allow once", ALLOW), ("no", "Deny", DENY))
STATES = {
    name.removeprefix("QUESTION_STATE_").lower(): value
    for name, value in question_pb2.QuestionState.items()
}


def question(leased: Any, call: str = "1.1.0", **more: Any) -> question_pb2.Question:
    return question_pb2.Question(
        **{
            "question_id": f"{leased.run.run_id}/{call}",
            "title": f"Run the tool of {call}",
            "options": [
                question_pb2.QuestionOption(option_id=o, name=name, kind=kind)
                for o, name, kind in OPTIONS
            ],
            "default_option_id": "no",
            **more,
        }
    )


async def append(s: Driver, leased: Any, *asked: question_pb2.Question, prefix: str = "q") -> int:
    response = await s.events.AppendEvents(
        events.AppendEventsRequest(
            lease_id=leased.lease.lease_id,
            events=[
                event_pb2.Event(
                    event_id=f"{prefix}-{one.question_id.rpartition('/')[2]}",
                    question_asked=event_pb2.QuestionAsked(question=one),
                )
                for one in asked
            ],
        )
    )
    return int(response.last_sequence)


async def wait_for(s: Driver, leased: Any, *calls: str, **more: Any) -> Any:
    ids = [f"{leased.run.run_id}/{call}" for call in calls]
    response = await s.worker.SuspendRun(
        ws.SuspendRunRequest(
            lease_id=leased.lease.lease_id,
            condition=run_pb2.WaitCondition(approval=run_pb2.ApprovalWait(question_ids=ids)),
            **{"hold_session_lane": True, **more},
        )
    )
    return response.run


async def answer(
    s: Driver, leased: Any, call: str = "1.1.0", option: str = "yes", request_id: str = "", **m: Any
) -> pb.SteerRunResponse:
    given = question_pb2.Answer(
        question_id=f"{leased.run.run_id}/{call}", option_id=option, responder="ada"
    )
    response = await s.scheduler.SteerRun(
        pb.SteerRunRequest(answer=given, request_id=request_id or f"{call}-{option}", **m)
    )
    assert isinstance(response, pb.SteerRunResponse)
    return response


async def listed(s: Driver, *states: str, **more: Any) -> list[question_pb2.Question]:
    response = await s.scheduler.ListQuestions(
        pb.ListQuestionsRequest(
            filter=pb.QuestionFilter(states=[STATES[state] for state in states], **more)
        )
    )
    return list(response.questions)


async def refusal(call: Any) -> Any:
    with pytest.raises(aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def test_a_run_asks_waits_without_a_slot_and_goes_on_with_the_answer(s: Driver) -> None:
    accepted = await s.send("a", "delete it")
    leased = await s.lease_one()
    assert await append(s, leased, question(leased, locations=["/tmp/x"])) > 0
    # A worker that did not hear the answer, or its next attempt, asks again: once it stays.
    await append(s, leased, question(leased, locations=["/tmp/x"]))
    assert (await s.kinds("a")).count("question_asked") == 1
    run = await wait_for(s, leased, "1.1.0")
    assert run.state == run_pb2.RUN_STATE_SUSPENDED
    assert run.suspension.holds_session_lane

    [asked] = await listed(s)
    assert (asked.state, asked.number, asked.tool_kind) == (STATES["open"], 1, "other")
    assert (asked.session_key, asked.root_session_key, asked.customer_key) == ("a", "a", "a")
    assert (asked.run_id, asked.flow_id) == (accepted.run.run_id, accepted.run.run_id)
    assert asked.timeout.seconds == 300
    assert asked.expire_time.seconds - asked.create_time.seconds == 300
    assert list(asked.locations) == ["/tmp/x"]
    [told] = [e for e in await s.log("a") if e.HasField("question_asked")]
    assert told.question_asked.question == asked
    assert told.turn == 1

    # The slot is free, the session lane is not, and whoever waits behind it is told why.
    behind = await s.send("a", "and this?")
    assert behind.estimate.session_lane_wait.approval.question_ids == [asked.question_id]
    await s.send("b", "hello")
    [other] = await s.lease(2)
    assert other.run.spec.session_key == "b"
    explained = await s.scheduler.ExplainRun(pb.ExplainRunRequest(run_id=asked.run_id))
    [reason] = explained.explanation.reasons
    assert reason.text.startswith("It waits for an answer: Run the tool of 1.1.0 (")
    assert reason.waiting_for_approval.question_ids == [asked.question_id]
    assert reason.waiting_for_approval.expire_time == asked.expire_time
    explained = await s.scheduler.ExplainRun(pb.ExplainRunRequest(run_id=behind.run.run_id))
    assert "is waiting for your approval" in explained.explanation.reasons[0].text

    # A steered message is kept, does not wake it, and its sender learns what it waits for.
    steered = await s.scheduler.SteerRun(
        pb.SteerRunRequest(run_id=asked.run_id, message=message("also"), request_id="steer")
    )
    assert steered.run.state == run_pb2.RUN_STATE_SUSPENDED
    assert steered.run.suspension.condition.WhichOneof("condition") == "approval"

    given = await answer(s, leased)
    assert given.run.state == run_pb2.RUN_STATE_QUEUED
    assert given.question.state == STATES["answered"]
    assert (given.question.answer.option_id, given.question.answer.responder) == ("yes", "ada")
    # The same request, the same answer in another request, and another answer.
    assert (await answer(s, leased)).question == given.question
    assert (await answer(s, leased, request_id="again")).question == given.question
    error = await refusal(answer(s, leased, option="no"))
    assert (error.reason, error.metadata["state"]) == ("QUESTION_CLOSED", "ANSWERED")
    error = await refusal(answer(s, leased, option="no", request_id="1.1.0-yes"))
    assert error.reason == "REQUEST_ID_REUSED"

    resumed = await s.lease_one()
    assert resumed.run.run_id == asked.run_id
    assert resumed.lease.turn == 2
    assert resumed.resumption.reason == announcement_pb2.RESUME_REASON_ANSWERED
    assert list(resumed.resumption.answers) == [given.question.answer]
    assert [entry.message.parts[0].text for entry in resumed.steered] == ["also"]
    await s.complete(resumed, taken_request_ids=["steer"])
    await s.complete(other)
    assert await listed(s) == []
    # What is closed stays answered, also when its run has ended.
    assert (await answer(s, leased)).question == given.question
    assert await listed(s, "answered", run_id=asked.run_id) == [given.question]
    [closed] = [e.question_closed for e in await s.log("a") if e.HasField("question_closed")]
    assert (closed.title, closed.number, closed.option_name) == (asked.title, 1, "Allow once")
    assert closed.answer == given.question.answer
    assert_holds(await of_store(s.engine.store))


async def test_people_are_asked_in_the_conversation_that_the_run_names(s: Driver) -> None:
    await s.send("a", "here")
    here = await s.lease_one()
    await append(s, here, question(here))
    await s.send("agent:claude:acp:1", "there", question_session_key="a")
    there = await s.lease_one()
    await append(s, there, question(there))
    found = await listed(s, root_session_key="a")
    assert [(one.session_key, one.root_session_key, one.number) for one in found] == [
        ("agent:claude:acp:1", "a", 2),
        ("a", "a", 1),
    ]
    assert await listed(s, root_session_key="agent:claude:acp:1") == []
    closed = (await answer(s, there)).question
    assert (closed.number, closed.state) == (2, STATES["answered"])


async def test_several_questions_and_answers_at_any_time(s: Driver) -> None:
    await s.send("a")
    leased = await s.lease_one()
    calls = ("1.1.0", "1.1.1", "1.1.2", "1.1.3")
    await append(s, leased, *(question(leased, call) for call in calls))
    assert [q.number for q in await listed(s, session_key="a")] == [4, 3, 2, 1]
    # Answered while the turn executes: it is offered the answer until it names it.
    await answer(s, leased, "1.1.0", "no")
    for _ in range(2):
        [status] = await s.extend(leased)
        [entry] = status.steered
        assert (entry.answer.option_id, entry.answer.responder) == ("no", "ada")
    # One is closed already: no wait. What the turn took is told to no other.
    run = await wait_for(s, leased, "1.1.0", "1.1.1", taken_request_ids=[entry.request_id])
    assert run.state == run_pb2.RUN_STATE_QUEUED
    second = await s.lease_one()
    assert second.resumption.reason == announcement_pb2.RESUME_REASON_ANSWERED
    assert list(second.resumption.answers) == []
    # Of those that are left one is enough, and every closed one is told, awaited or not.
    await answer(s, leased, "1.1.3")
    run = await wait_for(s, second, "1.1.1", "1.1.2")
    assert run.state == run_pb2.RUN_STATE_SUSPENDED
    await answer(s, leased, "1.1.2")
    third = await s.lease_one()
    told = [given.question_id.rpartition("/")[2] for given in third.resumption.answers]
    assert told == ["1.1.3", "1.1.2"]
    # The next attempt starts with the same.
    await s.worker.ReleaseRun(ws.ReleaseRunRequest(lease_id=third.lease.lease_id))
    again = await s.lease_one()
    assert again.resumption == third.resumption
    assert [q.number for q in await listed(s, run_id=leased.run.run_id)] == [2]
    # A run that ends needs no answer any more.
    await s.complete(again)
    [left] = await listed(s, "cancelled")
    assert (left.question_id, left.HasField("answer")) == (f"{leased.run.run_id}/1.1.1", False)
    error = await refusal(answer(s, leased, "1.1.1"))
    assert (error.reason, error.metadata["state"]) == ("QUESTION_CLOSED", "CANCELLED")
    assert_holds(await of_store(s.engine.store))


async def test_questions_of_a_tree_belong_to_the_session_of_its_root(s: Driver) -> None:
    await s.send("a")
    await s.send("b")
    roots = {leased.run.spec.session_key: leased for leased in await s.lease(2)}
    [child_id] = await s.spawn(roots["a"], "child")
    child = await s.lease_one()
    await append(s, roots["a"], question(roots["a"]))
    await append(s, child, question(child))
    await append(s, roots["b"], question(roots["b"]))
    found = await listed(s, root_session_key="a")
    assert [(q.run_id, q.number) for q in found] == [(child_id, 2), (roots["a"].run.run_id, 1)]
    assert {q.flow_id for q in found} == {roots["a"].run.run_id}
    assert {q.customer_key for q in found} == {"a"}
    assert [q.number for q in await listed(s, customer_key="b")] == [1]
    assert [q.run_id for q in await listed(s, session_key="a")] == [roots["a"].run.run_id]
    # Whoever waits behind a tree that asks is told so, whichever run of it asks.
    await s.wait_for_children(roots["a"], child_id)
    behind = await s.send("a", "and this?")
    approval = behind.estimate.session_lane_wait.approval
    assert set(approval.question_ids) == {q.question_id for q in found}
    explained = await s.scheduler.ExplainRun(pb.ExplainRunRequest(run_id=behind.run.run_id))
    assert "is waiting for your approval" in explained.explanation.reasons[0].text
    # A number that is told stays, whatever is closed meanwhile.
    await answer(s, roots["a"])
    [left] = await listed(s, root_session_key="a")
    assert (left.question_id, left.number) == (f"{child_id}/1.1.0", 2)
    await append(s, child, question(child, "1.1.1"))
    assert [q.number for q in await listed(s, root_session_key="a")] == [3, 2]
    # Stopping the tree closes what its runs asked, and nobody can ask any more.
    await s.scheduler.CancelRun(pb.CancelRunRequest(run_id=roots["a"].run.run_id))
    assert await listed(s, root_session_key="a") == []
    await append(s, child, question(child, "1.1.9"))
    assert await listed(s, root_session_key="a") == []
    assert len(await listed(s, "cancelled", root_session_key="a")) == 3
    # Pages.
    first = await s.scheduler.ListQuestions(
        pb.ListQuestionsRequest(filter=pb.QuestionFilter(states=[4]), page_size=2)
    )
    second = await s.scheduler.ListQuestions(
        pb.ListQuestionsRequest(
            filter=pb.QuestionFilter(states=[4]), page_size=2, page_token=first.next_page_token
        )
    )
    numbers = [q.number for page in (first, second) for q in page.questions]
    assert (numbers, second.next_page_token) == ([4, 3, 2], "")


async def test_a_late_answer_by_number_never_meets_the_next_question_of_the_tree(
    s: Driver,
) -> None:
    """Number 1 had expired, and the same run asked number 1 again: `/approve 1` approved that."""
    await s.send("a")
    leased = await s.lease_one()
    await append(s, leased, question(leased))
    await answer(s, leased, option="no")
    await append(s, leased, question(leased, "1.1.1"))
    assert [q.number for q in await listed(s, session_key="a")] == [2]


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[Driver]:
    async with driver(settings(tmp_path, "memory")) as found:
        yield found


async def test_what_may_not_be_asked(small: Driver) -> None:
    s = small
    await s.send("a")
    await s.send("b")
    leased, other = await s.lease(2)
    base = question(leased)
    option = base.options[0]
    cases: tuple[tuple[str, dict[str, Any]], ...] = (
        ("question_id", {"question_id": ""}),
        ("question_id", {"question_id": f"{other.run.run_id}/1.1.0"}),
        ("title", {"title": ""}),
        ("title", {"title": "x" * 257}),
        ("tool_kind", {"tool_kind": "dance"}),
        ("options", {"options": []}),
        ("options[1].option_id", {"options": [option, option]}),
        ("options[0].kind", {"options": [question_pb2.QuestionOption(option_id="a", name="A")]}),
        ("default_option_id", {"default_option_id": "maybe"}),
        ("timeout", {"timeout": Duration(seconds=9)}),
        ("timeout", {"timeout": Duration(seconds=86401)}),
        ("locations", {"locations": ["/x"] * 33}),
    )
    for field, wrong in cases:
        error = await refusal(append(s, leased, question(leased, **wrong)))
        assert error.reason == "INVALID_FIELD", field
        assert error.metadata["field"].endswith(field), (field, error.metadata)
    many = [question(leased, f"1.1.{n}") for n in range(33)]
    assert (await refusal(append(s, leased, *many))).metadata["field"] == "events"
    await append(s, leased, base)
    error = await refusal(append(s, leased, question(leased, "1.1.7"), base, prefix="other"))
    assert "was asked before" in error.message
    assert [q.question_id for q in await listed(s)] == [base.question_id], "all or nothing"
    gone = ws.ReleaseRunRequest(lease_id=other.lease.lease_id)
    await s.worker.ReleaseRun(gone)
    assert (await refusal(append(s, other, question(other)))).reason == "LEASE_LOST"


async def test_what_may_not_be_waited_for_or_answered(small: Driver) -> None:
    s = small
    await s.send("a")
    await s.send("b")
    leased, other = await s.lease(2)
    await append(s, leased, question(leased))
    await append(s, other, question(other))
    field = "condition.approval.question_ids"
    for calls in ((), ("1.1.0", "9.9.9"), tuple(f"1.1.{n}" for n in range(33))):
        error = await refusal(wait_for(s, leased, *calls))
        assert (error.reason, error.metadata["field"]) == ("INVALID_FIELD", field)
    error = await refusal(wait_for(s, leased, "1.1.0", hold_session_lane=False))
    assert error.metadata["field"] == "hold_session_lane"
    error = await refusal(wait_for(s, leased, "1.1.0", yield_after=Duration(seconds=1)))
    assert error.metadata["field"] == "yield_after"
    error = await refusal(answer(s, leased, option="maybe"))
    assert error.metadata["field"] == "answer.option_id"
    assert "yes, no" in error.message
    assert (await refusal(answer(s, leased, "9.9.9"))).reason == "QUESTION_NOT_FOUND"
    error = await refusal(answer(s, leased, run_id=other.run.run_id))
    assert error.reason == "QUESTION_NOT_FOUND"
    assert len(await listed(s)) == 2


# -- On a clock of ours ---------------------------------------------------------------------------

START = 1_700_000_000 * SECOND


@asynccontextmanager
async def engine(store: LaneStore, clock: FakeClock, directory: Path) -> AsyncIterator[Engine]:
    found = Engine(store, rules(settings(directory)), clock)
    await found.start()
    task = asyncio.create_task(found.run())
    try:
        yield found
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await found.close()


def asks(run_id: str, call: str, timeout: int) -> Asked:
    one = Question(
        question_id=f"{run_id}/{call}",
        title=call,
        options=[Option("yes", "Allow"), Option("no", "Deny")],
        default="no",
        timeout=timeout * SECOND,
    )
    shown = event_pb2.QuestionAsked(question=question_pb2.Question(question_id=one.question_id))
    event = event_pb2.Event(event_id=call, question_asked=shown)
    return Asked(event_id=call, event=event.SerializeToString(), question=one, data=b"")


async def test_a_deadline_holds_over_a_restart_and_denies_once(store: str, tmp_path: Path) -> None:
    memory = MemoryStore()

    def opened() -> LaneStore:
        return memory if store == "memory" else make_store(settings(tmp_path, store))

    clock = FakeClock(START)
    async with engine(opened(), clock, tmp_path) as one:

        def begin(k: Any, now: int) -> None:
            new = NewRun(
                run_id="r",
                request_id="req",
                body_hash=b"",
                session_key="a",
                customer_key="a",
                queue="agent",
                lane="main",
                payload=run_pb2.Run().SerializeToString(),
            )
            admission.enqueue(k, new, now, parent_lease=None)
            [leased] = leasing.lease_ready(k, "agent", "w", 1, 1, now)
            token = leased.lease.token
            turns.append(k, "r", token, [asks("r", "short", 60), asks("r", "long", 600)], now)
            turns.suspend(
                k,
                "r",
                token,
                "digest",
                wait=Wait(kind=WaitKind.APPROVAL, question_ids=["r/short", "r/long"]),
                hold_lane=True,
                interim=b"",
                taken=[],
                now=now,
            )

        await one.submit(begin)
        clock.advance(59.0)
        states = await one.submit(lambda k, now: [q.question_id for q in k.questions])
        assert states == ["r/short", "r/long"]
    # The deadline comes while nobody is there.
    clock = FakeClock(START + 61 * SECOND)
    async with engine(opened(), clock, tmp_path) as two:

        async def short_is_closed() -> bool:
            found = await two.store.list_questions(
                QuestionQuery(states=frozenset({QuestionState.EXPIRED})), before=0, limit=9
            )
            return [(q.question.question_id, q.question.option_id) for q in found] == [
                ("r/short", "no")
            ]

        await eventually(short_is_closed)
        run = await two.submit(lambda k, now: leasing.copy(k.runs["r"]))
        assert run.state is RunState.QUEUED
        assert run.resumption is not None
        assert run.resumption.reason is ResumeReason.ANSWERED
        assert [given.question_id for given in run.answers] == ["r/short"]
        kinds = frozenset({"question_closed"})
        assert len(await two.store.events(EventQuery(kinds=kinds), 9)) == 1
        assert_holds(await of_store(two.store))
        # Closed questions go with the request ids, open ones stay as long as their runs.
        keep = RetentionSettings(request_ids_hours=1, runs_days=1, events_days=1)
        await remove_old(two.store, keep, clock.now_us() + 3600 * SECOND - 1)
        assert len(await two.store.list_questions(QuestionQuery(), before=0, limit=9)) == 2
        await remove_old(two.store, keep, clock.now_us() + 3601 * SECOND)
        [left] = await two.store.list_questions(QuestionQuery(), before=0, limit=9)
        assert left.question.question_id == "r/long"
    async with engine(opened(), clock, tmp_path) as three:
        assert await three.submit(lambda k, now: len(k.questions)) == 1
        await three.submit(lambda k, now: asking.cancel_open(k, k.runs["r"], now))
        assert await three.submit(lambda k, now: len(k.questions)) == 0
