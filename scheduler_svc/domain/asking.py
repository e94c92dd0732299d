"""Runs that ask people, and what follows from an answer.

A question is asked under the lease, with an event. It is closed exactly once: answered, or with its
default when its time is over, or because its run ends first. What no turn was told yet of closed
questions stands in `Run.answers`: the executing turn is offered it, the next turn starts with it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from scheduler_svc.domain import requests, waiting
from scheduler_svc.domain.emits import Asked, QuestionClosed
from scheduler_svc.domain.kernel import Kernel, Timer
from scheduler_svc.domain.questions import MOST_OPEN, Question, QuestionState
from scheduler_svc.domain.records import Answer, ResumeReason, Run, RunState, Wait, WaitKind
from svckit.errors import InvalidField, QuestionNotFound, invalid_field
from svckit.errors import QuestionClosed as ClosedError


def check(k: Kernel, run: Run, asked: Sequence[Asked]) -> None:
    """Raises `InvalidField` when a run may not ask these. Nothing has been changed then.

    The caller has put what the store knows of their ids into `Kernel.closed_questions`.
    """
    ids: set[str] = set()
    for event in asked:
        question_id = event.question.question_id
        if not question_id.startswith(f"{run.run_id}/"):
            raise _wrong("must be the run id, `/`, and the tool call id")
        if question_id in ids or find(k, question_id) is not None:
            raise _wrong(f"{question_id!r} was asked before, with an event of another id")
        ids.add(question_id)
    if len(run.asked) + len(asked) > MOST_OPEN:
        raise invalid_field("events", f"a run may have {MOST_OPEN} open questions at a time")


def ask(k: Kernel, run: Run, event: Asked, now: int) -> None:
    """Stores a question that `check` let pass, with its event."""
    root = k.runs[run.flow_id]
    where = asked_in(root)
    root.question_number = max(k.questions.next_number(where), root.question_number + 1)
    k.touch(root)
    question = msgspec.structs.replace(
        event.question,
        order=k.next_position,
        number=root.question_number,
        run_id=run.run_id,
        flow_id=run.flow_id,
        session_key=run.session_key,
        root_session_key=where,
        customer_key=run.customer_key,
        create_time=now,
        expire_time=now + event.question.timeout,
    )
    k.questions.add(question)
    k.changes.questions[question.question_id] = question
    k.changes.question_data[question.question_id] = event.data
    run.asked.append(question.question_id)
    k.touch(run)
    k.emit(run, msgspec.structs.replace(event, question=question), now, by_worker=True)
    k.at(question.expire_time, Timer.QUESTION, run, question.order)


def asked_in(root: Run) -> str:
    """The conversation in which people are asked what the tree of a root asks."""
    return root.question_session_key or root.session_key


def find(k: Kernel, question_id: str) -> Question | None:
    """A question, open or closed."""
    return k.questions.get(question_id) or k.closed_questions.get(question_id)


def answer(
    k: Kernel,
    question_id: str,
    option_id: str,
    *,
    run_id: str,
    responder: str,
    request_id: str,
    body_hash: bytes,
    trace: bytes,
    now: int,
) -> Question:
    """Closes a question with one of its options. Answering it the same again changes nothing.

    Raises `QuestionNotFound` (also when it is of another run than `run_id`, if that is given),
    `QuestionClosed`, `InvalidField` or `RequestIdReused`. The caller has put what the store knows
    of the question into `Kernel.closed_questions`.
    """
    question = find(k, question_id)
    if question is None or (run_id and question.run_id != run_id):
        raise QuestionNotFound(
            f"no question has the id {question_id!r}", metadata={"questionId": question_id}
        )
    if requests.seen(k, request_id, body_hash):
        return question
    if not question.offers(option_id):
        offered = ", ".join(option.option_id for option in question.options)
        raise invalid_field("answer.option_id", f"was not offered; offered are: {offered}")
    if question.state is QuestionState.ANSWERED and question.option_id == option_id:
        return question
    if not question.open:
        raise _closed(question)
    requests.remember(k, request_id, body_hash, question.run_id)
    run = k.runs[question.run_id]
    _close(k, run, question, QuestionState.ANSWERED, now, option=option_id, by=responder)
    _told_of(k, run, question, request_id, trace, now)
    return question


def expire(k: Kernel, run: Run, order: int, now: int) -> None:
    """Nobody answered in time: the default is taken."""
    question = k.questions.at(order)
    if question is not None:
        _close(k, run, question, QuestionState.EXPIRED, now, option=question.default)
        _told_of(k, run, question, question.question_id, b"", now)


def cancel_open(k: Kernel, run: Run, now: int) -> None:
    """The run ends, or is to end: what it asked needs no answer any more."""
    for question_id in list(run.asked):
        question = k.questions.get(question_id)
        assert question is not None
        _close(k, run, question, QuestionState.CANCELLED, now)


def take(run: Run, request_ids: Sequence[str]) -> None:
    """The turn that ends or suspends names what it took: those answers count as told."""
    run.answers = [told for told in run.answers if told.request_id not in request_ids]


def check_wait(k: Kernel, run: Run, wait: Wait) -> None:
    """Raises `InvalidField` when a run waits for what it never asked."""
    for question_id in wait.question_ids:
        question = find(k, question_id)
        if question is None or question.run_id != run.run_id:
            raise invalid_field(
                "condition.approval.question_ids", f"{question_id!r} is no question of the run"
            )


def lane_wait(k: Kernel, holder: Run) -> Wait | None:
    """What whoever waits behind a suspended run is told that it waits for.

    Where a run of its tree asks people something, that comes before the wait for that run.
    """
    wait = holder.wait
    if wait is None or wait.kind is not WaitKind.CHILDREN or holder.depth:
        return wait
    asked = k.questions.of_tree(asked_in(holder), holder.flow_id)
    if not asked:
        return wait
    return Wait(kind=WaitKind.APPROVAL, question_ids=[question.question_id for question in asked])


def _close(
    k: Kernel,
    run: Run,
    question: Question,
    state: QuestionState,
    now: int,
    *,
    option: str = "",
    by: str = "",
) -> None:
    question.close(state, now, option=option, by=by)
    k.questions.remove(question)
    k.closed_questions[question.question_id] = question
    k.changes.questions[question.question_id] = question
    run.asked.remove(question.question_id)
    k.touch(run)
    k.emit(
        run,
        QuestionClosed(
            question_id=question.question_id,
            state=state,
            title=question.title,
            number=question.number,
            option_id=option,
            option_name=question.option_name,
            responder=by,
        ),
        now,
    )


def _told_of(
    k: Kernel, run: Run, question: Question, request_id: str, trace: bytes, now: int
) -> None:
    """The run learns what came of its question: now, if it waits for that."""
    run.answers.append(
        Answer(
            question_id=question.question_id,
            request_id=request_id,
            option_id=question.option_id,
            responder=question.responder,
            time=now,
            trace=trace,
        )
    )
    wait = run.wait
    if (
        run.state is RunState.SUSPENDED
        and wait is not None
        and wait.kind is WaitKind.APPROVAL
        and waiting.satisfied(run, wait)
    ):
        waiting.resume(k, run, ResumeReason.ANSWERED, now)


def _closed(question: Question) -> ClosedError:
    how = {
        QuestionState.ANSWERED: f"was answered with {question.option_name!r}",
        QuestionState.EXPIRED: "has expired: nobody answered in time",
        QuestionState.CANCELLED: "needs no answer any more: its run has ended",
    }[question.state]
    return ClosedError(
        f"the question {how}",
        metadata={"questionId": question.question_id, "state": question.state.name},
    )


def _wrong(problem: str) -> InvalidField:
    return invalid_field("events.question_asked.question.question_id", problem)
