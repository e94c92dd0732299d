"""How a question is put to people in a chat, and what they are told when nobody answered."""

from __future__ import annotations

from conveyor.common.v1 import question_pb2
from conveyor.events.v1 import event_pb2
from svckit.contract_words import answering_commands, asked_for
from svckit.words import joined, shorten, time_limit

# Payloads about questions. They reach the conversation whichever run of its trees they are about.
PAYLOADS = ("question_asked", "question_closed")
_NAME = 40


def asked_text(question: question_pb2.Question) -> str:
    """Return what a chat says about a question: what is asked, the options, how to answer."""
    names = " · ".join(shorten(option.name, _NAME) for option in question.options)
    lines = [f"Question {question.number}: {question.title}"]
    if shown := asked_for(question):
        # What it says itself cannot end the block.
        lines += ["```", *(line.replace("```", "ʼʼʼ") for line in shown), "```"]
    lines.append(names)
    ways = answering_commands(question)
    time = time_limit(question.timeout.ToMicroseconds() / 1e6)
    if ways:
        lines.append(f"Answer within {time}: {joined(ways, 'or')}")
    lines.append(f"No answer in time means: {default_name(question)}")
    return "\n".join(lines)


def expired_text(closed: event_pb2.QuestionClosed) -> str:
    """Return what a chat says about a question that nobody answered in time."""
    taken = closed.option_name or "rejected"
    return f"Question {closed.number} ({closed.title}): nobody answered in time. Taken: {taken}"


def default_name(question: question_pb2.Question) -> str:
    """Return what is taken when nobody answers."""
    for option in question.options:
        if option.option_id == question.default_option_id:
            return shorten(option.name, _NAME)
    return "rejected"
