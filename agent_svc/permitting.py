"""Asks people about tool calls, and remembers what they said for the rest of a conversation.

A conversation is what a customer sees as one: the session of the root run until it is reset, with
everything that is spawned in it. So whoever allows a tool for the rest of it is asked again neither
by the agent nor by its sub-agents, and `/new` takes it all back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from agent_svc import convert
from agent_svc.domain import approval
from agent_svc.domain import steps as s
from agent_svc.domain.prompt import ToolPolicy, ToolSchema
from agent_svc.store.transcripts import Transcripts
from agent_svc.toolsets import Toolset
from agent_svc.turnevents import call_started, question_asked
from agent_svc.work import Work
from conveyor.scheduler.v1 import run_pb2
from svckit.clock import Clock


@dataclass(frozen=True)
class Offered:
    """The tools of one run.

    `owners`: which toolset runs a tool, for those that are not at home in `Tooling`. `asks`: tools
    that need a person's word before each call. `refused`: what the model is told about tools that
    it may not use, by name or by a pattern that ends in `*`.
    """

    schemas: tuple[ToolSchema, ...]
    owners: dict[str, Toolset]
    asks: frozenset[str]
    refused: dict[str, str]


class Permits:
    """What people allow and deny."""

    def __init__(self, store: Transcripts, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def apply(
        self, offered: Offered, run: run_pb2.Run, steps: Sequence[s.Step], turn: int
    ) -> Offered:
        """Take out of what is asked what was answered for the rest of the conversation."""
        flow = run.spawn.flow_id or run.run_id
        if fresh := approval.standing_answers(steps, turn):
            await self._store.remember_tool_answers(flow, fresh, self._clock.now_us())
        if not offered.asks:
            return offered
        said = await self._store.tool_answers(flow)
        denied = {name for name in offered.asks if said.get(name) == "deny"}
        why = "was denied for the rest of this conversation"
        return replace(
            offered,
            schemas=tuple(tool for tool in offered.schemas if tool.name not in denied),
            asks=offered.asks.difference(said),
            refused=offered.refused | {name: f"The tool {name!r} {why}." for name in denied},
        )

    async def ask(self, work: Work, calls: Sequence[s.ToolCall]) -> None:
        """Ask about calls of one reply, all at once. The turn then waits for answers."""
        await work.add(
            *(s.Asked(call.id, approval.question_id(work.run_id, call.id)) for call in calls)
        )
        for call in calls:
            work.spans.question(call, approval.question_id(work.run_id, call.id))
        await self.tell(work, calls)

    async def tell(self, work: Work, calls: Sequence[s.ToolCall]) -> None:
        """Write the questions about calls. What the log holds already stays as it is."""
        policies = {tool.name: tool.policy for tool in work.tools}
        timeout = work.agent.settings.approval_timeout_seconds
        for call in calls:
            kind = policies.get(call.name, ToolPolicy()).kind
            question = convert.question(work.run_id, call, kind, timeout)
            await work.events.write(
                call_started(work.run_id, call), question_asked(work.run_id, call.id, question)
            )
