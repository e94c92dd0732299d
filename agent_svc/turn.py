"""The turn loop: ask what comes next, do it, store it, ask again.

Every outcome is a stored step before anything builds on it, so an attempt that takes over after a
crash goes on where the last one stopped. What was in flight at the crash is repeated: a model call,
or a tool, all of which are safe to repeat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from google.rpc import status_pb2
from opentelemetry import trace

from agent_svc import convert, spans
from agent_svc.agents import Agent, Agents
from agent_svc.domain import plan, results
from agent_svc.domain import steps as s
from agent_svc.domain import tools as t
from agent_svc.domain.content import excerpt
from agent_svc.domain.prompt import ToolSchema
from agent_svc.domain.reconcile import Standing
from agent_svc.domain.render import Exchange, RunFacts, render
from agent_svc.ending import Ending
from agent_svc.eventwriter import EventWriter, call_ended, call_started, said_between
from agent_svc.models import asking
from agent_svc.models.base import CallFailed, Model, full_name
from agent_svc.models.catalog import Catalog
from agent_svc.spawning import Parent, Spawner
from agent_svc.store.transcripts import Transcripts, TurnStart
from agent_svc.usage import UsageReporter
from conveyor.agent.v1 import task_pb2 as task_pb
from svckit.clock import Clock
from svckit.errors import ModelUnavailable, RunCancelled, ServiceError, TurnFailed
from svckit.grpc.status import to_proto
from svckit.logging import get_logger
from svckit.turn import Fail, LeasedTurn, Outcome, Release

if TYPE_CHECKING:
    from conveyor.events.v1.event_log_service_pb2_grpc import EventLogServiceAsyncStub

MAX_MODEL_CALLS = 32
"""Model calls of one turn. A model that still calls tools then goes round in circles."""

_log = get_logger("agent.turn")


@dataclass
class _Work:
    """One attempt, while it is at work."""

    turn: LeasedTurn
    agent: Agent
    task: task_pb.AgentTask
    models: Sequence[Model]
    tools: Sequence[ToolSchema]
    rules: t.ToolRules
    facts: RunFacts
    steps: list[s.Step]
    history: list[Exchange]
    events: EventWriter
    system: str
    # Set when a report said that a budget is used up.
    over_budget: ServiceError | None = field(default=None)

    @property
    def run_id(self) -> str:
        return self.turn.run.run_id

    @property
    def number(self) -> int:
        return self.turn.turn


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
        event_log: EventLogServiceAsyncStub,
        clock: Clock,
        tracer: trace.Tracer,
        max_model_calls: int = MAX_MODEL_CALLS,
    ) -> None:
        self._store = store
        self._agents = agents
        self._catalog = catalog
        self._spawner = spawner
        self._usage = usage
        self._event_log = event_log
        self._clock = clock
        self._tracer = tracer
        self._max_model_calls = max_model_calls

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
        events = EventWriter(
            self._event_log, turn.lease_id, f"{turn.run.run_id}-{turn.turn}", self._clock
        )
        async with events:
            work = await self._take_over(turn, agent, task, models, events)
            await self._tell_again(work)
            return await self._go_on(work)

    async def _take_over(
        self,
        turn: LeasedTurn,
        agent: Agent,
        task: task_pb.AgentTask,
        models: Sequence[Model],
        events: EventWriter,
    ) -> _Work:
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
        transcript = await self._store.begin(
            TurnStart(
                run_id=run.run_id,
                session_key=run.spec.session_key,
                epoch=run.spec.session_epoch,
                depth=run.spawn.depth,
                turn=turn.turn,
                fencing=leased.lease.fencing_token,
                inputs=inputs,
                began=convert.began_from_proto(resumption),
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
        tools = t.schemas(rules)
        return _Work(
            turn=turn,
            agent=agent,
            task=task,
            models=models,
            tools=tools,
            rules=rules,
            facts=RunFacts(run.run_id, turn.turn, inputs),
            steps=transcript.steps,
            history=transcript.history,
            events=events,
            system=agent.system_prompt(
                depth=run.spawn.depth,
                may_delegate=any(tool.name == t.SPAWN for tool in tools),
            ),
        )

    async def _tell_again(self, work: _Work) -> None:
        """Write the events of what is stored: a crash may have come between a step and its event.

        Every id is fixed, so what the log holds already stays as it is. The ends of awaited
        children are told here too: their calls end with the turn that learns it.
        """
        found = []
        calls = {
            call.id: call
            for step in work.steps
            if isinstance(step.record, s.Replied)
            for call in step.record.calls
        }
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
            elif isinstance(record, s.Returned | s.Spawned | s.Yielded):
                if record.call_id in calls:
                    found.append(call_started(work.run_id, calls[record.call_id]))
                if (shown := _shown(record)) is not None:
                    ended = call_ended(work.run_id, record.call_id, shown, _error_of(record))
                    found.append(ended)
        await work.events.write(*found)

    async def _go_on(self, work: _Work) -> Outcome:
        while True:
            if work.turn.cancelled.is_set():
                why = work.turn.cancel_reason or "the run was cancelled"
                return Fail(RunCancelled(why, metadata={"cause": "request"}), retryable=False)
            if work.over_budget is not None:
                return Fail(work.over_budget, retryable=False, taken=self._taken(work))
            action = plan.next_action(work.steps, work.number, self._max_model_calls)
            match action:
                case plan.CallModel():
                    if work.turn.draining.is_set():
                        return Release("draining")
                    if await self._take_steered(work):
                        continue
                    failed = await self._call_model(work, action.step)
                    if failed is not None:
                        return failed
                case plan.RunTool(call):
                    await self._run_tool(work, call)
                case plan.SpawnChildren(calls):
                    await self._spawn(work, calls)
                case plan.StepsExhausted(limit):
                    error = TurnFailed(
                        f"the model went on calling tools after {limit} replies",
                        metadata={"cause": "max_steps"},
                    )
                    return Fail(error, retryable=False, taken=self._taken(work))
                case _:
                    await work.events.flush()
                    return self._ending(work).outcome(action)

    # Steps

    async def _add(self, work: _Work, *records: s.Record) -> int:
        """Store steps; returns the number of the first."""
        first = s.next_number(work.steps, work.number)
        token = work.turn.leased.lease.fencing_token
        now = self._clock.now_us()
        await self._store.add_steps(work.run_id, token, work.number, first, records, now)
        work.steps.extend(
            s.Step(work.number, number, record) for number, record in enumerate(records, first)
        )
        return first

    async def _take_steered(self, work: _Work) -> bool:
        """Take what was said to the run meanwhile; True when there was something."""
        known = {
            step.record.request_id for step in work.steps if isinstance(step.record, s.Steered)
        }
        fresh = [
            s.Steered(item.request_id, item.message)
            for item in convert.inputs_from_proto(work.turn.new_steered())
            if item.request_id not in known
        ]
        if fresh:
            await self._add(work, *fresh)
        return bool(fresh)

    async def _call_model(self, work: _Work, step: int) -> Fail | None:
        prompt = render(
            system=work.system,
            history=work.history,
            run=work.facts,
            steps=work.steps,
            tools=work.tools,
        )
        requested = full_name(work.models[0])
        await work.events.new_message()

        async def note_failure(failed: asking.FailedCall) -> None:
            attempt = f"{work.number}.{step}/{work.turn.attempt}.{failed.number}"
            _log.warning(
                "model call failed",
                model=full_name(failed.model),
                reason=failed.failure.error.reason,
                problem=failed.failure.error.message,
            )
            self._usage.failed(
                f"{work.run_id}/{attempt}",
                work.run_id,
                failed.model,
                failed.failure.outcome,
                failed.failure.retry_after,
            )

        session_key = work.turn.run.spec.session_key
        with spans.chat(self._tracer, requested, session_key) as span:
            try:
                asked = await asking.ask(
                    work.models,
                    prompt,
                    work.events.text,
                    clock=self._clock,
                    on_failure=note_failure,
                )
            except CallFailed as failed:
                span.set_status(trace.StatusCode.ERROR, failed.error.reason)
                retryable = isinstance(failed.error, ModelUnavailable)
                return Fail(failed.error, retryable=retryable, taken=self._taken(work))
            reply = asked.reply
            spans.answered(span, asked.model.name, reply.usage)
        record = s.Replied(
            text=reply.text,
            calls=s.name_calls(work.number, step, reply.calls),
            requested_model=requested,
            effective_model=full_name(asked.model),
            usage=reply.usage,
            stop_reason=reply.stop_reason,
        )
        await self._add(work, record)
        await self._report(work, step, record)
        if record.calls and record.text:
            await work.events.write(said_between(work.run_id, work.number, step, record.text))
        return None

    async def _report(self, work: _Work, step: int, record: s.Replied) -> None:
        provider, colon, model = record.effective_model.partition(":")
        if not colon:
            provider, model = "demo", record.effective_model
        usage = convert.usage_to_proto(record.usage, priced=provider == "demo")
        try:
            await self._usage.answered(work.run_id, work.number, step, provider, model, usage)
        except ServiceError as err:
            work.over_budget = err

    # Tools

    async def _run_tool(self, work: _Work, call: s.ToolCall) -> None:
        await work.events.write(call_started(work.run_id, call))
        with spans.tool(self._tracer, (call,)):
            record = self._result_of(work, call)
            await self._add(work, record)
            ended = call_ended(work.run_id, call.id, _shown(record) or "", _error_of(record))
            await work.events.write(ended)

    def _result_of(self, work: _Work, call: s.ToolCall) -> s.Returned | s.Yielded:
        if call.name not in {tool.name for tool in work.tools}:
            have = ", ".join(tool.name for tool in work.tools) or "none"
            return s.Returned(
                call.id, f"There is no tool {call.name!r} here. Tools: {have}.", failed=True
            )
        if call.name == t.AGENTS:
            return s.Returned(call.id, self._list_agents(work))
        try:
            args = t.read_yield(call.arguments)
        except t.BadArguments as err:
            return s.Returned(call.id, str(err), failed=True)
        if any(
            step.turn == work.number and isinstance(step.record, s.Yielded) for step in work.steps
        ):
            return s.Returned(call.id, "The turn ends with your first message.", failed=True)
        if not s.untold(work.steps):
            return s.Returned(
                call.id, "No sub-agent is at work: reply instead of yielding.", failed=True
            )
        run = work.turn.run
        if run.spawn.depth == 0 and not run.spec.reply_route.delivers_later:
            return s.Returned(
                call.id,
                "This caller takes one answer and cannot be sent another later: wait for the "
                "sub-agents instead.",
                failed=True,
            )
        return s.Yielded(call.id, args.message)

    def _list_agents(self, work: _Work) -> str:
        lines = []
        for agent_id in work.rules.spawnable:
            agent = self._agents.get(agent_id)
            lines.append(f"{agent_id}: model {agent.settings.model}")
        return "\n".join(lines) or "No agent may be spawned."

    async def _spawn(self, work: _Work, calls: tuple[s.ToolCall, ...]) -> None:
        await work.events.write(*(call_started(work.run_id, call) for call in calls))
        if not any(tool.name == t.SPAWN for tool in work.tools):
            why = "Sub-agents cannot be started at this depth: do the work yourself."
            refused = [s.Returned(call.id, why, failed=True) for call in calls]
            await self._add(work, *refused)
            await work.events.write(
                *(
                    call_ended(work.run_id, item.call_id, item.content, _error_of(item))
                    for item in refused
                )
            )
            return
        parent = Parent(work.turn.run, work.turn.lease_id, work.agent, work.task)
        with spans.tool(self._tracer, calls):
            outcomes = await self._spawner.spawn(parent, calls)
            await self._add(work, *(outcome.record for outcome in outcomes))
            await work.events.write(
                *(
                    call_ended(work.run_id, outcome.call.id, shown, outcome.error)
                    for outcome in outcomes
                    if (shown := _shown(outcome.record)) is not None
                )
            )

    # The end

    def _taken(self, work: _Work) -> list[str]:
        return s.taken_in(work.steps, work.number)

    def _ending(self, work: _Work) -> Ending:
        return Ending(work.turn.run, work.number, work.agent, work.steps)


def _error_of(record: s.Record) -> status_pb2.Status | None:
    if isinstance(record, s.Returned) and record.failed:
        return to_proto(TurnFailed(excerpt(record.content, 400), metadata={"cause": "tool"}))
    return None


def _shown(record: s.Record) -> str | None:
    """What a call's event shows; None while its child is awaited."""
    if isinstance(record, s.Returned):
        return record.content
    if isinstance(record, s.Yielded):
        return record.message
    if isinstance(record, s.Spawned) and not record.wait:
        return results.LATER
    return None
