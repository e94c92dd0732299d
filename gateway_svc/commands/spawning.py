"""`/subagents spawn`: a sub-agent that a person orders.

The order goes through the conversation's lane as a run of its agent, whose first step is the spawn
itself instead of a model call. So the child has a parent like any other: it is admitted by the same
rules and budgets, shows in the same tree, and its result comes back to the conversation with the
closing turn of that run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from conveyor.agent.v1 import agent_service_pb2 as ag
from conveyor.agent.v1 import task_pb2
from conveyor.common.v1 import content_pb2
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from conveyor.scheduler.v1 import lane_pb2, run_pb2
from gateway_svc.auth import Scope
from gateway_svc.commands.asked import Answer, Asked, Handler, Refused, Services
from gateway_svc.domain.commands.standing import check_model
from gateway_svc.domain.commands.words import ordinal
from gateway_svc.domain.routing import Routed
from gateway_svc.domain.tokens import Positions, encode_token, session_subject
from svckit.words import shorten

_PAGE = 500
_TITLE = 48


class Spawning:
    """Handler of `/subagents spawn`."""

    def __init__(self, services: Services) -> None:
        self._do = services

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handlers by the names of the grammar."""
        return {"subagents spawn": self.spawn}

    async def spawn(self, asked: Asked) -> Answer:
        """Order a sub-agent; its result comes to this conversation."""
        asked.principal.require(Scope.SEND)
        agent_id, model = asked.get("agent"), asked.get("model")
        await self._check_agent(agent_id, asked)
        if model:
            await self._check_model(model, asked)
        order = task_pb2.SpawnOrder(agent_id=agent_id, model=model)
        accepted = await self._do.intake.enqueue(
            _ordered(asked.conversation, order, asked.get("task")), asked.request_id
        )
        title = shorten(asked.get("task"), _TITLE)
        text = f"Ordered from {agent_id}: “{title}”. The result comes here."
        if accepted.estimate.position > 1:
            text += f" It is {ordinal(accepted.estimate.position)} in line."
        token = encode_token(
            session_subject(asked.session_key), Positions(sequence=accepted.last_sequence)
        )
        return Answer(text, gw.SendMessageResponse(accepted=accepted, resume_token=token))

    async def _check_agent(self, agent_id: str, asked: Asked) -> None:
        listed = await self._do.operations.list_agents(
            ag.ListAgentsRequest(page_size=_PAGE), asked.principal
        )
        own = next((a for a in listed.agents if a.agent_id == asked.conversation.agent_id), None)
        allowed = list(own.spawnable_agent_ids) if own is not None else []
        if agent_id in allowed:
            return
        there = ", ".join(allowed) or "none"
        example = (
            f", for example `/subagents spawn {allowed[0]} compare three hotels`" if allowed else ""
        )
        raise Refused(
            f"no agent “{shorten(agent_id, 40)}” may be started here: there is {there}{example}"
        )

    async def _check_model(self, model: str, asked: Asked) -> None:
        listed = await self._do.operations.list_models(
            ag.ListModelsRequest(page_size=_PAGE), asked.principal
        )
        given = f"/subagents spawn {asked.get('agent')} compare three hotels --model"
        problem = check_model(model, listed.models, self._do.providers, given)
        if problem is not None:
            raise Refused(problem.text)


def _ordered(routed: Routed, order: task_pb2.SpawnOrder, task: str) -> Routed:
    """Return the message of an order: what the command was typed as becomes the task alone.

    Whatever messages do when the conversation is busy, an order waits for its turn: joined with
    others, or given to the run at work, it would be talk.
    """
    packed = task_pb2.AgentTask()
    routed.spec.task.Unpack(packed)
    packed.spawn.CopyFrom(order)
    spec, message = run_pb2.RunSpec(), content_pb2.Message()
    spec.CopyFrom(routed.spec)
    spec.task.Pack(packed)
    message.CopyFrom(routed.message)
    del message.parts[:]
    message.parts.add(text=task)
    policy = lane_pb2.QueuePolicy()
    policy.CopyFrom(routed.policy)
    policy.mode = lane_pb2.QUEUE_MODE_FOLLOWUP
    return replace(routed, spec=spec, message=message, policy=policy)
