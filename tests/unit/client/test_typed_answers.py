"""Answers typed at a terminal while a harness works."""

from __future__ import annotations

import asyncio
from typing import cast

from conveyor.common.v1 import question_pb2 as question_pb
from conveyor.events.v1 import event_pb2 as event_pb
from conveyor_client import ConveyorClient
from conveyor_client.cli.following import Typed
from conveyor_client.cli.narrate import Utterance
from conveyor_client.cli.printer import Printer
from svckit.errors import QuestionClosed, ServiceError, Unreachable


class Suite:
    """Refuses answers with what is left of `refusals`, and keeps the others."""

    def __init__(self, *refusals: ServiceError) -> None:
        self.refusals = list(refusals)
        self.answered: list[tuple[str, str]] = []
        self.shown: list[str] = []

    async def answer(self, question_id: str, option_id: str) -> None:
        if self.refusals:
            raise self.refusals.pop(0)
        self.answered.append((question_id, option_id))

    def show(self, utterance: Utterance) -> None:
        self.shown.append(utterance.text)


async def typed(suite: Suite, *lines: str, questions: int = 1) -> None:
    answers = Typed(cast("ConveyorClient", suite), cast("Printer", suite))
    for number in range(1, questions + 1):
        question = question_pb.Question(question_id=f"q{number}", number=number)
        question.options.add(option_id="yes", name="Yes")
        asked = event_pb.QuestionAsked(question=question)
        answers.note(event_pb.Event(question_asked=asked))
    queue: asyncio.Queue[str | None] = asyncio.Queue()
    for line in (*lines, None):
        queue.put_nowait(line)
    await answers.answer(queue)


async def test_an_answer_that_did_not_arrive_can_be_typed_again() -> None:
    suite = Suite(Unreachable("the gateway does not answer"))
    await typed(suite, "1", "1")
    assert suite.answered == [("q1", "yes")]
    assert suite.shown == ["the gateway does not answer"]


async def test_a_question_that_is_closed_is_not_asked_again() -> None:
    suite = Suite(QuestionClosed("somebody else has answered"))
    await typed(suite, "1", "1", questions=2)
    assert suite.answered == [("q2", "yes")]
