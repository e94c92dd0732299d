"""Questions in words: what is asked, how to answer, and what a typed answer means. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from conveyor.common.v1 import question_pb2 as question_pb
from svckit.contract_words import answering_commands
from svckit.words import joined

# Ids of the suite's own questions. A harness may name its options as it likes: `1`, `opt-2`.
_SPEAK = frozenset({"allow", "allow-always", "deny", "deny-always"})
_STATES = {
    question_pb.QUESTION_STATE_OPEN: "open",
    question_pb.QUESTION_STATE_ANSWERED: "answered",
    question_pb.QUESTION_STATE_EXPIRED: "expired",
    question_pb.QUESTION_STATE_CANCELLED: "cancelled",
}


def state_word(state: question_pb.QuestionState.ValueType) -> str:
    """Return the word for a state of a question."""
    return _STATES.get(state, "unknown")


def options_line(question: question_pb.Question) -> str:
    """Return what to type for each option; with its name where the word alone does not tell."""
    return ", ".join(
        option.option_id if option.option_id in _SPEAK else f"{option.option_id} ({option.name})"
        for option in question.options
    )


def ways(question: question_pb.Question, *, commands: bool, typed: bool = False) -> str:
    """Return how to answer: with slash commands in a chat, else with the command line.

    `typed`: whoever reads this is asked right there.
    """
    if typed:
        numbered = (f"{n} {option.name}" for n, option in enumerate(question.options, 1))
        return f"type {' · '.join(numbered)}"
    if commands:
        texts = answering_commands(question)
        if texts:
            return joined(texts, "or")
    options = "|".join(option.option_id for option in question.options)
    return f"conveyor questions answer {question.question_id} {options}"


def typed_option(question: question_pb.Question, typed: str) -> str | None:
    """Return the id of the option that was typed: by its place, its id or its name."""
    chosen = choose_option(question, typed)
    if any(option.option_id == chosen for option in question.options):
        return chosen
    if typed.isdecimal() and 1 <= int(typed) <= len(question.options):
        return question.options[int(typed) - 1].option_id
    return None


def option_name(question: question_pb.Question, option_id: str) -> str:
    """Return the name of an option; `rejected` when none was taken."""
    for option in question.options:
        if option.option_id == option_id:
            return option.name
    return option_id or "rejected"


def choose_question(
    questions: Sequence[question_pb.Question], typed: str
) -> question_pb.Question | str:
    """Return the question that was typed, by its id or its number, or what is wrong with it."""
    for question in questions:
        if question.question_id == typed:
            return question
    numbered = [question for question in questions if str(question.number) == typed]
    if len(numbered) == 1:
        return numbered[0]
    if numbered:
        sessions = ", ".join(sorted({question.root_session_key for question in numbered}))
        return (
            f"{len(numbered)} questions have the number {typed}; add --session, one of {sessions}"
        )
    return f"no open question is {typed!r}; `conveyor questions` lists them"


def choose_option(question: question_pb.Question, typed: str) -> str:
    """Return the id of the option that was typed: by its id or its name, else as it was typed."""
    for option in question.options:
        if option.option_id == typed:
            return typed
    for option in question.options:
        if option.name.casefold() == typed.casefold():
            return option.option_id
    return typed
