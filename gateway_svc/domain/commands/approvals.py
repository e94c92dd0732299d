"""Which question `/approve` and `/deny` answer, and with which of its options."""

from __future__ import annotations

from collections.abc import Sequence

from conveyor.common.v1 import question_pb2
from gateway_svc.domain.commands.problem import Problem
from svckit.words import joined, shorten

_TITLE, _NAMED = 60, 4

_KINDS = {
    (True, False): question_pb2.QUESTION_OPTION_KIND_ALLOW_ONCE,
    (True, True): question_pb2.QUESTION_OPTION_KIND_ALLOW_ALWAYS,
    (False, False): question_pb2.QUESTION_OPTION_KIND_REJECT_ONCE,
    (False, True): question_pb2.QUESTION_OPTION_KIND_REJECT_ALWAYS,
}


def choose_question(
    typed: str, questions: Sequence[question_pb2.Question], verb: str
) -> question_pb2.Question | Problem:
    """Return the open question that `typed` names, by number or id; the oldest without one.

    `questions` are open, oldest first.
    """
    if not questions:
        return Problem("nothing waits for your answer here")
    if not typed:
        return questions[0]
    number = typed.removeprefix("#")
    for question in questions:
        if question.question_id == typed or str(question.number) == number:
            return question
    there = joined([_named(question) for question in questions[:_NAMED]])
    example = f"/{verb} {questions[0].number}"
    return Problem(
        f"no open question is “{shorten(typed, 40)}”: there is {there}, for example `{example}`"
    )


def choose_option(
    question: question_pb2.Question, *, allow: bool, always: bool
) -> question_pb2.QuestionOption | Problem:
    """Return the option of a question that allows or rejects, once or always."""
    kind = _KINDS[allow, always]
    for option in question.options:
        if option.kind == kind:
            return option
    offered = joined([f"“{shorten(option.name, 40)}”" for option in question.options], "or")
    how = "always" if always else "once"
    return Problem(
        f"{_named(question)} cannot be {'allowed' if allow else 'refused'} {how}: "
        f"it offers {offered}"
    )


def answered_text(question: question_pb2.Question, *, allow: bool, always: bool, left: int) -> str:
    """Return what is said about an answer that was taken."""
    how = "Allowed" if allow else "Refused"
    text = f"{how} {_named(question)}{', from now on' if always else ''}."
    return f"{text} {left} more to answer." if left else text


def _named(question: question_pb2.Question) -> str:
    return f"#{question.number} {shorten(question.title, _TITLE)}"
