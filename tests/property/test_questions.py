"""Questions under random commands, faults and restarts: asked, answered, expired, cancelled.

The machine of `test_invariants` with fewer of its rules, so that each example is about questions.
"""

from __future__ import annotations

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import settings
from hypothesis.stateful import initialize, invariant, precondition, rule, run_state_machine_as_test

from conveyor.common.v1 import question_pb2
from conveyor.events.v1 import event_pb2
from scheduler_svc.domain import asking, leasing, turns
from scheduler_svc.domain.emits import Asked
from scheduler_svc.domain.kernel import Kernel
from scheduler_svc.domain.leasing import Leased
from scheduler_svc.domain.questions import Option, Question, QuestionState
from scheduler_svc.domain.records import SECOND, Run, Wait, WaitKind
from scheduler_svc.store.base import QuestionQuery
from svckit.errors import LeaseLost, QuestionClosed
from tests.property.test_invariants import _SLOW_IS_FINE, SCALE, Machine, SqliteMachine


class Asking(Machine):
    # Not about questions; the machine without them has them.
    messages_to_collect = interrupt = a_message_that_drops_others = None  # type: ignore[assignment]
    repeat_a_request = an_old_lease_writes = call_a_model = None  # type: ignore[assignment]
    fail = None  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[str, list[str]] = {}  # run -> its questions
        self.answered: dict[str, str] = {}  # question -> option
        self.answers: dict[str, dict[int, list[str]]] = {}  # run -> turn -> questions told
        self.taken: dict[str, list[str]] = {}  # run -> questions whose answer a turn took

    @initialize(main=st.integers(1, 3), sub=st.integers(1, 3), wait=st.booleans())
    def start(self, main: int, sub: int, wait: bool) -> None:
        super().start(main, sub)
        for session in ("a", "b"):
            self.message(session, False, False, None)
        self.lease(2)
        for item in list(self.held.values()):
            self.ask_under(item, [2, 30])
            if wait:
                self.wait_under(item, self.asked[item.run.run_id], take=True, timeout=0)

    def resumed(self, item: Leased) -> None:
        run, resumption = item.run, item.resumption
        assert resumption is not None
        turns_told = self.answers.setdefault(run.run_id, {})
        now = [given.question_id for given in resumption.answers]
        first = run.turn not in turns_told  # attempts that are handed back do not count
        assert turns_told.setdefault(run.turn, now) == now, "the same for every attempt"
        others = [q for turn, ids in turns_told.items() if turn != run.turn for q in ids]
        others += self.taken.get(run.run_id, [])
        assert not set(others) & set(now), "each closed question is told to one turn"
        if first:
            assert self.closed(run.run_id) == {*others, *now}, "and none is left out"

    def closed(self, run_id: str) -> set[str]:
        query = QuestionQuery(
            run_id=run_id, states=frozenset({QuestionState.ANSWERED, QuestionState.EXPIRED})
        )
        found = self.do(self.store.list_questions(query, before=0, limit=10_000))
        return {stored.question.question_id for stored in found}

    @precondition(lambda self: self.held)
    @rule(
        data=st.data(),
        timeouts=st.lists(st.sampled_from([2, 8, 30]), min_size=1, max_size=3),
        wait=st.booleans(),
    )
    def ask(self, data: st.DataObject, timeouts: list[int], wait: bool) -> None:
        item = self.pick(data)
        self.ask_under(item, timeouts)
        ids = self.asked.get(item.run.run_id)
        if wait and ids:
            self.wait_under(item, ids[-2:], take=False, timeout=0)

    def ask_under(self, item: Leased, timeouts: list[int]) -> None:
        run_id = item.run.run_id
        ids = [f"{run_id}/{next(self.ids)}" for _ in timeouts]
        asked = [
            Asked(
                event_id=question_id,
                event=event_pb2.Event(
                    event_id=question_id,
                    question_asked=event_pb2.QuestionAsked(
                        question=question_pb2.Question(question_id=question_id)
                    ),
                ).SerializeToString(),
                question=Question(
                    question_id=question_id,
                    title="may I?",
                    options=[Option("yes", "Yes"), Option("no", "No")],
                    default="no",
                    timeout=seconds * SECOND,
                ),
                data=b"",
            )
            for question_id, seconds in zip(ids, timeouts, strict=True)
        ]
        found = self.quietly(
            lambda k, now: turns.append(k, run_id, item.lease.token, asked, now),
            runs=[run_id],
            questions=ids,
        )
        if isinstance(found, int):
            self.asked.setdefault(run_id, []).extend(ids)
            stopping = self.k.runs[run_id].stopping
            assert all((self.k.questions.get(q) is None) == stopping for q in ids)

    @precondition(lambda self: any(run_id in self.asked for run_id in self.held))
    @rule(data=st.data(), take=st.booleans(), timeout=st.sampled_from([0, 20]))
    def wait_for_answers(self, data: st.DataObject, take: bool, timeout: int) -> None:
        run_id = data.draw(st.sampled_from(sorted(set(self.asked) & set(self.held))))
        item = self.held[run_id]
        ids = data.draw(st.lists(st.sampled_from(self.asked[run_id]), min_size=1, unique=True))
        self.wait_under(item, ids, take=take, timeout=timeout)

    def wait_under(self, item: Leased, ids: list[str], *, take: bool, timeout: int) -> None:
        run_id = item.run.run_id
        run = self.k.runs.get(run_id)
        given = {a.request_id: a.question_id for a in run.answers} if run and take else {}
        taken = list(given)

        def apply(k: Kernel, now: int) -> Run:
            wait = Wait(kind=WaitKind.APPROVAL, question_ids=list(ids))
            if timeout:
                wait.expire_time = now + timeout * SECOND
            return leasing.copy(
                turns.suspend(
                    k,
                    run_id,
                    item.lease.token,
                    f"q{item.lease.token}",
                    wait=wait,
                    hold_lane=True,
                    interim=b"",
                    taken=taken,
                    now=now,
                )
            )

        token = item.lease.token
        alive = run is not None and run.lease is not None and run.lease.token == token
        found = self.quietly(apply, runs=[run_id], questions=ids)
        if found is None:
            return
        assert isinstance(found, LeaseLost) == (not alive), found
        del self.held[run_id]
        self.old.append((run_id, token))
        if isinstance(found, Run):
            assert found.lease is None, "no run waits for an answer holding a slot"
            self.taken.setdefault(run_id, []).extend(given.values())

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), option=st.sampled_from(["yes", "no"]))
    def answer(self, data: st.DataObject, option: str) -> None:
        run_id = data.draw(st.sampled_from(sorted(self.asked)))
        question_id = data.draw(st.sampled_from(self.asked[run_id]))
        request_id = f"a{next(self.ids)}"
        was_open = self.k.questions.get(question_id) is not None
        found = self.quietly(
            lambda k, now: msgspec.structs.replace(
                asking.answer(
                    k,
                    question_id,
                    option,
                    run_id="",
                    responder="ann",
                    request_id=request_id,
                    body_hash=b"h",
                    trace=b"",
                    now=now,
                )
            ),
            requests=[request_id],
            questions=[question_id],
        )
        if found is None:
            return
        if isinstance(found, Question):
            assert self.answered.setdefault(question_id, option) == option, "closed once"
            assert (found.state, found.option_id) == (QuestionState.ANSWERED, option)
        else:
            assert isinstance(found, QuestionClosed)
            # Its time may have been over just now.
            assert not was_open or found.metadata["state"] == "EXPIRED"

    @invariant()
    def questions_are_where_they_belong(self) -> None:
        if not hasattr(self, "store"):
            return
        stored = list(self.k.questions)
        numbers = [(question.root_session_key, question.number) for question in stored]
        assert len(numbers) == len(set(numbers)), "a number means one open question"
        open_ids = {question.question_id for question in stored}
        assert open_ids == {q for run in self.k.runs.values() for q in run.asked}
        for question in stored:
            assert question.question_id in self.k.runs[question.run_id].asked
            assert not self.k.runs[question.run_id].stopping
        if not self.answered:
            return
        for found in self.do(self.store.list_questions(QuestionQuery(), before=0, limit=10_000)):
            option = self.answered.get(found.question.question_id)
            if option is not None:
                assert found.question.state is QuestionState.ANSWERED
                assert found.question.option_id == option


class AskingSqlite(Asking, SqliteMachine):
    pass


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("machine", "examples"), [(Asking, 50), (AskingSqlite, 10)])
def test_questions(machine: type[Machine], examples: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples * SCALE,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=_SLOW_IS_FINE,
        ),
    )
