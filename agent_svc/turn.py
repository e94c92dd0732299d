"""The turn loop: ask what comes next, do it, store it, ask again.

Every outcome is a stored step before anything builds on it, so an attempt that takes over after a
crash goes on where the last one stopped. What was in flight at the crash is repeated: a model call,
or a tool that is safe to repeat; of any other tool the model is told that it was interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from opentelemetry import trace

from agent_svc import convert
from agent_svc.agents import Agent, Agents
from agent_svc.calling import Answer, Bill, Caller, NoAnswer
from agent_svc.compacting import Compactor, too_long
from agent_svc.counts import Counts
from agent_svc.domain import plan, results
from agent_svc.domain import steps as s
from agent_svc.domain import tools as t
from agent_svc.domain.orders import Order, next_reply
from agent_svc.domain.reconcile import Standing
from agent_svc.domain.render import RunFacts
from agent_svc.ending import Ending
from agent_svc.guarding import Guard
from agent_svc.models.base import Model
from agent_svc.models.catalog import Catalog
from agent_svc.permitting import Permits
from agent_svc.reserving import Reserver
from agent_svc.spans import TurnSpans
from agent_svc.spawning import Spawner
from agent_svc.store.history import TurnStart
from agent_svc.store.transcripts import Transcripts
from agent_svc.tooling import Tooling, error_of, shown_of
from agent_svc.toolsets import Offering, Toolset
from agent_svc.turnevents import (
    call_ended,
    call_started,
    customer_told,
    fallback_note,
    noted,
    said_between,
)
from agent_svc.windows import Windows
from agent_svc.work import Work
from conveyor.agent.v1 import task_pb2 as task_pb
from svckit.clock import Clock
from svckit.errors import RunCancelled, ServiceError, TurnFailed
from svckit.eventwriter import EventWriter
from svckit.logging import get_logger
from svckit.turn import Fail, LeasedTurn, Outcome, Release
from svckit.usage import UsageReporter

if TYPE_CHECKING:
    from conveyor.events.v1.event_log_service_pb2_grpc import EventLogServiceAsyncStub

MAX_MODEL_CALLS = 32
"""Model calls of one turn. A model that still calls tools then goes round in circles."""

_log = get_logger("agent.turn")


class TurnRunner:
    """The handler of the agent worker."""

    def __init__(
        self,
        *,
        store: Transcripts,
        agents: Agents,
        catalog: Catalog,
        spawner: Spawner,
        usage: UsageReporter,
        reserver: Reserver,
        windows: Windows,
        event_log: EventLogServiceAsyncStub,
        clock: Clock,
        tracer: trace.Tracer,
        toolsets: Sequence[Toolset] = (),
        max_model_calls: int = MAX_MODEL_CALLS,
        capture_content: bool = False,
        counts: Counts | None = None,
    ) -> None:
        self._store = store
        self._agents = agents
        self._catalog = catalog
        self._tools = Tooling(agents, spawner, toolsets)
        self._permits = Permits(store, clock)
        self._caller = Caller(reserver, usage, clock)
        self._guard = Guard(catalog, max_model_calls)
        self._compactor = Compactor(self._caller, windows)
        self._event_log = event_log
        self._clock = clock
        self._tracer = tracer
        self._max_model_calls = max_model_calls
        self._capture = capture_content
        self._counts = counts or Counts()

    async def __call__(self, turn: LeasedTurn) -> Outcome:
        """Work on one attempt until its turn ends."""
        task = task_pb.AgentTask()
        if not turn.run.spec.task.Unpack(task):
            error = TurnFailed(
                "the task of the run is no conveyor.agent.v1.AgentTask",
                metadata={"cause": "task"},
            )
            return Fail(error, retryable=False)
        try:
            agent = self._agents.get(task.agent_id)
            models = [self._catalog.get(name) for name in agent.models(task.model)]
        except ServiceError as err:
            return Fail(err, retryable=False)
        with TurnSpans(
            self._tracer, turn, agent.agent_id, models[0], capture=self._capture
        ) as spans:
            outcome = await self._work(turn, agent, task, models, spans)
            spans.ended(outcome)
            return outcome

    async def _work(
        self,
        turn: LeasedTurn,
        agent: Agent,
        task: task_pb.AgentTask,
        models: Sequence[Model],
        spans: TurnSpans,
    ) -> Outcome:
        events = EventWriter(
            self._event_log, turn.lease_id, f"{turn.run.run_id}-{turn.turn}", self._clock
        )
        async with events:
            if task.HasField("notice"):
                await events.write(customer_told(task.notice))
            work = await self._take_over(turn, agent, task, models, events, spans)
            self._guard.take_over(work)
            await self._tell_again(work)
            await self._compactor.tell_again(work)
            return await self._go_on(work)

    async def _take_over(
        self,
        turn: LeasedTurn,
        agent: Agent,
        task: task_pb.AgentTask,
        models: Sequence[Model],
        events: EventWriter,
        spans: TurnSpans,
    ) -> Work:
        run, leased = turn.run, turn.leased
        budget = run.spec.budget
        rules = agent.tool_rules(
            depth=run.spawn.depth,
            max_depth=(
                budget.max_depth
                if budget.HasField("max_depth")
                else agent.settings.subagents.max_spawn_depth
            ),
            ceiling=task.allowed_tools,
        )
        inputs = convert.inputs_from_proto(run.inputs)
        resumption = leased.resumption if leased.HasField("resumption") else None
        fork = task.context_mode == task_pb.CONTEXT_MODE_FORK
        began = convert.began_from_proto(resumption)
        spans.asked(run.inputs)
        spans.began(began)
        transcript = await self._store.begin(
            TurnStart(
                run_id=run.run_id,
                session_key=run.spec.session_key,
                epoch=run.spec.session_epoch,
                depth=run.spawn.depth,
                turn=turn.turn,
                fencing=leased.lease.fencing_token,
                inputs=inputs,
                began=began,
                previous={
                    past.run_id: Standing(convert.END_STATES[past.state], past.turn)
                    for past in leased.previous_runs
                    if past.state in convert.END_STATES
                },
                fork_session=task.fork_session_key if fork else "",
                fork_run=run.spawn.parent_run_id if fork else "",
            ),
            self._clock.now_us(),
        )
        offering = Offering(run, agent, rules)
        offered = await self._permits.apply(
            await self._tools.offer(offering), run, transcript.steps, turn.turn
        )
        await events.write(*(noted(run.run_id, turn.turn, note) for note in offering.notes))
        tools = offered.schemas
        return Work(
            turn=turn,
            agent=agent,
            task=task,
            models=models,
            tools=tools,
            rules=rules,
            owners=offered.owners,
            asks=offered.asks,
            refused=offered.refused,
            facts=RunFacts(run.run_id, turn.turn, inputs),
            steps=transcript.steps,
            history=transcript.history,
            summaries=transcript.summaries,
            events=events,
            spans=spans,
            counts=self._counts,
            store=self._store,
            clock=self._clock,
            system=agent.system_prompt(
                depth=run.spawn.depth,
                may_delegate=any(tool.name == t.SPAWN for tool in tools),
            ),
        )

    async def _tell_again(self, work: Work) -> None:
        """Write the events of what is stored: a crash may have come between a step and its event.

        Every id is fixed, so what the log holds already stays as it is. The ends of awaited
        children are told here too: their calls end with the turn that learns it.
        """
        found = []
        calls = {call.id: call for step in work.steps for call in s.calls_of(step.record)}
        awaited = {child.run_id: child for child in s.spawned(work.steps) if child.wait}
        for step in work.steps:
            record = step.record
            if step.turn != work.number:
                continue
            if isinstance(record, s.Began):
                found += [
                    call_ended(
                        work.run_id, awaited[child.run_id].call_id, results.show_answer(child)
                    )
                    for child in record.told
                    if child.settled and child.run_id in awaited
                ]
            elif isinstance(record, s.Replied):
                if record.calls and record.text:
                    found.append(said_between(work.run_id, step.turn, step.step, record.text))
                await self._report(work, step.step, record)
                if (note := fallback_note(record)) is not None:
                    found.append(noted(work.run_id, work.number, note))
            elif isinstance(record, s.Asked) and record.call_id in calls:
                await self._permits.tell(work, [calls[record.call_id]])
            elif isinstance(record, s.Returned | s.Spawned | s.Yielded):
                if record.call_id in calls:
                    found.append(call_started(work.run_id, calls[record.call_id]))
                if (shown := shown_of(record)) is not None:
                    ended = call_ended(work.run_id, record.call_id, shown, error_of(record))
                    found.append(ended)
        await work.events.write(*found)
        await self._guard.tell(work)

    async def _go_on(self, work: Work) -> Outcome:
        while True:
            if work.turn.cancelled.is_set():
                why = work.turn.cancel_reason or "the run was cancelled"
                return Fail(RunCancelled(why, metadata={"cause": "request"}), retryable=False)
            action = plan.next_action(work.steps, work.number, self._max_model_calls, work.asks)
            # An answer that was paid for is delivered; only what would cost more is not begun.
            if work.over_budget is not None and not isinstance(action, plan.EndWithReply):
                return Fail(work.over_budget, retryable=False, taken=work.taken())
            if isinstance(action, plan.EndWithReply) and await self._intervened(work, action.reply):
                continue
            match action:
                case plan.CallModel():
                    if work.turn.draining.is_set():
                        return Release("draining")
                    if (ordered := _ordered(work, action.step)) is not None:
                        await work.add(ordered)
                        continue
                    if await self._take_steered(work):
                        continue
                    ended = await self._call_model(work, action.step)
                    if ended is not None:
                        return ended
                case plan.RunTool(call):
                    if work.turn.draining.is_set():
                        return Release("draining")
                    await self._tools.run(work, call)
                case plan.AnswerCall(result):
                    await self._tools.answer(work, result)
                case plan.AskPeople(calls):
                    await self._permits.ask(work, calls)
                case plan.SpawnChildren(calls):
                    await self._tools.spawn(work, calls)
                case plan.StepsExhausted(limit):
                    error = TurnFailed(
                        f"the model went on calling tools after {limit} replies",
                        metadata={"cause": "max_steps"},
                    )
                    return Fail(error, retryable=False, taken=work.taken())
                case _:
                    await work.events.flush()
                    await self._guard.tell(work, ended=isinstance(action, plan.EndWithReply))
                    ending = Ending(work.turn.run, work.number, work.agent, work.steps)
                    return ending.outcome(action)

    async def _intervened(self, work: Work, reply: s.Replied) -> bool:
        """Do what the guard decides about the reply that would end the turn, if anything."""
        rung = self._guard.review(work, reply)
        if rung is not None:
            await self._guard.intervene(work, rung)
        return rung is not None

    async def _take_steered(self, work: Work) -> bool:
        """Take what was said to the run meanwhile; True when there was something."""
        known = {
            step.record.request_id for step in work.steps if isinstance(step.record, s.Steered)
        }
        said = [
            item
            for item in work.turn.new_steered()
            if item.request_id not in known and item.HasField("message")
        ]
        fresh = [
            s.Steered(item.request_id, item.message) for item in convert.inputs_from_proto(said)
        ]
        if fresh:
            await work.add(*fresh)
            work.spans.steered(said)
        return bool(fresh)

    async def _call_model(self, work: Work, step: int) -> Outcome | None:
        """Ask, and store the reply. Something is returned when the turn ends without one."""
        await work.events.new_message()
        held = self._guard.hold(work)
        try:
            answer = await self._ask(work, step, held.text)
        except NoAnswer as end:
            await work.events.flush()
            return None if await self._guard.goes_on(work, end.outcome) else end.outcome
        reply, bill = answer.reply, answer.bill
        record = s.Replied(
            text=self._guard.beside_calls(work, reply.text) if reply.calls else reply.text,
            calls=s.name_calls(work.number, step, reply.calls),
            requested_model=bill.requested_model,
            effective_model=bill.effective_model,
            usage=bill.usage,
            stop_reason=reply.stop_reason,
            reservation=bill.reservation,
            passed_over=bill.passed_over,
        )
        await work.add(record)
        await self._report(work, step, record)
        if (note := fallback_note(record)) is not None:
            await work.note(note)
        if record.text and (record.calls or self._guard.review(work, record) is None):
            held.release()
        if record.calls:
            await self._guard.tell(work)  # before anything comes of the calls
        if record.calls and record.text:
            await work.events.write(said_between(work.run_id, work.number, step, record.text))
        return None

    async def _ask(self, work: Work, step: int, on_text: Callable[[str], None]) -> Answer:
        """Ask with a prompt that fits; once more with a shorter one if it did not. Raises
        `NoAnswer`."""
        force = self._guard.forced_tool(work)
        prompt = await self._compactor.prompt(work, force)
        try:
            return await self._caller.ask(work, str(step), prompt, on_text)
        except NoAnswer as end:
            if end.failed is None or not end.failed.too_long or end.failed.started:
                raise
        prompt = await self._compactor.shorter(work, prompt)
        try:
            return await self._caller.ask(work, f"{step}.shorter", prompt, on_text)
        except NoAnswer as end:
            if end.failed is not None and end.failed.too_long:
                raise too_long(work) from None
            raise

    async def _report(self, work: Work, step: int, record: s.Replied) -> None:
        if record.ordered:
            return
        bill = Bill(
            record.requested_model, record.effective_model, record.usage, record.reservation
        )
        await self._caller.report(work, str(step), bill)


def _ordered(work: Work, step: int) -> s.Replied | None:
    if not work.task.HasField("spawn"):
        return None
    order = Order(
        work.task.spawn.agent_id,
        work.task.spawn.model,
        "\n".join(item.message.text for item in work.facts.inputs),
    )
    return next_reply(order, work.steps, work.number, step)
