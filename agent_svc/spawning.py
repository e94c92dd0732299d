"""Starts the children that a reply asks for: one batch, each call with its own outcome.

A child's request id is the parent's run id and the tool call id, so an attempt that repeats the
batch after a crash finds the children of the one before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from google.protobuf import any_pb2
from google.rpc import status_pb2

from agent_svc.agents import Agent, Agents
from agent_svc.domain import forks
from agent_svc.domain import steps as s
from agent_svc.domain import tools as t
from agent_svc.domain.prompt import runtime_line
from agent_svc.domain.render import Exchange
from agent_svc.harnesses import HarnessList
from agent_svc.models.catalog import Catalog
from agent_svc.windows import Windows
from conveyor.acp.v1 import session_pb2
from conveyor.acp.v1 import task_pb2 as acp_task_pb
from conveyor.agent.v1 import task_pb2 as task_pb
from conveyor.common.v1 import content_pb2
from conveyor.scheduler.v1 import run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as sched
from svckit import tracecontext
from svckit.caps import caps_of
from svckit.content import spoken
from svckit.errors import (
    AcpBackendMissing,
    AcpDisabled,
    AcpHarnessNotFound,
    AgentNotFound,
    LeaseLost,
    ModelNotFound,
    ServiceError,
    invalid_field,
)
from svckit.failpoints import failpoint
from svckit.grpc.client import call
from svckit.grpc.status import from_proto, to_proto

if TYPE_CHECKING:
    from conveyor.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceAsyncStub

NO_LIMIT_SECONDS = 366 * 86_400
MARGIN_SECONDS = 60
"""What a coding agent's run may take beyond starting it and its turn: it says itself what went
wrong, before the scheduler only says that it took too long."""
MAX_ESTIMATE_KEY = 128
MOST_AT_ONCE = 100
"""Children of one reply. More is a model that repeats itself, and more than one request holds."""


@dataclass(frozen=True)
class Parent:
    """The run that spawns."""

    run: run_pb2.Run
    lease_id: str
    agent: Agent
    task: task_pb.AgentTask
    history: Sequence[Exchange] = ()


@dataclass(frozen=True)
class SpawnOutcome:
    """What came of one call. `error` is set when no child was started."""

    call: s.ToolCall
    record: s.Spawned | s.Returned
    error: status_pb2.Status | None = None


@dataclass(frozen=True)
class _Asked:
    """One call that is going to start a child. `note`: what both should know about how."""

    call: s.ToolCall
    args: t.SpawnArgs
    note: str
    item: sched.EnqueueItem


class Spawner:
    """Turns `sessions_spawn` calls into child runs."""

    def __init__(
        self,
        stub: SchedulerServiceAsyncStub,
        agents: Agents,
        catalog: Catalog,
        windows: Windows,
        harnesses: HarnessList,
    ) -> None:
        self._stub = stub
        self._agents = agents
        self._catalog = catalog
        self._windows = windows
        self.harnesses = harnesses

    async def spawn(self, parent: Parent, calls: Sequence[s.ToolCall]) -> list[SpawnOutcome]:
        """Start a child per call. A refusal is the result of its call; `LeaseLost` is raised."""
        outcomes: dict[str, SpawnOutcome] = {}
        items: list[_Asked] = []
        for tool_call in calls:
            if len(items) == MOST_AT_ONCE:
                why = f"at most {MOST_AT_ONCE} can be started in one reply"
                outcomes[tool_call.id] = _refused(tool_call, why)
                continue
            try:
                args = t.read_spawn(tool_call.arguments)
                if args.runtime == "acp":
                    await self._check_harness(args.agent_id)
                note = await self._not_forked(parent, args) if args.context == "fork" else ""
                item = self._item(parent, tool_call, args, note)
                items.append(_Asked(tool_call, args, note, item))
            except t.BadArguments as err:
                outcomes[tool_call.id] = _refused(tool_call, str(err))
            except ModelNotFound as err:
                known = self._catalog.known_to(self._agents)
                why = f"{err.message}. Known models: {known}"
                outcomes[tool_call.id] = _refused(tool_call, why, to_proto(err))
            except (AgentNotFound, AcpDisabled, AcpHarnessNotFound, AcpBackendMissing) as err:
                outcomes[tool_call.id] = _refused(tool_call, err.message, to_proto(err))
        if items:
            request = sched.EnqueueRunsRequest(items=[asked.item for asked in items])
            response = await call(self._stub.EnqueueRuns(request), service="scheduler")
            failpoint("agent.spawn.answered")
            for asked, result in zip(items, response.results, strict=True):
                outcomes[asked.call.id] = self._outcome(parent, asked, result)
        return [outcomes[tool_call.id] for tool_call in calls]

    def _outcome(self, parent: Parent, asked: _Asked, result: sched.EnqueueResult) -> SpawnOutcome:
        tool_call, args = asked.call, asked.args
        if result.WhichOneof("result") == "error":
            error = from_proto(result.error)
            if isinstance(error, LeaseLost):
                raise error
            return _refused(tool_call, _explain(error), result.error)
        child = result.accepted.run
        wait = parent.agent.settings.subagents.wait if args.wait is None else args.wait
        record = s.Spawned(
            tool_call.id,
            child.run_id,
            child.spec.session_key,
            t.label_of(args),
            wait,
            asked.note,
        )
        return SpawnOutcome(tool_call, record)

    def _item(
        self, parent: Parent, tool_call: s.ToolCall, args: t.SpawnArgs, note: str
    ) -> sched.EnqueueItem:
        caps = run_pb2.Budget()
        if args.runtime == "acp":
            task, key = self._acp_task(parent, args)
        else:
            task, key = self._agent_task(parent, args, fork=args.context == "fork" and not note)
            caps = self._caps(parent, args)
        spec = run_pb2.RunSpec(
            queue="acp" if args.runtime == "acp" else "agent",
            task=task,
            label=t.label_of(args),
            estimate_key=key[:MAX_ESTIMATE_KEY],
            budget=caps,
        )
        limit = self._time_limit(parent, args)
        spec.run_timeout.FromMilliseconds(round(limit * 1000))
        if args.timeout_seconds is not None:
            spec.wall_timeout.FromMilliseconds(round(args.timeout_seconds * 1000))
        asked = args.budget or t.SpawnBudget()
        if asked.max_tokens is not None:
            _lower(spec.budget, "max_tokens", asked.max_tokens)
        if asked.max_cost_usd is not None:
            _lower(spec.budget, "max_cost_micros_usd", round(asked.max_cost_usd * 1_000_000))
        run_id = parent.run.run_id
        text = f"{args.task}\n\n{runtime_line(note).text}" if note else args.task
        return sched.EnqueueItem(
            spec=spec,
            message=spoken(f"{run_id}-{tool_call.id}", text, content_pb2.ROLE_USER),
            request_id=f"{run_id}/{tool_call.id}",
            parent_lease_id=parent.lease_id,
            tool_call_id=tool_call.id,
            trace=tracecontext.current(),
        )

    def _time_limit(self, parent: Parent, args: t.SpawnArgs) -> float:
        """Seconds of work. Waiting, for people too, does not count."""
        own = parent.agent.settings.subagents
        if args.runtime == "acp" and "run_timeout_seconds" not in own.model_fields_set:
            acp = self.harnesses.settings
            return acp.handshake_seconds + acp.turn_seconds + MARGIN_SECONDS
        return own.run_timeout_seconds or NO_LIMIT_SECONDS

    async def _check_harness(self, harness_id: str) -> None:
        """Refuse what has no hope before a run is made of it."""
        refusal = (await self.harnesses.known()).refusal(harness_id)
        if refusal is None:
            return
        if refusal.why == "unnamed":
            raise t.BadArguments(refusal.text)
        if refusal.why == "disabled":
            raise AcpDisabled(refusal.text)
        if refusal.harness is None:
            raise AcpHarnessNotFound(refusal.text, metadata={"harnessId": harness_id})
        raise AcpBackendMissing(
            refusal.text,
            metadata={
                "harnessId": refusal.harness.harness_id,
                "command": refusal.harness.command,
                "install": refusal.harness.install,
            },
        )

    def _caps(self, parent: Parent, args: t.SpawnArgs) -> run_pb2.Budget:
        """Depth and descendants are the whole tree's, as the agent at its root is configured; a
        lower depth of the child's own agent holds too. How many children it may have at a time is
        the child's own agent's, and so is what it may spend, within what is left above."""
        above = parent.run.spec.budget
        agent = self._agents.get(args.agent_id or parent.agent.agent_id)
        own = agent.settings.subagents
        caps = caps_of(own)
        if above.HasField("max_depth"):
            if "max_spawn_depth" not in own.model_fields_set:
                caps.ClearField("max_depth")
            _lower(caps, "max_depth", above.max_depth)
        if above.HasField("max_descendants"):
            caps.max_descendants = above.max_descendants
        if agent.agent_id == parent.agent.agent_id:
            # The same caps are in force above, for both together.
            for name in ("max_tokens", "max_cost_micros_usd", "max_wall_time", "reply_reserve"):
                caps.ClearField(name)
        return caps

    # Both return the task, and what its turns are compared with when times are estimated.

    def _agent_task(
        self, parent: Parent, args: t.SpawnArgs, *, fork: bool
    ) -> tuple[any_pb2.Any, str]:
        agent, model = self._chosen(parent, args)
        task = task_pb.AgentTask(
            agent_id=agent.agent_id,
            model=model,
            context_mode=(task_pb.CONTEXT_MODE_FORK if fork else task_pb.CONTEXT_MODE_ISOLATED),
            fork_session_key=parent.run.spec.session_key if fork else "",
            allowed_tools=t.ceiling_of(
                parent.agent.settings.subagents.tools or parent.agent.settings.tools,
                parent.task.allowed_tools,
            ),
        )
        packed = any_pb2.Any()
        packed.Pack(task)
        return packed, f"{agent.agent_id}/{model or agent.settings.model}"

    def _chosen(self, parent: Parent, args: t.SpawnArgs) -> tuple[Agent, str]:
        """The child's agent, and the model it is to use unless that is its agent's own."""
        agent_id = args.agent_id or parent.agent.agent_id
        if args.agent_id and agent_id not in parent.agent.spawnable:
            allowed = ", ".join(parent.agent.spawnable)
            raise t.BadArguments(f"agent_id {agent_id!r} may not be spawned here; use: {allowed}")
        model = args.model or parent.agent.settings.subagents.model
        if not model and agent_id == parent.agent.agent_id:
            model = parent.task.model
        if model:
            self._catalog.get(model)
        return self._agents.get(agent_id), model

    async def _not_forked(self, parent: Parent, args: t.SpawnArgs) -> str:
        """Why the child begins without its parent's conversation, though it was to have it."""
        agent, model = self._chosen(parent, args)
        if agent.agent_id != parent.agent.agent_id:
            raise t.BadArguments(
                "`context` fork hands this conversation over, and only to the same agent: leave "
                "`agent_id` out, or put what it needs into `task`"
            )
        window = await self._windows.of(model or agent.settings.model)
        return forks.too_long(parent.history, window)

    def _acp_task(self, parent: Parent, args: t.SpawnArgs) -> tuple[any_pb2.Any, str]:
        task = acp_task_pb.AcpTask(
            new_session=session_pb2.AcpSessionSpec(
                harness_id=args.agent_id,
                cwd=args.cwd or str(parent.agent.workspace or ""),
                mode=session_pb2.ACP_SESSION_MODE_ONESHOT,
                label=t.label_of(args),
                model=args.model,
            )
        )
        packed = any_pb2.Any()
        packed.Pack(task)
        return packed, f"acp/{args.agent_id or self.harnesses.settings.default_harness}"


_Counted = Literal["max_depth", "max_tokens", "max_cost_micros_usd"]


def _lower(caps: run_pb2.Budget, name: _Counted, value: int) -> None:
    if not caps.HasField(name) or value < getattr(caps, name):
        setattr(caps, name, value)


def _refused(
    tool_call: s.ToolCall, why: str, error: status_pb2.Status | None = None
) -> SpawnOutcome:
    content = f"No sub-agent was started: {why}"
    return SpawnOutcome(
        tool_call, s.Returned(tool_call.id, content, failed=True), error or _tool_error(why)
    )


def _tool_error(why: str) -> status_pb2.Status:
    return to_proto(invalid_field("arguments", why))


def _explain(error: ServiceError) -> str:
    if error.reason == "BUDGET_EXCEEDED" and "budget" in error.metadata:
        facts = error.metadata
        return (
            f"the budget {facts['budget']} allows {facts.get('limit', '?')} and "
            f"{facts.get('used', '?')} are used. Do the work yourself, or wait for others to end."
        )
    return f"{error.message} ({error.reason})"
