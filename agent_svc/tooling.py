"""Runs the tools of a turn: each result is stored, and told in the event log.

Sub-agents, yields and the list of agents are at home here; every other tool belongs to a toolset.
Those at home may be repeated after a crash: a child is found again by its request id, the others
only read. Before any other tool that is not idempotent runs, that it is about to is stored, so that
it is never run twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from google.rpc import status_pb2

from agent_svc.agents import Agents
from agent_svc.domain import approval, results
from agent_svc.domain import steps as s
from agent_svc.domain import tools as t
from agent_svc.domain.content import excerpt
from agent_svc.permitting import Offered
from agent_svc.spawning import Parent, Spawner
from agent_svc.toolsets import Offering, Toolset
from agent_svc.turnevents import call_ended, call_started
from agent_svc.work import Work
from svckit.errors import TurnFailed
from svckit.failpoints import failpoint
from svckit.grpc.status import to_proto


class Tooling:
    """The tools that a run may call."""

    def __init__(
        self,
        agents: Agents,
        spawner: Spawner,
        toolsets: Sequence[Toolset] = (),
    ) -> None:
        self._agents = agents
        self._spawner = spawner
        self._toolsets = toolsets

    async def offer(self, who: Offering) -> Offered:
        """Ask every toolset, all at once, and keep what the run's rules allow.

        Of two tools with one name the first counts. Those that the configuration denies are not
        offered.
        """
        asked = [own for own in self._toolsets if who.rules.may_delegate or not own.delegates]
        found = await asyncio.gather(*(toolset.offer(who) for toolset in asked))
        tools = {tool.name: tool for tool in t.schemas(who.rules)}
        owners: dict[str, Toolset] = {}
        for toolset, offered in zip(asked, found, strict=True):
            for tool in offered:
                if tool.name not in tools and who.rules.allows(tool.name):
                    tools[tool.name] = tool
                    owners[tool.name] = toolset
        overrides = who.agent.settings.approvals
        rules = {
            tool.name: approval.rule_of(tool.name, tool.policy.approval, overrides)
            for tool in tools.values()
        }
        denied = {name for name, rule in rules.items() if rule == "deny"}
        return Offered(
            schemas=tuple(tool for tool in tools.values() if tool.name not in denied),
            owners=owners,
            asks=frozenset(name for name, rule in rules.items() if rule == "ask"),
            refused=who.missing | {name: f"The tool {name!r} may not be used." for name in denied},
        )

    async def run(self, work: Work, call: s.ToolCall) -> None:
        """Run one tool that starts no child."""
        await work.events.write(call_started(work.run_id, call))
        name = _offered(work, call)
        with work.counts.tool(name) as ended_as, work.spans.tool(name, (call,)) as span:
            record = await self._run(work, call)
            ended_as.append(record)
            span.ended([record])
            await work.add(record)
            ended = call_ended(work.run_id, call.id, shown_of(record) or "", error_of(record))
            await work.events.write(ended)

    async def answer(self, work: Work, result: s.Returned) -> None:
        """Store the result of a call that is not run."""
        work.spans.not_run(result.call_id)
        await work.add(result)
        ended = call_ended(work.run_id, result.call_id, result.content, error_of(result))
        await work.events.write(ended)

    async def _run(self, work: Work, call: s.ToolCall) -> s.Returned | s.Yielded:
        tool = next((tool for tool in work.tools if tool.name == call.name), None)
        if tool is None:
            return s.Returned(call.id, _absent(work, call.name), failed=True)
        owner = work.owners.get(call.name)
        if owner is None:
            return await self._result_of(work, call)
        if not tool.policy.idempotent:
            await work.add(s.Calling(call.id))
            failpoint("agent.tool.calling")
        returned = await owner.run(work, call)
        failpoint("agent.tool.returned")
        return returned

    async def _result_of(self, work: Work, call: s.ToolCall) -> s.Returned | s.Yielded:
        if call.name == t.AGENTS:
            coding = (await self._spawner.harnesses.known()).lines()
            return s.Returned(call.id, self._list_agents(work, coding))
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

    def _list_agents(self, work: Work, coding: Sequence[str]) -> str:
        lines = []
        for agent_id, about in work.rules.spawnable.items():
            agent = self._agents.get(agent_id)
            line = f"{agent_id}: {about}" if about else agent_id
            lines.append(f"{line} (model {agent.settings.model})")
        lines = lines or ["No agent may be spawned."]
        if coding:
            lines += ["External coding agents, for `runtime` acp:", *coding]
        return "\n".join(lines)

    async def spawn(self, work: Work, calls: tuple[s.ToolCall, ...]) -> None:
        """Start the children that calls of one reply ask for, all at once."""
        await work.events.write(*(call_started(work.run_id, call) for call in calls))
        if not any(tool.name == t.SPAWN for tool in work.tools):
            why = "Sub-agents cannot be started at this depth: do the work yourself."
            why = work.refused.get(t.SPAWN, why)
            refused = [s.Returned(call.id, why, failed=True) for call in calls]
            with work.counts.tool(t.SPAWN) as ended_as, work.spans.tool(t.SPAWN, calls) as span:
                ended_as += refused
                span.ended(refused)
            await work.add(*refused)
            await work.events.write(
                *(
                    call_ended(work.run_id, item.call_id, item.content, error_of(item))
                    for item in refused
                )
            )
            return
        parent = Parent(work.turn.run, work.turn.lease_id, work.agent, work.task, work.history)
        with work.counts.tool(t.SPAWN) as ended_as, work.spans.tool(t.SPAWN, calls) as span:
            outcomes = await self._spawner.spawn(parent, calls)
            ended_as += [outcome.record for outcome in outcomes]
            span.ended([outcome.record for outcome in outcomes])
            await work.add(*(outcome.record for outcome in outcomes))
            await work.events.write(
                *(
                    call_ended(work.run_id, outcome.call.id, shown, outcome.error)
                    for outcome in outcomes
                    if (shown := shown_of(outcome.record)) is not None
                )
            )


def _offered(work: Work, call: s.ToolCall) -> str:
    """The name of the tool, empty when it is none of those that are offered."""
    return call.name if any(tool.name == call.name for tool in work.tools) else ""


def _absent(work: Work, name: str) -> str:
    """What the model is told about a tool that is not offered."""
    for pattern, why in work.refused.items():
        if t.matches(name, [pattern]):
            return why
    have = ", ".join(tool.name for tool in work.tools) or "none"
    return f"There is no tool {name!r} here. Tools: {have}."


def error_of(record: s.Record) -> status_pb2.Status | None:
    """What a failed call's event says."""
    if isinstance(record, s.Returned) and record.failed:
        return to_proto(TurnFailed(excerpt(record.content, 400), metadata={"cause": "tool"}))
    return None


def shown_of(record: s.Record) -> str | None:
    """What a call's event shows; None while its child is awaited."""
    if isinstance(record, s.Returned):
        return record.content
    if isinstance(record, s.Yielded):
        return record.message
    if isinstance(record, s.Spawned) and not record.wait:
        return results.LATER
    return None
