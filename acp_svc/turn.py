"""What happens to a run on queue `acp`: a session is opened, or prompted once.

The order of things is what keeps promises. What is hopeless is refused before any process starts. A
prompt is marked as sent before it is sent, and its end is stored before the scheduler is told, so a
lease that comes again finds out what must not be done twice. People are asked with the lease kept
and the slot given back. And whatever ends a turn early, the harness is told, or else stopped, while
the session is still in our hands.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError
from opentelemetry import trace

from acp_svc import endings
from acp_svc.convert import error_of
from acp_svc.counts import Counts
from acp_svc.domain import preflight
from acp_svc.domain.catalog import Catalog
from acp_svc.domain.permissions import PermissionMode
from acp_svc.domain.session import Mode, Opening, Session, State
from acp_svc.domain.updates import closing_words
from acp_svc.driving import Driver, Work
from acp_svc.following import Follower
from acp_svc.harness.types import Cause, Ended, PromptFailed
from acp_svc.opening import deadlines_of
from acp_svc.prompting import blocks_of
from acp_svc.sessions import Full, Live, Sent, Sessions
from acp_svc.spans import PromptSpans, opening
from conveyor.acp.v1 import task_pb2
from conveyor.scheduler.v1 import run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as sched
from conveyor.scheduler.v1 import worker_service_pb2 as ws
from svckit import conventions as c
from svckit.clock import Clock
from svckit.errors import (
    PASSING,
    AcpDisabled,
    AcpLimitReached,
    AcpSessionInitFailed,
    AcpSessionNotFound,
    BudgetExceeded,
    Internal,
    LeaseLost,
    RunCancelled,
    RunNotFound,
    ServiceError,
    invalid_field,
)
from svckit.eventwriter import EventWriter
from svckit.grpc import client
from svckit.logging import get_logger
from svckit.settings_model import AcpSettings
from svckit.turn import Complete, Fail, LeasedTurn, Outcome, Release, Suspend
from svckit.usage import UsageReporter

if TYPE_CHECKING:
    from conveyor.events.v1.event_log_service_pb2_grpc import EventLogServiceAsyncStub
    from conveyor.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceAsyncStub

_log = get_logger("acp.turn")


class TurnRunner:
    """The handler of queue `acp`."""

    def __init__(
        self,
        *,
        sessions: Sessions,
        catalog: Catalog,
        settings: AcpSettings,
        scheduler: SchedulerServiceAsyncStub,
        event_log: EventLogServiceAsyncStub,
        usage: UsageReporter,
        clock: Clock,
        tracer: trace.Tracer,
        counts: Counts | None = None,
        capture_content: bool = False,
    ) -> None:
        self._sessions = sessions
        self._catalog = catalog
        self._settings = settings
        self._scheduler = scheduler
        self._event_log = event_log
        self._counts = counts or Counts()
        self._driver = Driver(sessions, usage, self._counts)
        self._clock = clock
        self._tracer = tracer
        self._capture = capture_content

    async def __call__(self, turn: LeasedTurn) -> Outcome:
        """Work on one attempt until its turn ends."""
        try:
            return await self._run(turn)
        except LeaseLost:
            raise
        except (*PASSING, Internal):
            raise  # not of the harness: the same may do in a moment
        except ServiceError as err:
            _log.warning("turn refused", reason=err.reason, problem=err.message)
            return Fail(err, retryable=False)

    async def _run(self, turn: LeasedTurn) -> Outcome:
        task = _task_of(turn.run)
        if not self._settings.enabled:
            raise AcpDisabled(preflight.DISABLED.message)
        sent = await self._sessions.was_sent(turn.run.run_id)
        if sent is not None and not (sent.ended and sent.outcome):
            return await self._cut_off(turn, sent)
        if sent is not None and endings.kept_turn(sent.outcome) >= turn.turn:
            # Its end never reached the scheduler.
            return endings.again(sent.outcome)
        session = await self._session_of(turn, task)
        try:
            return await self._work(turn, task, session, sent)
        except asyncio.CancelledError:
            if turn.cancelled.is_set() and not session.worked and _is_for(task, session):
                self._sessions.give_up(session.session_id)
            raise

    async def _work(
        self, turn: LeasedTurn, task: task_pb2.AcpTask, session: Session, sent: Sent | None
    ) -> Outcome:
        await self._check_people(turn.run, session)
        try:
            with opening(self._tracer, session):
                live = await self._sessions.open(session.session_id)
        except Full as full:
            return self._no_room(full)
        async with self._sessions.busy(live, turn.run.run_id) as live:
            if task.open_only:
                return self._ready(turn, live)
            said = turn.run.inputs if sent is None else turn.new_steered()
            return await self._prompt(turn, live, said)

    # Before the prompt

    async def _session_of(self, turn: LeasedTurn, task: task_pb2.AcpTask) -> Session:
        """Find the session, or make it: then the run's id is what tells it from another."""
        run = turn.run
        if task.WhichOneof("target") == "acp_session_id":
            session = await self._sessions.find(task.acp_session_id)
        else:
            spec = task.new_session
            spec.session_key = run.spec.session_key
            spec.customer_key = run.spec.customer_key
            spec.parent_session_key = spec.parent_session_key or run.spawn.parent_session_key
            session = await self._sessions.create(spec, request_id=run.run_id)
        if session.state is State.FAILED and session.trouble is not None:
            raise error_of(session.trouble)
        if not session.state.open:
            raise AcpSessionNotFound(
                "the ACP session is closed", metadata={"acpSessionId": session.session_id}
            )
        return session

    async def _check_people(self, run: run_pb2.Run, session: Session) -> None:
        """Where people may be asked, somebody must be there to see it."""
        if session.spec.permission_mode is not PermissionMode.ASK:
            return
        if await self._is_heard(run):
            return
        error = AcpSessionInitFailed(
            endings.nobody_to_ask(session),
            metadata={"harnessId": session.spec.harness_id, "cause": "permission_mode"},
        )
        if session.state is State.STARTING:
            await self._sessions.refused(session.session_id, error)
        raise error

    async def _is_heard(self, run: run_pb2.Run) -> bool:
        """Whether questions of the run reach anybody: the root's replies go somewhere."""
        root = run
        if run.spawn.depth > 0:
            request = sched.GetRunRequest(run_id=run.spawn.flow_id)
            try:
                answer = await client.call(self._scheduler.GetRun(request), service="scheduler")
            except RunNotFound:
                return False
            root = answer.run
        return bool(root.spec.reply_route.address)

    def _no_room(self, full: Full) -> Outcome:
        if self._settings.when_full == "reject":
            return Fail(AcpLimitReached(full.message, metadata=full.metadata), retryable=False)
        wait = run_pb2.LimitWait(name="acp.max_sessions")
        wait.retry_after.FromMilliseconds(round((full.retry_after or 3.0) * 1000))
        condition = run_pb2.WaitCondition(limit=wait)
        return Suspend(ws.SuspendRunRequest(condition=condition, hold_session_lane=True))

    def _ready(self, turn: LeasedTurn, live: Live) -> Complete:
        text = endings.ready_words(self._name_of(live.session), live.session)
        return endings.replied(
            live.session,
            f"{turn.run.run_id}-{turn.turn}",
            text,
            stop_reason="",
            rejected=0,
            reopened=live.reopened,
            next_prompts=False,
            taken=(),
        )

    def _name_of(self, session: Session) -> str:
        harness = self._catalog.harnesses.get(session.spec.harness_id)
        return harness.display_name if harness else session.spec.harness_id

    # After an interruption

    async def _cut_off(self, turn: LeasedTurn, sent: Sent) -> Outcome:
        """The prompt of this run was sent, and nobody saw its end: it is not sent again."""
        session = await self._sessions.find(sent.session_id)
        reopened, alive = await self._reopen(session, turn.run.run_id)
        error = endings.cut_off(session, self._name_of(session), reopened, alive)
        return await self._ended(turn, session, sent.key, Fail(error, retryable=False))

    async def _reopen(self, session: Session, run_id: str) -> tuple[Opening | None, bool]:
        """Open a session again; returns how, and whether its process is there."""
        if not session.state.open or session.spec.mode is Mode.ONESHOT:
            return None, False
        try:
            live = await self._sessions.open(session.session_id)
            async with self._sessions.busy(live, run_id) as live:
                return live.reopened, True
        except PASSING:
            raise
        except ServiceError as err:
            _log.warning("session not opened again", reason=err.reason, problem=err.message)
            return None, False

    async def _ended(
        self, turn: LeasedTurn, session: Session, key: str, outcome: Complete | Fail
    ) -> Outcome:
        """Store how a prompt ended, before anybody is told."""
        await self._sessions.ended(turn.run.run_id, key, endings.keep(turn.turn, outcome))
        if isinstance(outcome, Fail) and isinstance(outcome.error, ServiceError):
            await self._sessions.troubled(session.session_id, outcome.error)
        return outcome

    # The prompt

    async def _prompt(
        self, turn: LeasedTurn, live: Live, said: Sequence[run_pb2.RunInput]
    ) -> Outcome:
        session, run_id = live.session, turn.run.run_id
        taken = [item.request_id for item in said] if turn.run.inputs is not said else []
        blocks = blocks_of(said)
        if not blocks:
            return Complete(None, taken=taken, steered_is_next_prompt=True)
        first_turn = turn.turn
        writer = EventWriter(
            self._event_log, lambda: turn.lease_id, f"{run_id}-{first_turn}", self._clock
        )
        key = f"turn-{first_turn}"
        async with writer:
            with PromptSpans(self._tracer, turn, session, capture=self._capture) as spans:
                spans.asked(said)
                if taken:
                    spans.steered(said)
                follower = Follower(
                    session,
                    run_id,
                    first_turn,
                    writer,
                    self._driver.meter_of(live),
                    spans,
                    self._counts,
                )
                work = Work(turn, first_turn, self._name_of(session), live, follower)
                limits = deadlines_of(self._settings, session.spec.turn_timeout_seconds)
                await self._sessions.mark_sent(session.session_id, run_id, key)
                try:
                    ended = await self._driver.follow(
                        work, live.connection.prompt(blocks, follower, limits)
                    )
                except BudgetExceeded as over:
                    outcome: Complete | Fail = Fail(over, retryable=False, taken=taken)
                except asyncio.CancelledError:
                    if not turn.cancelled.is_set():
                        raise
                    message = turn.cancel_reason or "the run was cancelled"
                    why = RunCancelled(message, metadata={"cause": "request"})
                    cancelled = Fail(why, retryable=False, taken=taken)
                    spans.ended(cancelled)
                    return cancelled
                except PromptFailed as failure:
                    spans.note({c.CAUSE: failure.cause.value})
                    outcome = await self._failed(work, failure, taken)
                else:
                    spans.stopped(ended.stop_reason)
                    outcome = await self._done(work, ended, taken)
                spans.ended(outcome)
        ending = await self._ended(turn, session, key, outcome)
        # Under a kept lease no run completes. The next lease of this turn tells what was stored.
        if work.gave_up_waiting and isinstance(outcome, Complete):
            return Release("nobody has to answer any more")
        return ending

    # Its end

    async def _done(self, work: Work, ended: Ended, taken: Sequence[str]) -> Complete | Fail:
        follower, session = work.follower, work.session
        said = await follower.end()
        await self._driver.settle(work, ended)
        if work.over_budget is not None:
            await follower.keep(said)
            return Fail(work.over_budget, retryable=False, taken=taken)
        text = closing_words(work.name, ended.stop_reason, said, follower.rejected)
        more = work.turn.steered_waits
        if ended.stop_reason == "cancelled" and follower.rejected:
            # Nobody here cancelled it: some harnesses end the turn when they are told no.
            return Fail(endings.denied(session, text), retryable=False, taken=taken)
        if more and session.spec.mode is Mode.ONESHOT:
            await self._sessions.prompted_again(session.session_id)
        return endings.replied(
            session,
            work.message_id,
            text,
            stop_reason=ended.stop_reason,
            rejected=len(follower.rejected),
            reopened=work.live.reopened,
            next_prompts=more or session.spec.mode is not Mode.ONESHOT,
            taken=taken,
        )

    async def _failed(self, work: Work, failure: PromptFailed, taken: Sequence[str]) -> Fail:
        session = work.session
        await work.follower.break_off()
        if not work.live.connection.alive:
            await work.live.connection.stop()
        if failure.cause is not Cause.CRASHED:
            return Fail(endings.failed(session, failure), retryable=False, taken=taken)
        reopened = None
        if session.spec.mode is not Mode.ONESHOT:
            reopened = await self._reopened_within(session)
        error = endings.crashed(session, failure, reopened)
        return Fail(error, retryable=False, taken=taken)

    async def _reopened_within(self, session: Session) -> Opening | None:
        """Start another process for a session that is in our hands."""
        try:
            return (await self._sessions.open(session.session_id)).reopened
        except ServiceError as err:
            _log.warning("session not opened again", reason=err.reason, problem=err.message)
            return None


def _is_for(task: task_pb2.AcpTask, session: Session) -> bool:
    """Whether a session that was never open is there for this run alone."""
    return task.WhichOneof("target") == "new_session" or (
        task.open_only and session.opening is None
    )


def _task_of(run: run_pb2.Run) -> task_pb2.AcpTask:
    task = task_pb2.AcpTask()
    try:
        unpacked = run.spec.task.Unpack(task)
    except DecodeError:
        unpacked = False
    if not unpacked:
        raise invalid_field("spec.task", "must be a conveyor.acp.v1.AcpTask")
    if task.WhichOneof("target") is None:
        raise invalid_field("spec.task.target", "is required")
    return task
