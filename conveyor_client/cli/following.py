"""Follows the work of a harness at a terminal, and answers there what it asks."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing

from conveyor.common.v1 import question_pb2 as question_pb
from conveyor.events.v1 import event_pb2 as event_pb
from conveyor.gateway.v1 import gateway_service_pb2 as gateway_pb
from conveyor.scheduler.v1 import run_pb2 as run_pb
from conveyor_client.cli import asking
from conveyor_client.cli.narrate import Narrator, Utterance, Voice
from conveyor_client.cli.output import print_json_line
from conveyor_client.cli.printer import Printer, printer
from conveyor_client.cli.reading import read_lines
from conveyor_client.client import ConveyorClient
from svckit.errors import QuestionClosed, QuestionNotFound, ServiceError


async def follow_work(
    client: ConveyorClient, stream: AsyncGenerator[gateway_pb.ChatResponse, None], *, json: bool
) -> bool:
    """Show a run until it ended; True when it succeeded. At a terminal questions are answered."""
    shown = printer()
    interactive = not json and sys.stdin.isatty() and sys.stdout.isatty()
    typed = Typed(client, shown) if interactive else None
    narrator = Narrator(live=sys.stdout.isatty(), work=True, typed=interactive)
    typing = asyncio.create_task(typed.answer(read_lines())) if typed else None
    try:
        return await show_until_ended(stream, narrator, shown, typed, json=json)
    finally:
        if typing is not None:
            typing.cancel()
            await asyncio.gather(typing, return_exceptions=True)


async def show_until_ended(
    stream: AsyncGenerator[gateway_pb.ChatResponse, None],
    narrator: Narrator,
    shown: Printer,
    typed: Typed | None = None,
    *,
    json: bool,
) -> bool:
    """Show a run until it ended, as JSON lines or in words; True when it succeeded."""
    succeeded = False
    async with aclosing(stream):
        async for item in stream:
            if item.HasField("ended"):
                succeeded = item.ended.state == run_pb.RUN_STATE_SUCCEEDED
            if json:
                print_json_line(item)
                continue
            for utterance in narrator.tell(item):
                shown.show(utterance)
            if typed is not None and item.HasField("event"):
                typed.note(item.event)
    return succeeded


class Typed:
    """Answers questions with what somebody types, the oldest first."""

    def __init__(self, client: ConveyorClient, shown: Printer) -> None:
        self._client = client
        self._shown = shown
        self._open: dict[str, question_pb.Question] = {}

    def note(self, event: event_pb.Event) -> None:
        """Learn from an event which questions are open."""
        if event.HasField("question_asked"):
            question = event.question_asked.question
            self._open[question.question_id] = question
        elif event.HasField("question_closed"):
            self._open.pop(event.question_closed.answer.question_id, None)

    async def answer(self, lines: asyncio.Queue[str | None]) -> None:
        """Take lines until there are no more."""
        while (line := await lines.get()) is not None:
            if not line.strip():
                continue
            question = next(iter(self._open.values()), None)
            if question is None:
                self._say("nothing is asked; the harness works on")
                continue
            option_id = asking.typed_option(question, line.strip())
            if option_id is None:
                self._say(f"that is no answer to question {question.number}: type a number")
                continue
            try:
                await self._client.answer(question.question_id, option_id)
            except (QuestionClosed, QuestionNotFound) as error:
                self._say(error.message)
            except ServiceError as error:
                self._say(error.message)
                continue  # it is open still, and may be answered again
            self._open.pop(question.question_id, None)

    def _say(self, text: str) -> None:
        self._shown.show(Utterance(Voice.BAD, text))
