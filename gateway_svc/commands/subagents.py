"""`/subagents`: looks after the sub-agents of a conversation."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing

from conveyor.common.v1 import content_pb2
from conveyor.events.v1 import event_log_service_pb2 as ev
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from gateway_svc.commands.asked import Answer, Asked, Handler, Refused, Services
from gateway_svc.commands.trees import Trees
from gateway_svc.domain.commands.subagents import (
    LOG_LINES,
    MAX_LOG_LINES,
    PAGE,
    Child,
    info_text,
    list_text,
    log_text,
)
from gateway_svc.domain.commands.words import name_of
from gateway_svc.domain.redaction import clear_event
from gateway_svc.watching.log import Start
from svckit.errors import EventsCompacted, NotSteerable, RunAlreadyEnded
from svckit.words import joined

STEER_SECONDS = 3.0
"""How long the answer to `steer` waits for the run to take the message: callers wait for 5 s."""
_LOGGED = (
    "message_completed",
    "tool_call_started",
    "tool_call_ended",
    "child_spawned",
    "child_announced",
    "steer_accepted",
    "steer_missed",
    "note_added",
    "question_asked",
)
_NEWEST_EVENTS = 200
_NAMED = 5


class Subagents:
    """Handlers of `/subagents`."""

    def __init__(
        self, services: Services, trees: Trees, *, steer_seconds: float = STEER_SECONDS
    ) -> None:
        self._do = services
        self._trees = trees
        self._steer_seconds = steer_seconds

    def handlers(self) -> Mapping[str, Handler]:
        """Return the handlers by the names of the grammar."""
        return {
            "subagents list": self.board,
            "subagents info": self.info,
            "subagents log": self.log,
            "subagents steer": self.steer,
            "subagents send": self.steer,
            "subagents kill": self.kill,
        }

    async def board(self, asked: Asked) -> Answer:
        """Show who works, and who ended lately."""
        children = await self._trees.children(asked)
        ids = [child.run.run_id for child in children]
        await self._trees.show(asked, "subagents", ids)
        page = int(asked.get("page") or 1)
        shown = await self._trees.placed(children[(page - 1) * PAGE : page * PAGE], asked)
        text = list_text(shown, page, len(children), self._trees.now_us)
        return Answer(text, ss.ListRunsResponse(runs=[child.run for child in children]))

    async def info(self, asked: Asked) -> Answer:
        """Show one of them."""
        [child] = await self._trees.placed([await self._trees.child(asked)], asked)
        found = await self._do.operations.get_run(
            ss.GetRunRequest(run_id=child.run.run_id), asked.principal
        )
        task = await self._trees.title(child.run.run_id, asked)
        fresh = Child(found.run, child.live_children, child.position)
        return Answer(info_text(fresh, task, self._trees.now_us), found)

    async def log(self, asked: Asked) -> Answer:
        """Show the last it said and did."""
        child = await self._trees.child(asked)
        run = child.run
        newest = await self._do.event_log.newest(run.spec.session_key)
        request = ev.ListEventsRequest(
            session_key=run.spec.session_key,
            after_sequence=max(0, (newest.sequence or 0) - _NEWEST_EVENTS),
            payloads=_LOGGED,
            page_size=_NEWEST_EVENTS,
        )
        try:
            found = await self._do.event_log.list(request)
        except EventsCompacted:
            found = ev.ListEventsResponse()
        for event in found.events:
            clear_event(event)
        lines = min(int(asked.get("lines") or LOG_LINES), MAX_LOG_LINES)
        return Answer(log_text(run, found.events, lines), found)

    async def steer(self, asked: Asked) -> Answer:
        """Give a live one a message, and say whether it took it."""

        async def meant() -> Sequence[str]:
            return ((await self._trees.child(asked, live=True)).run.run_id,)

        [run_id] = await asked.decide(meant)
        found = await self._do.operations.get_run(ss.GetRunRequest(run_id=run_id), asked.principal)
        name, session_key = name_of(found.run), found.run.spec.session_key
        before = await self._do.event_log.newest(session_key)
        request = gw.SteerRunRequest(run_id=run_id, request_id=asked.request_id)
        request.message.role = content_pb2.ROLE_USER
        request.message.parts.add(text=asked.get("message"))
        try:
            answer = await self._do.operations.steer_run(request, asked.principal)
        except RunAlreadyEnded:
            raise Refused(f"{name} has ended: it takes no message any more") from None
        except NotSteerable:
            how = "is being stopped" if found.run.turn else "has not begun yet"
            raise Refused(f"{name} {how}: it takes no message now, try again later") from None
        said = await self._landed(session_key, Start(sequence=before.sequence), asked.request_id)
        return Answer(f"{name} {said}" if said else _handed_over(name), answer)

    async def kill(self, asked: Asked) -> Answer:
        """Stop one of them, or all, with what is below."""

        async def meant() -> Sequence[str]:
            if asked.get("target").lower() != "all":
                return ((await self._trees.child(asked, live=True)).run.run_id,)
            children = await self._trees.children(asked)
            # Those further down go with the ones above them.
            return [c.run.run_id for c in children if c.at_work and c.run.spawn.depth == 1]

        answers = [await self._cancel(run_id, asked) for run_id in await asked.decide(meant)]
        if not answers:
            return Answer("No sub-agent is at work.", ss.ListRunsResponse())
        more = sum(answer.affected_runs for answer in answers) - len(answers)
        known = [name_of(answer.run) for answer in answers]
        if len(known) > _NAMED:
            known = [*known[:_NAMED], f"{len(known) - _NAMED} more"]
        if more < 0:
            return Answer(f"{joined(known)}: being stopped already.", answers[0])
        text = f"Stopped {joined(known)}" + (f", with {more} below" if more > 0 else "") + "."
        if len(answers) == 1:
            return Answer(text, answers[0])
        return Answer(text, ss.ListRunsResponse(runs=[answer.run for answer in answers]))

    async def _cancel(self, run_id: str, asked: Asked) -> ss.CancelRunResponse:
        request = ss.CancelRunRequest(run_id=run_id, reason="stopped with /subagents kill")
        return await self._do.operations.cancel_run(request, asked.principal)

    async def _landed(self, session_key: str, start: Start, request_id: str) -> str:
        """Return what became of a message that was steered, empty when nothing has yet."""
        kinds = ("steer_accepted", "steer_missed")
        try:
            async with (
                asyncio.timeout(self._steer_seconds),
                aclosing(self._do.event_log.session(session_key, start, kinds)) as messages,
            ):
                async for message in messages:
                    event = message.event
                    if event.steer_accepted.request_id == request_id:
                        return "took it."
                    if event.steer_missed.request_id == request_id:
                        return "missed it: it came to its end before it could take it."
        except TimeoutError:
            pass
        return ""


def _handed_over(name: str) -> str:
    return f"Handed to {name}: it reads it at its next step; `/subagents log` shows when."
