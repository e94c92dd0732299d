"""The spawn trees of a conversation, as commands need them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from conveyor.scheduler.v1 import flow_service_pb2 as fs
from conveyor.scheduler.v1 import run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from gateway_svc.auth import Principal
from gateway_svc.commands.asked import Asked, Refused, Services, Shown
from gateway_svc.domain.commands import targets
from gateway_svc.domain.commands.problem import Problem
from gateway_svc.domain.commands.requests import BOARD_HOURS
from gateway_svc.domain.commands.subagents import RECENT_SECONDS, Child, children_of
from gateway_svc.domain.commands.words import SECOND, at_us
from gateway_svc.domain.deliveries import message_text
from gateway_svc.domain.sessions import LIVE_STATES, TERMINAL_STATES
from gateway_svc.store import sessions as store
from svckit.errors import RunNotFound, ServiceError

MOST_FLOWS = 200
_MOST_TREES = 50
_PAGE = 1000
_MOST_CHILDREN = 500
"""As many as a list of runs holds: the answer has to fit one message."""
_ID_LENGTH = 26
_AT_A_TIME = 8


class Trees:
    """Reads flows and runs through the operations, so within what the caller may see.

    With a conversation only its own trees exist, whoever asks.
    """

    def __init__(self, services: Services) -> None:
        self._do = services

    @property
    def now_us(self) -> int:
        """The time that ages are told by."""
        return self._do.clock.now_us()

    async def flows(
        self, asked: Asked, *, with_children: bool = False, live_only: bool = False
    ) -> list[fs.Flow]:
        """Return flows that are under way, and unless `live_only` those of the last 24 hours.

        Newest first.
        """
        live = fs.FlowFilter(
            session_key=asked.session_key, with_children=with_children, states=LIVE_STATES
        )
        found = {flow.flow_id: flow for flow in await self._list(live, asked.principal)}
        if not live_only:
            recent = fs.FlowFilter(session_key=asked.session_key, with_children=with_children)
            recent.after_time.FromMicroseconds(self.now_us - BOARD_HOURS * 3600 * SECOND)
            found |= {flow.flow_id: flow for flow in await self._list(recent, asked.principal)}
        return sorted(found.values(), key=lambda flow: flow.flow_id, reverse=True)

    async def flow(self, flow_id: str, asked: Asked) -> fs.GetFlowResponse:
        """Return a flow with the first thousand of its nodes."""
        request = fs.GetFlowRequest(flow_id=flow_id, page_size=_PAGE)
        return await self._do.operations.get_flow(request, asked.principal)

    async def children(self, asked: Asked) -> list[Child]:
        """Return the sub-agents of a conversation that work or ended lately, at most 500."""
        now_us = self.now_us
        since = now_us - RECENT_SECONDS * SECOND
        wanted = [
            flow.flow_id
            for flow in await self.flows(asked, with_children=True)
            if flow.state not in TERMINAL_STATES or at_us(flow.timing.end_time) >= since
        ]
        gate = asyncio.Semaphore(_AT_A_TIME)

        async def nodes(flow_id: str) -> Sequence[run_pb2.Run]:
            async with gate:
                return (await self.flow(flow_id, asked)).nodes

        trees = await asyncio.gather(*(nodes(flow_id) for flow_id in wanted[:_MOST_TREES]))
        return children_of([run for tree in trees for run in tree], now_us)[:_MOST_CHILDREN]

    async def run(self, typed: str, asked: Asked) -> run_pb2.Run | None:
        """Return the run with this whole id, however old; `None` when there is none here.

        Everything below a conversation has its key, and a mark, before its own.
        """
        if len(typed) != _ID_LENGTH or not (typed.isascii() and typed.isalnum()):
            return None
        request = ss.GetRunRequest(run_id=typed.upper())
        try:
            run = (await self._do.operations.get_run(request, asked.principal)).run
        except RunNotFound:
            return None
        own = asked.session_key
        below = (f"{own}:subagent:", f"{own}:acp:")
        if own and run.spec.session_key != own and not run.spec.session_key.startswith(below):
            return None
        return run

    async def child(self, asked: Asked, *, live: bool = False) -> Child:
        """Return the sub-agent that a command names; raises `Refused`, also when not `live`."""
        children = await self.children(asked)
        named = await self.run(asked.get("target"), asked)
        known = {child.run.run_id for child in children}
        if named is not None and named.spawn.parent_run_id and named.run_id not in known:
            children.append(Child(named))
        by_id = {child.run.run_id: child for child in children}
        shown = (await self.shown(asked)).of("subagents") or list(by_id)
        found = targets.find(
            asked.get("target"),
            [targets.Candidate(c.run.run_id, c.run.spec.label, c.live) for c in children],
            shown,
            what="sub-agent",
            see="/subagents list",
            example=asked.command.form.example,
        )
        if isinstance(found, Problem):
            raise Refused(found.text)
        child = by_id[found.run_id]
        if live and not child.live:
            raise Refused(f"{found.label or found.run_id} has ended: see `/subagents info`")
        return child

    async def placed(self, children: Sequence[Child], asked: Asked) -> list[Child]:
        """Return children with the places in line of those that are queued."""

        async def place(child: Child) -> Child:
            if child.run.state != run_pb2.RUN_STATE_QUEUED:
                return child
            request = ss.ExplainRunRequest(run_id=child.run.run_id)
            try:
                told = await self._do.operations.explain_run(request, asked.principal)
            except ServiceError:
                return child  # gone meanwhile, or nobody can tell: the list says the rest
            return replace(child, position=told.explanation.estimate.position)

        return list(await asyncio.gather(*(place(child) for child in children)))

    async def title(self, run_id: str, asked: Asked) -> str:
        """Return what a run was told to do: the text of its messages."""
        try:
            answer = await self._do.operations.get_run(
                ss.GetRunRequest(run_id=run_id), asked.principal
            )
        except RunNotFound:
            return ""
        return " ".join(message_text(item.message) for item in answer.run.inputs)

    async def shown(self, asked: Asked) -> Shown:
        """Return the lists that the conversation was shown."""
        if asked.routed is None:
            return Shown()
        key = asked.session_key
        row = await self._do.database.run(lambda connection: store.find(connection, key))
        return Shown.read(row.shown if row else "")

    async def show(self, asked: Asked, kind: str, ids: Sequence[str]) -> None:
        """Remember a list that the conversation is shown now."""
        if asked.routed is None:
            return
        before = await self.shown(asked)
        after = Shown({**before.lists, kind: list(ids)}, kind)
        if after != before:
            key, text = asked.session_key, after.write()
            await self._do.database.run(lambda connection: store.set_shown(connection, key, text))

    async def _list(self, filters: fs.FlowFilter, principal: Principal) -> Sequence[fs.Flow]:
        request = fs.ListFlowsRequest(filter=filters, page_size=MOST_FLOWS)
        return (await self._do.operations.list_flows(request, principal)).flows
