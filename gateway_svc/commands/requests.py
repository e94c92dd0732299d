"""`/tasks` and `/flow`: the requests of a conversation with their trees."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from conveyor.scheduler.v1 import flow_service_pb2 as fs
from gateway_svc.commands.asked import Answer, Asked, Handler, Refused, Services
from gateway_svc.commands.trees import Trees
from gateway_svc.domain.commands import targets
from gateway_svc.domain.commands.problem import Problem
from gateway_svc.domain.commands.requests import (
    ROWS,
    Request,
    board_order,
    board_text,
    flow_text,
    flows_text,
)
from gateway_svc.domain.commands.standing import stopped_text
from gateway_svc.domain.sessions import TERMINAL_STATES


class Requests:
    """Handlers of `/tasks` and `/flow`."""

    def __init__(self, services: Services, trees: Trees) -> None:
        self._do = services
        self._trees = trees

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handlers by the names of the grammar."""
        return {
            "tasks": self.tasks,
            "flow list": self.flows,
            "flow show": self.show,
            "flow cancel": self.cancel,
        }

    async def tasks(self, asked: Asked) -> Answer:
        """Show what was asked here lately."""
        flows = board_order(await self._trees.flows(asked))
        requests = await self._numbered(flows, asked)
        text = board_text(requests, flows, self._trees.now_us)
        return Answer(text, fs.ListFlowsResponse(flows=flows))

    async def flows(self, asked: Asked) -> Answer:
        """Show the requests that took sub-agents."""
        flows = board_order(await self._trees.flows(asked, with_children=True))
        requests = await self._numbered(flows, asked)
        numbered = asked.routed is not None
        text = flows_text(requests, len(flows), self._trees.now_us, numbered=numbered)
        return Answer(text, fs.ListFlowsResponse(flows=flows))

    async def show(self, asked: Asked) -> Answer:
        """Show one with its tree."""
        found = await self._find(asked)
        whole = await self._trees.flow(found.flow_id, asked)
        request = Request(whole.flow, await self._trees.title(found.flow_id, asked))
        total = sum(count.runs for count in whole.flow.state_counts)
        text = flow_text(request, whole.nodes, total, self._trees.now_us)
        return Answer(text, whole)

    async def cancel(self, asked: Asked) -> Answer:
        """Stop one with everything it spawned."""

        async def meant() -> Sequence[str]:
            found = await self._find(asked)
            if found.state in TERMINAL_STATES:
                raise Refused(f"…{found.flow_id[-6:]} has ended already: see `/flow show`")
            return (found.flow_id,)

        [flow_id] = await asked.decide(meant)
        title = await self._trees.title(flow_id, asked) or f"…{flow_id[-6:]}"
        answer = await self._do.operations.cancel_flow(
            fs.CancelFlowRequest(flow_id=flow_id, reason="stopped with /flow cancel"),
            asked.principal,
        )
        return Answer(stopped_text([title], answer.affected_runs, 0), answer)

    async def _numbered(self, flows: Sequence[fs.Flow], asked: Asked) -> list[Request]:
        await self._trees.show(asked, "flows", [flow.flow_id for flow in flows])
        shown = flows[:ROWS]
        titles = await asyncio.gather(*(self._trees.title(flow.flow_id, asked) for flow in shown))
        return [Request(flow, title) for flow, title in zip(shown, titles, strict=True)]

    async def _find(self, asked: Asked) -> fs.Flow:
        named = await self._trees.run(asked.get("flow"), asked)
        if asked.routed is None:
            # Nobody was shown numbers, and labels are of all customers.
            if named is None:
                name = asked.command.name
                raise Refused(f"`/{name}` without a conversation needs the id of a run")
            return (await self._trees.flow(named.spawn.flow_id, asked)).flow
        flows = board_order(await self._trees.flows(asked))
        if named is not None and named.run_id not in {flow.flow_id for flow in flows}:
            # Also of a run below it, and when it is older than the lists go back.
            flows.append((await self._trees.flow(named.spawn.flow_id, asked)).flow)
            if named.run_id != named.spawn.flow_id:
                return flows[-1]
        by_id = {flow.flow_id: flow for flow in flows}
        found = targets.find(
            asked.get("flow"),
            [
                targets.Candidate(flow.flow_id, flow.label, flow.state not in TERMINAL_STATES)
                for flow in flows
            ],
            (await self._trees.shown(asked)).of("flows") or list(by_id),
            what="request",
            see="/tasks",
            example=asked.command.form.example,
        )
        if isinstance(found, Problem):
            raise Refused(found.text)
        return by_id[found.run_id]
