"""How a turn ends towards the scheduler: with a reply, or with a wait."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf import any_pb2

from agent_svc import convert
from agent_svc.agents import Agent
from agent_svc.domain import plan
from agent_svc.domain import steps as s
from agent_svc.domain.content import excerpt
from conveyor.common.v1 import content_pb2
from conveyor.scheduler.v1 import run_pb2
from conveyor.scheduler.v1 import worker_service_pb2 as ws
from svckit.content import spoken
from svckit.turn import Complete, Outcome, Suspend

MAX_AWAITED = 100


class Ending:
    """Builds the outcome of one turn."""

    def __init__(self, run: run_pb2.Run, turn: int, agent: Agent, steps: Sequence[s.Step]) -> None:
        self._run = run
        self._turn = turn
        self._subagents = agent.settings.subagents
        self._steps = steps

    def outcome(
        self,
        action: plan.EndWithReply | plan.WaitForChildren | plan.GiveLaneBack | plan.WaitForAnswers,
    ) -> Outcome:
        """Say how the turn ends."""
        if isinstance(action, plan.WaitForAnswers):
            return self._wait_for_answers(action)
        if isinstance(action, plan.EndWithReply):
            return self._reply(action.reply)
        if isinstance(action, plan.WaitForChildren):
            return self._wait(action)
        return self._yield(action)

    @property
    def _message_id(self) -> str:
        """The same for every attempt of the turn, and for the pieces shown while it was written."""
        return f"{self._run.run_id}-{self._turn}"

    def _reply(self, reply: s.Replied) -> Complete:
        details = any_pb2.Any()
        details.Pack(convert.result_details(self._steps, reply))
        result = run_pb2.RunResult(details=details)
        # A message has at least one part: an empty reply is silence.
        if reply.text.strip():
            result.reply.CopyFrom(spoken(self._message_id, reply.text))
        return Complete(result, announce_mode=self._announce(), taken=self._taken())

    def _wait(self, action: plan.WaitForChildren) -> Suspend:
        request = self._suspend(action.children, run_pb2.ANNOUNCE_MODE_ALL)
        request.hold_session_lane = True
        seconds = self._subagents.yield_after_seconds
        root = self._run.spawn.depth == 0
        if root and self._run.spec.reply_route.delivers_later and seconds > 0:
            request.yield_after.FromMilliseconds(round(seconds * 1000))
            request.interim_reply.CopyFrom(self._interim(action))
        return Suspend(request)

    def _wait_for_answers(self, action: plan.WaitForAnswers) -> Suspend:
        wait = run_pb2.ApprovalWait(question_ids=action.question_ids)
        return Suspend(
            ws.SuspendRunRequest(
                condition=run_pb2.WaitCondition(approval=wait),
                hold_session_lane=True,
                taken_request_ids=self._taken(),
            )
        )

    def _yield(self, action: plan.GiveLaneBack) -> Suspend:
        request = self._suspend(action.children, self._announce())
        request.hold_session_lane = False
        request.interim_reply.CopyFrom(spoken(self._message_id, action.message))
        return Suspend(request)

    def _interim(self, action: plan.WaitForChildren) -> content_pb2.Message:
        if action.said.strip():
            return spoken(self._message_id, action.said)
        labels = ", ".join(child.label or child.run_id for child in action.children)
        text = f"Still at work: {excerpt(labels, 400)}. The answer follows when it is done."
        return spoken(self._message_id, text, content_pb2.ROLE_SYSTEM)

    def _suspend(
        self, children: Sequence[s.Spawned], mode: run_pb2.AnnounceMode.ValueType
    ) -> ws.SuspendRunRequest:
        ids = [child.run_id for child in children[:MAX_AWAITED]]
        return ws.SuspendRunRequest(
            condition=run_pb2.WaitCondition(children=run_pb2.ChildrenWait(run_ids=ids, mode=mode)),
            taken_request_ids=self._taken(),
        )

    def _announce(self) -> run_pb2.AnnounceMode.ValueType:
        if self._subagents.announce == "each":
            return run_pb2.ANNOUNCE_MODE_EACH
        return run_pb2.ANNOUNCE_MODE_ALL

    def _taken(self) -> list[str]:
        return s.taken_in(self._steps, self._turn)
