"""Follows one prompt: what the harness tells, what it asks for, what it uses.

The harness's side calls `updated` and `permission` whenever it likes; nothing here waits for the
event log. What they leave behind is written by the turn, with `write`, in the order it came.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from acp import schema

from acp_svc import reading
from acp_svc.counts import Counts
from acp_svc.domain import permissions as p
from acp_svc.domain.metering import Meter, Spent
from acp_svc.domain.session import Session
from acp_svc.domain.toolcalls import Patch, ToolCall
from acp_svc.domain.updates import Story
from acp_svc.harness.types import PermissionRequest, Update
from acp_svc.spans import PromptSpans
from acp_svc.turnevents import Events
from conveyor.common.v1 import question_pb2
from conveyor.events.v1 import event_pb2
from svckit.eventwriter import EventWriter

MOST_OPEN = 32
"""Questions that a run may have open at a time."""
MOST_REQUESTS = 2000
"""Permissions that one prompt may ask for. Each is decided and told; a harness that asks for more
goes round in circles."""


@dataclass(eq=False)
class Asked:
    """A question that waits for people."""

    question: p.Question
    call: ToolCall
    answer: asyncio.Future[question_pb2.Answer]
    stored: bool = False
    """Whether the event log has it, so that a run may wait for it."""


class Follower:
    """The listener of one prompt.

    `news` is set when there is something to write, or people are to be asked.
    """

    def __init__(
        self,
        session: Session,
        run_id: str,
        turn: int,
        writer: EventWriter,
        meter: Meter,
        spans: PromptSpans,
        counts: Counts | None = None,
    ) -> None:
        self._session = session
        self._run_id = run_id
        self._turn = turn
        self._writer = writer
        self._meter = meter
        self._counts = counts or Counts()
        self.spans = spans
        self._events = Events(run_id, turn, session.session_id)
        self._story = Story()
        self._remembered = dict(session.remembered)
        # Text to show; None where a message is complete and another begins.
        self._live: list[str | None] = []
        self._due: list[event_pb2.Event] = []
        self._number = self._requests = 0
        self._places = asyncio.Semaphore(MOST_OPEN)
        self.open: dict[str, Asked] = {}
        self.news = asyncio.Event()
        self.rejected: list[str] = []
        """Titles of what was not allowed."""
        self.remember: dict[str, bool] = {}
        """What people said for the rest of the session."""
        self.spent: list[Spent] = []
        """What was used, to be reported."""

    # What the harness calls

    def updated(self, update: Update) -> None:
        """Take an update in."""
        if isinstance(update, schema.UsageUpdate):
            if (spent := self._meter.told(*reading.usage(update))) is not None:
                self.spent.append(spent)
                self.news.set()
            return
        told = reading.update(update, self._session.spec.cwd)
        if told is None:
            return
        text, complete = self._story.take(told)
        if isinstance(told, Patch):
            self.spans.saw(self._story.call(Patch(told.call_id)))
        if complete:
            self._live.append(None)
        if text:
            self._live.append(text)
        self.news.set()

    async def permission(self, request: PermissionRequest) -> str | None:
        """Decide by rule, or have people asked. Nothing more once it asked too often."""
        self._requests += 1
        if self.runaway:
            self.news.set()
            return None
        patch = reading.patch(request.tool_call, self._session.spec.cwd)
        self._story.take(patch)
        call = self._story.call(patch)
        options = reading.options(request.options)
        decision = p.decide(self._session.spec.permission_mode, call, options, self._remembered)
        if decision is None:
            async with self._places:
                decision = await self._ask(call, options)
        else:
            self.spans.decided(call, decision)
        self._decided(call, decision)
        return decision.option.option_id if decision.option else None

    async def _ask(self, call: ToolCall, options: tuple[p.Option, ...]) -> p.Decision:
        self._number += 1
        question_id = f"{self._run_id}/{self._turn}.{self._number}"
        asked = Asked(p.question(call, options), call, asyncio.get_running_loop().create_future())
        timeout = self._session.spec.ask_timeout_seconds
        question = self._events.question(question_id, asked.question, timeout)
        self._gather()
        self._due.append(self._events.asked(question))
        self.open[question_id] = asked
        self.news.set()
        span = self.spans.asks(call)
        decision = p.CANCELLED
        began = time.monotonic()
        self._counts.asking()
        try:
            answer = await asked.answer
            decision = p.answered(asked.question, answer.option_id, answer.responder)
            if (said := p.to_remember(asked.question, answer.option_id, call)) is not None:
                self._remembered.update([said])
                self.remember.update([said])
            return decision
        except asyncio.CancelledError:
            self._decided(call, decision)
            raise
        finally:
            self._counts.answered(decision, time.monotonic() - began)
            self.spans.answered(span, decision)
            del self.open[question_id]

    def _decided(self, call: ToolCall, decision: p.Decision) -> None:
        self._counts.decided(decision)
        if not decision.allowed:
            self.rejected.append(call.shown_title)
        self._gather()
        self._due.append(self._events.decided(call, decision))
        self.news.set()

    # What the turn calls

    def answer(self, answers: Iterable[question_pb2.Answer]) -> None:
        """Hand over what became of questions."""
        for answer in answers:
            asked = self.open.get(answer.question_id)
            if asked is not None and not asked.answer.done():
                asked.answer.set_result(answer)

    @property
    def runaway(self) -> bool:
        """Whether it asked for so many permissions that it never will be done."""
        return self._requests > MOST_REQUESTS

    @property
    def waiting(self) -> Mapping[str, Asked]:
        """Questions that were written and have no answer, by id."""
        return {
            key: asked
            for key, asked in self.open.items()
            if asked.stored and not asked.answer.done()
        }

    async def write(self) -> None:
        """Write what came since. Raises `LeaseLost`."""
        self.news.clear()
        live, self._live = self._live, []
        for piece in live:
            if piece is None:
                await self._writer.new_message()
            else:
                self._writer.text(piece)
        self._gather()
        due = list(self._due)
        await self._writer.write(*due)
        # Only what was written: more may have come meanwhile, and a call cut off is repeated.
        del self._due[: len(due)]
        for event in due:
            asked = self.open.get(event.question_asked.question.question_id)
            if asked is not None:
                asked.stored = True

    async def end(self) -> str:
        """The prompt ended: write what is left, and return the reply. Raises `LeaseLost`."""
        reply = self._story.end()
        self.spans.tools_over()
        await self.write()
        await self._writer.flush()
        return reply

    async def break_off(self) -> None:
        """It did not end well: write what is left, and what was said. Raises `LeaseLost`."""
        said = self._story.unfinished
        self._story.end()
        self.spans.tools_over()
        self._gather()
        if said.strip():
            self._due.append(self._events.said(said))
        await self.write()

    async def keep(self, text: str) -> None:
        """Write what would have been the reply of a turn that fails. Raises `LeaseLost`."""
        if text.strip():
            self._due.append(self._events.said(text))
        await self.write()

    def _gather(self) -> None:
        self._due += [self._events.told(told) for told in self._story.due()]
