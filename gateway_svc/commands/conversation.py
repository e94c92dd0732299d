"""`/status`, `/new`, `/stop`, `/queue` and `/model`: a conversation as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from conveyor.agent.v1 import agent_service_pb2 as ag
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from conveyor.scheduler.v1 import flow_service_pb2 as fs
from conveyor.scheduler.v1 import lane_pb2, run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from gateway_svc.auth import Scope
from gateway_svc.commands.answering import Answering
from gateway_svc.commands.asked import Answer, Asked, Handler, Refused, Services
from gateway_svc.commands.trees import Trees
from gateway_svc.domain.commands.acp_settings import fresh_text, setting_text
from gateway_svc.domain.commands.acp_words import name_of
from gateway_svc.domain.commands.problem import cut
from gateway_svc.domain.commands.queueing import MODES, UNSPECIFIED, queue_answer
from gateway_svc.domain.commands.standing import (
    Standing,
    check_model,
    model_line,
    status_text,
    stopped_text,
    to_stop,
    verdict_of,
)
from gateway_svc.domain.routing import queue_mode_of
from gateway_svc.domain.sessions import LIVE_STATES, lane_use
from gateway_svc.store import sessions as store
from svckit.errors import ServiceError, SessionNotFound
from svckit.logging import get_logger
from svckit.words import count, joined

_PAGE = 500

log = get_logger(__name__)


class Conversation:
    """Handlers of the commands about a conversation."""

    def __init__(self, services: Services, trees: Trees, answering: Answering) -> None:
        self._do = services
        self._trees = trees
        self._answering = answering

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handlers by the names of the grammar."""
        return {
            "status": self.status,
            "new": self.new,
            "stop": self.stop,
            "queue": self.queue,
            "model": self.model,
        }

    async def status(self, asked: Asked) -> Answer:
        """Say what goes on here."""
        roots = await self._roots(asked)
        use = lane_use(roots).get(asked.session_key)
        holder = next((run for run in roots if use and run.run_id == use.run_id), None)
        background = [run for run in roots if run.turn and run is not holder]
        waiting = sorted((run for run in roots if not run.turn), key=lambda run: run.run_id)
        flows = await self._trees.flows(asked)
        newest = flows[0] if flows else None
        if holder is not None:
            newest = next((f for f in flows if f.flow_id == holder.run_id), newest)
        chosen, models = await self._chosen(asked), await self._models(asked)
        requested = chosen or self._own_model(asked)
        answered = await self._effective(asked, requested)
        queue_mode = asked.conversation.policy.mode
        standing = Standing(
            agent_id=asked.conversation.agent_id,
            requested_model=requested,
            effective_model=answered,
            verdict=verdict_of(models, answered or requested),
            queue_mode=queue_mode,
            newest=newest,
            title=await self._trees.title(holder.run_id, asked) if holder else "",
            holder=holder,
            background=len(background),
            waiting=len(waiting),
            estimate=await self._estimate(waiting[0], asked)
            if waiting
            else lane_pb2.QueueEstimate(),
            questions=[
                question.number
                for question in await self._do.questions.open_of(asked.session_key, asked.principal)
            ],
            answering=await self._answering.answering(asked),
        )
        return Answer(status_text(standing, self._trees.now_us), await self._session(asked))

    async def new(self, asked: Asked) -> Answer:
        """Begin the next epoch."""
        session = await self._answering.answering(asked)
        request = ag.ResetSessionRequest(session_key=asked.session_key, request_id=asked.request_id)
        try:
            answer = await self._do.conversations.reset(request, asked.principal)
        except SessionNotFound:
            return Answer("There is nothing to forget yet.")
        if session is not None:
            return Answer(fresh_text(session), answer)
        forgot = count(answer.forgotten_messages, "message")
        what = f"Forgotten, {forgot}" if answer.forgotten_messages else "Forgotten"
        text = f"{what}: what you say next begins afresh."
        if await self._roots(asked):
            text += " What is under way goes on and is answered; `/stop` stops it."
        return Answer(text, answer)

    async def stop(self, asked: Asked) -> Answer:
        """Stop what keeps the conversation busy, or everything."""
        live = await self._trees.flows(asked, live_only=True)

        async def busy() -> Sequence[str]:
            if asked.get("all"):
                return [flow.flow_id for flow in live]
            one = to_stop(live, await self._roots(asked))
            return [one.flow_id] if one else []

        meant = await asked.decide(busy)
        titles = [await self._trees.title(flow_id, asked) or "your message" for flow_id in meant]
        answers = [
            await self._do.operations.cancel_flow(
                fs.CancelFlowRequest(flow_id=flow_id, reason="stopped with /stop"),
                asked.principal,
            )
            for flow_id in meant
        ]
        affected = sum(answer.affected_runs for answer in answers)
        others = [flow for flow in live if flow.flow_id not in meant]
        stopping = [flow for flow in others if flow.state == run_pb2.RUN_STATE_CANCELLING]
        left = len(others) - len(stopping)
        text = stopped_text(titles, affected, left, len(stopping))
        if not live and (beside := await self._answering.at_work_beside(asked)):
            text += f" {joined(beside)} at work beside it: `/acp cancel` stops that."
        if len(answers) == 1:
            return Answer(text, answers[0])
        return Answer(text, fs.ListFlowsResponse(flows=[answer.flow for answer in answers]))

    async def queue(self, asked: Asked) -> Answer:
        """Show or set what messages do when the conversation is busy."""
        routed, mode = asked.conversation, asked.get("mode")
        key = routed.key.text
        configured = queue_mode_of(routed.key, routed.agent_id, self._do.rules)
        if mode:
            asked.principal.require(Scope.SEND)
            value = UNSPECIFIED if mode == "reset" else MODES[mode]
            await self._do.database.run(
                lambda connection: store.set_queue_mode(connection, key, value)
            )
        row = await self._do.database.run(lambda connection: store.find(connection, key))
        own = row.known.queue_mode if row else UNSPECIFIED
        session = await self._answering.answering(asked)
        text = queue_answer(own, configured, name_of(session) if session else "")
        return Answer(text, await self._session(asked))

    async def model(self, asked: Asked) -> Answer:
        """Show or choose the model that answers here."""
        name, key = asked.get("name"), asked.session_key
        session = await self._answering.answering(asked)
        if session is not None:
            if name:
                raise Refused(f"{name_of(session)} answers here: say `/acp model {cut(name)}`")
            text = setting_text("acp model", session, changed=False)
            return Answer(text, await self._session(asked))
        if name:
            asked.principal.require(Scope.SEND)
            chosen = "" if name.lower() == "reset" else name
            if chosen:
                listed = await self._do.operations.list_models(
                    ag.ListModelsRequest(page_size=_PAGE), asked.principal
                )
                problem = check_model(chosen, listed.models, self._do.providers)
                if problem is not None:
                    raise Refused(problem.text)
            await self._do.database.run(lambda connection: store.set_model(connection, key, chosen))
            models = await self._models(asked)
            now = chosen or self._own_model(asked)
            line = model_line(now, "", verdict_of(models, now))
            text = f"From the next message on: {line}."
            if chosen:
                text += " `/model reset` goes back to the agent's own."
            return Answer(text, await self._session(asked))
        chosen, models = await self._chosen(asked), await self._models(asked)
        requested = chosen or self._own_model(asked)
        answered = await self._effective(asked, requested)
        line = model_line(requested, answered, verdict_of(models, answered or requested))
        whose = "chosen here" if chosen else f"that of the agent {asked.conversation.agent_id}"
        names = ", ".join(f"`{model.model}`" for model in models[:8])
        text = f"This conversation asks for {line}, {whose}."
        if names:
            text += f"\nOthers: {names}, for example `/model {models[0].model}`"
        return Answer(text, await self._session(asked))

    async def _roots(self, asked: Asked) -> list[run_pb2.Run]:
        """Return the unfinished runs of the conversation itself."""
        filters = run_pb2.RunFilter(session_key=asked.session_key, states=LIVE_STATES)
        request = ss.ListRunsRequest(filter=filters, page_size=_PAGE)
        return list((await self._do.operations.list_runs(request, asked.principal)).runs)

    async def _effective(self, asked: Asked, requested: str) -> str:
        """Return the model that answered last where this one was asked for, empty when none has.

        What answered before another model was chosen says nothing about this one.
        """
        request = ss.ListRunsRequest(
            filter=run_pb2.RunFilter(session_key=asked.session_key), page_size=10
        )
        found = await self._do.operations.list_runs(request, asked.principal)
        same = (run for run in found.runs if run.requested_model == requested)
        return next((run.effective_model for run in same if run.effective_model), "")

    async def _estimate(self, run: run_pb2.Run, asked: Asked) -> lane_pb2.QueueEstimate:
        request = ss.ExplainRunRequest(run_id=run.run_id)
        try:
            told = await self._do.operations.explain_run(request, asked.principal)
        except ServiceError:
            return lane_pb2.QueueEstimate()
        return told.explanation.estimate

    async def _models(self, asked: Asked) -> list[ag.Model]:
        try:
            listed = await self._do.operations.list_models(
                ag.ListModelsRequest(page_size=_PAGE), asked.principal
            )
        except ServiceError as error:
            # What is known without the agent service is worth telling all the same.
            log.warning("models cannot be listed", reason=error.reason)
            return []
        return list(listed.models)

    async def _chosen(self, asked: Asked) -> str:
        key = asked.session_key
        row = await self._do.database.run(lambda connection: store.find(connection, key))
        return row.model if row else ""

    def _own_model(self, asked: Asked) -> str:
        agent = self._do.rules.agents.get(asked.conversation.agent_id)
        return agent.model if agent else ""

    async def _session(self, asked: Asked) -> gw.GetSessionResponse | None:
        try:
            return await self._do.conversations.get(asked.session_key, asked.principal)
        except SessionNotFound:
            return None  # no message was accepted yet
