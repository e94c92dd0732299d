"""`/help`, `/agents`, `/lanes` and `/why`: what there is, and why something waits."""

from __future__ import annotations

from collections.abc import Mapping

from conveyor.agent.v1 import agent_service_pb2 as ag
from conveyor.scheduler.v1 import lane_pb2, run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from gateway_svc.commands.answering import Answering
from gateway_svc.commands.asked import Answer, Asked, Handler, Refused, Services
from gateway_svc.commands.trees import Trees
from gateway_svc.domain.commands import targets
from gateway_svc.domain.commands.acp_words import name_of as name_of_session
from gateway_svc.domain.commands.guide import (
    agents_text,
    command_forms,
    help_text,
    lanes_text,
    why_text,
)
from gateway_svc.domain.commands.problem import Problem
from gateway_svc.domain.commands.words import name_of
from gateway_svc.domain.sessions import LIVE_STATES, TERMINAL_STATES
from svckit.words import shorten

_PAGE = 500
_TITLE = 48


class Guide:
    """Handlers of the commands that only look."""

    def __init__(self, services: Services, trees: Trees, answering: Answering) -> None:
        self._do = services
        self._trees = trees
        self._answering = answering

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handlers by the names of the grammar."""
        return {
            "help": self.help,
            "agents": self.agents,
            "lanes": self.lanes,
            "why": self.why,
        }

    async def help(self, asked: Asked) -> Answer:
        """Say what can be typed."""
        session = await self._answering.answering(asked) if asked.routed else None
        text = help_text(asked.get("command"), name_of_session(session) if session else "")
        if isinstance(text, Problem):
            raise Refused(text.text)
        return Answer(text, command_forms())

    async def agents(self, asked: Asked) -> Answer:
        """List the agents."""
        found = await self._do.operations.list_agents(
            ag.ListAgentsRequest(page_size=_PAGE), asked.principal
        )
        return Answer(agents_text(found.agents), found)

    async def lanes(self, asked: Asked) -> Answer:
        """Show how full the global lanes are."""
        request = ss.ListLanesRequest(kind=lane_pb2.LANE_KIND_GLOBAL, page_size=_PAGE)
        found = await self._do.operations.list_lanes(request, asked.principal)
        return Answer(lanes_text(found.lanes), found)

    async def why(self, asked: Asked) -> Answer:
        """Say why a run is where it is; without one, the newest that is under way here."""
        run_id, name = await self._meant(asked)
        found = await self._do.operations.explain_run(
            ss.ExplainRunRequest(run_id=run_id), asked.principal
        )
        title = shorten(await self._trees.title(run_id, asked), _TITLE)
        name = name or (f"“{title}”" if title else name_of(found.explanation.run))
        return Answer(why_text(found.explanation, name, self._trees.now_us), found)

    async def _meant(self, asked: Asked) -> tuple[str, str]:
        typed = asked.get("run")
        if asked.routed is None:
            if not typed:
                raise Refused("`/why` without a conversation needs the id of a run")
            return typed.upper(), ""
        filters = run_pb2.RunFilter(session_key=asked.session_key)
        if not typed:
            filters.states.extend(LIVE_STATES)
        request = ss.ListRunsRequest(filter=filters, page_size=_PAGE if typed else 1)
        roots = (await self._do.operations.list_runs(request, asked.principal)).runs
        if not typed:
            if not roots:
                raise Refused("nothing is under way here: `/tasks` shows what was")
            return roots[0].run_id, ""
        if (named := await self._trees.run(typed, asked)) is not None:
            return named.run_id, named.spec.label
        runs = [child.run for child in await self._trees.children(asked)] + list(roots)
        found = targets.find(
            typed,
            [
                targets.Candidate(run.run_id, run.spec.label, run.state not in TERMINAL_STATES)
                for run in runs
            ],
            (await self._trees.shown(asked)).of(),
            what="run",
            see="/tasks",
            example=asked.command.form.example,
        )
        if isinstance(found, Problem):
            raise Refused(found.text)
        return found.run_id, found.label
