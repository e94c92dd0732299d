"""Drives one prompt to its end: what comes is written and counted, people are asked, and whatever
ends it early, the harness is told to stop, or else is stopped, before anybody goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from opentelemetry import trace

from acp_svc import reading
from acp_svc.counts import PROVIDER, Counts
from acp_svc.domain.metering import Meter, Spent, together
from acp_svc.domain.session import Session
from acp_svc.following import MOST_REQUESTS, Follower
from acp_svc.harness.connection import Connection
from acp_svc.harness.types import Cause, Ended, PromptFailed
from acp_svc.sessions import Live, Sessions
from conveyor.common.v1 import usage_pb2
from conveyor.scheduler.v1 import run_pb2
from conveyor.scheduler.v1 import worker_service_pb2 as ws
from svckit.errors import BudgetExceeded, ServiceError
from svckit.logging import get_logger
from svckit.turn import LeasedTurn
from svckit.usage import UsageReporter

WRITE_SECONDS = 0.15
"""How long what a harness tells is gathered before it is written."""
LAST_WRITE_SECONDS = 3.0
"""How long a turn that broke off tries to write what was left."""

_log = get_logger("acp.driving")


@dataclass(eq=False)
class Work:
    """One prompt, while it is at work."""

    turn: LeasedTurn
    first_turn: int
    name: str
    live: Live
    follower: Follower
    reports: list[asyncio.Task[None]] = field(default_factory=list)
    gave_up_waiting: bool = False
    """Set when the prompt ended while its run waited for people: what the run waits for is still
    theirs to answer, and it cannot end with a reply before somebody has given it back."""
    over_budget: ServiceError | None = None
    """Set when a report said that a budget is used up."""

    @property
    def run_id(self) -> str:
        """The run."""
        return self.turn.run.run_id

    @property
    def session(self) -> Session:
        """The session, as last stored."""
        return self.live.session

    @property
    def message_id(self) -> str:
        """Of the reply, and of the pieces that were shown before it was whole."""
        return f"{self.run_id}-{self.first_turn}"


class Driver:
    """Drives prompts. Keeps the meter of each process for as long as that lives."""

    def __init__(
        self, sessions: Sessions, usage: UsageReporter, counts: Counts | None = None
    ) -> None:
        self._sessions = sessions
        self._usage = usage
        self._counts = counts or Counts()
        self._meters: WeakKeyDictionary[Connection, Meter] = WeakKeyDictionary()

    def meter_of(self, live: Live) -> Meter:
        """Return the meter of a session's process, for a prompt that begins now."""
        meter = self._meters.get(live.connection)
        if meter is None:
            fresh = live.connection.opened.how == "new"
            meter = self._meters[live.connection] = Meter(fresh=fresh)
        meter.begin()
        return meter

    async def follow(self, work: Work, prompt: Coroutine[Any, Any, Ended]) -> Ended:
        """Write what comes until the prompt ends. Raises `PromptFailed`, `BudgetExceeded`.

        However this is left, the harness works on nothing any more.
        """
        began, outcome = time.monotonic(), "stopped"
        try:
            ended = await self._follow(work, prompt)
            outcome = ended.stop_reason
            return ended
        except PromptFailed as failure:
            outcome = failure.cause.value
            raise
        except BudgetExceeded:
            outcome = "budget"
            raise
        finally:
            seconds = time.monotonic() - began
            self._counts.prompted(work.session.spec.harness_id, outcome, seconds)

    async def _follow(self, work: Work, prompt: Coroutine[Any, Any, Ended]) -> Ended:
        follower = work.follower
        prompting = asyncio.create_task(prompt, name="prompt")
        try:
            while not prompting.done():
                await self._note(work)
                if work.over_budget is not None:
                    raise work.over_budget
                if follower.runaway:
                    why = f"{work.name} asked for more than {MOST_REQUESTS} permissions in one turn"
                    raise PromptFailed(Cause.PROTOCOL, why)
                if follower.waiting:
                    await self._wait_for_people(work, prompting)
                elif not prompting.done():
                    await _first(prompting, seconds=WRITE_SECONDS)
                    await _first(prompting, follower.news)
        except BaseException:
            # In a task of its own: a second cancellation must not leave it half done.
            await asyncio.shield(asyncio.create_task(self._break_off(work, prompting)))
            raise
        return await prompting

    async def _note(self, work: Work) -> None:
        """Write and report what came since."""
        follower = work.follower
        await follower.write()
        spent, follower.spent = follower.spent, []
        if spent:
            self._report(work, together(spent))
        if follower.remember:
            said, follower.remember = follower.remember, {}
            await self._sessions.remember(work.session.session_id, said)

    async def _wait_for_people(self, work: Work, prompting: asyncio.Task[Ended]) -> None:
        """Give the slot back until somebody answers, and hand the answers over.

        What the harness tells meanwhile is written on. When it ends meanwhile, so does the waiting:
        its questions went with it.
        """
        follower, turn = work.follower, work.turn
        wait = run_pb2.ApprovalWait(question_ids=list(follower.waiting))
        condition = run_pb2.WaitCondition(approval=wait)
        request = ws.SuspendRunRequest(condition=condition, hold_session_lane=True)
        asked = len(follower.waiting)
        await self._sessions.asking(work.live, asked)
        follower.spans.waits("approval")
        waiting = asyncio.create_task(_kept(turn, request), name="wait for people")
        try:
            while not waiting.done():
                if prompting.done():
                    work.gave_up_waiting = waiting.cancel()
                    return
                await _first(waiting, follower.news, prompting)
                await self._note(work)
                if len(follower.waiting) != asked:
                    asked = len(follower.waiting)
                    await self._sessions.asking(work.live, asked)
                if not waiting.done():
                    await _first(waiting, seconds=WRITE_SECONDS)
            follower.spans.next_turn(await waiting)
        finally:
            waiting.cancel()
            await asyncio.wait([waiting])
            if not waiting.cancelled():
                waiting.exception()  # told above, or the turn ends for another reason
        follower.answer(turn.leased.resumption.answers)
        await self._sessions.asking(work.live, len(follower.waiting))

    async def _break_off(self, work: Work, prompting: asyncio.Task[Ended]) -> None:
        """Have the harness stop, or stop it."""
        connection = work.live.connection
        try:
            if not await connection.cancel():
                _log.warning("the harness did not stop when told", session=work.session.session_id)
                await connection.stop()
        finally:
            prompting.cancel()
            await asyncio.wait([prompting])
            if not prompting.cancelled():
                prompting.exception()  # whatever it was, nobody waits for it
        with suppress(ServiceError, TimeoutError):
            async with asyncio.timeout(LAST_WRITE_SECONDS):
                await work.follower.break_off()

    async def settle(self, work: Work, ended: Ended) -> None:
        """Report what the end of a prompt says on top, and wait for what became of all reports."""
        await self._note(work)
        meter = self._meters.get(work.live.connection)
        rest = meter.ended(reading.totals(ended.usage)) if meter is not None else None
        if rest is not None:
            self._report(work, rest)
        if work.reports:
            await asyncio.wait(work.reports)

    def _report(self, work: Work, spent: Spent) -> None:
        self._counts.spent(work.session.spec.harness_id, spent)
        number = len(work.reports)
        work.follower.spans.used(spent)
        work.reports.append(asyncio.create_task(self._reported(work, spent, number)))

    async def _reported(self, work: Work, spent: Spent, number: int) -> None:
        usage = usage_pb2.Usage(
            # One prompt counts as one call: how many it made a harness does not say.
            model_calls=1 if number == 0 else 0,
            input_tokens=spent.read,
            cached_input_tokens=spent.cached,
            output_tokens=spent.written,
            cost_micros_usd=spent.cost_micros,
            unpriced_calls=0 if spent.priced else 1,
        )
        try:
            await self._usage.answered(
                f"{work.message_id}/used-{number}",
                work.run_id,
                PROVIDER,
                work.session.spec.harness_id,
                usage,
            )
        except ServiceError as over:
            work.over_budget = over
            work.follower.news.set()


async def _kept(turn: LeasedTurn, request: ws.SuspendRunRequest) -> trace.Span:
    """Wait with the lease kept; returns the span of the turn that follows."""
    await turn.wait_kept(request)
    return trace.get_current_span()


async def _first(*awaited: asyncio.Task[Any] | asyncio.Event, seconds: float | None = None) -> None:
    """Wait until one of them is done or set, or the time is over."""
    tasks = [
        each if isinstance(each, asyncio.Task) else asyncio.create_task(each.wait())
        for each in awaited
    ]
    own = [task for task, each in zip(tasks, awaited, strict=True) if task is not each]
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in own:
            task.cancel()
        if own:
            await asyncio.wait(own)
