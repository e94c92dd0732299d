"""The session tools: what a run may see of its conversation, and what it may do to what is below.

Which runs these are is decided in `domain.family`; here they are read from the scheduler, and told
or stopped through it. Everything may be repeated after a crash: looking changes nothing, stopping
twice is stopping once, and a message has a request id of its run, its tool call and its receiver.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from agent_svc import sightings
from agent_svc.domain import family, session_texts
from agent_svc.domain import session_tools as tools
from agent_svc.domain import steps as s
from agent_svc.domain.family import Member
from agent_svc.domain.prompt import ToolSchema
from agent_svc.domain.tools import BadArguments
from agent_svc.sightings import LOG_KINDS, MESSAGE_KINDS, TOOL_KINDS
from agent_svc.store.transcripts import Transcripts
from agent_svc.toolsets import Offering
from agent_svc.work import Work
from conveyor.common.v1 import content_pb2
from conveyor.events.v1 import event_log_service_pb2 as log_pb
from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import flow_service_pb2 as flow_pb
from conveyor.scheduler.v1 import scheduler_service_pb2 as sched
from svckit.backoff import full_jitter
from svckit.clock import Clock
from svckit.content import spoken
from svckit.errors import (
    PASSING,
    EventsCompacted,
    LeaseLost,
    NotSteerable,
    RunAlreadyEnded,
    ServiceError,
)
from svckit.grpc.client import call

if TYPE_CHECKING:
    from conveyor.events.v1.event_log_service_pb2_grpc import EventLogServiceAsyncStub
    from conveyor.scheduler.v1.flow_service_pb2_grpc import FlowServiceAsyncStub
    from conveyor.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceAsyncStub

FLOWS = 20
"""Trees of a conversation that are looked at, the newest."""
NODE_PAGES = 4
EVENTS_PER_PAGE = 250
EVENT_PAGES = 40
PATIENCE_SECONDS = 10.0
"""How long a scheduler that is away is waited for: a restart takes less."""
FOR_YOUR_INFORMATION = "For your information, your task stays the same: "

T = TypeVar("T")


@dataclass(frozen=True)
class _Seen:
    """What one call may see."""

    own: Member
    members: list[Member]
    above: list[Member]


class SessionTools:
    """The toolset of `subagents`, `sessions_list`, `sessions_history` and `sessions_send`."""

    names: Sequence[str] = tools.NAMES
    delegates = True

    def __init__(
        self,
        scheduler: SchedulerServiceAsyncStub,
        flows: FlowServiceAsyncStub,
        log: EventLogServiceAsyncStub,
        store: Transcripts,
        clock: Clock,
    ) -> None:
        self._scheduler = scheduler
        self._flows = flows
        self._log = log
        self._store = store
        self._clock = clock

    async def offer(self, who: Offering) -> Sequence[ToolSchema]:
        """The same for every run that may delegate."""
        return tools.SCHEMAS

    async def run(self, work: Work, call: s.ToolCall) -> s.Returned:
        """Run one call. What goes wrong is told to the model."""
        try:
            match call.name:
                case tools.SUBAGENTS:
                    text = await self._subagents(work, call)
                case tools.LIST:
                    text = await self._list(work, call)
                case tools.HISTORY:
                    text = await self._history(work, call)
                case _:
                    text = await self._send(work, call)
        except (BadArguments, family.NoSuchTarget) as err:
            return s.Returned(call.id, str(err), failed=True)
        except LeaseLost:
            raise
        except ServiceError as err:
            return s.Returned(call.id, f"{err.message} ({err.reason})", failed=True)
        return s.Returned(call.id, text)

    # The four tools

    async def _subagents(self, work: Work, tool_call: s.ToolCall) -> str:
        args = tools.read_subagents(tool_call.arguments)
        seen = await self._look(work)
        now = self._clock.now_us()
        if args.action == "list":
            return session_texts.listed(seen.members, now, args.limit)
        if args.action in ("steer", "send", "kill") and args.target.strip() == family.ALL:
            chosen = family.live_tops(seen.members)
            if not chosen:
                raise family.NoSuchTarget("None of your sub-agents is at work.")
        else:
            chosen = [self._one(seen, args.target)]
        if args.action == "kill":
            return "\n".join([await self._kill(member) for member in chosen])
        if args.action in ("steer", "send"):
            said = args.message if args.action == "steer" else FOR_YOUR_INFORMATION + args.message
            return "\n".join([await self._say(work, tool_call, m, said) for m in chosen])
        if args.action == "log":
            entries = await self._entries(chosen[0], LOG_KINDS)
            return session_texts.logged(chosen[0], entries, args.limit)
        answer = await self._ask(
            lambda: self._scheduler.GetRun(sched.GetRunRequest(run_id=chosen[0].run_id))
        )
        asked, said = sightings.asked_and_said(answer.run)
        return session_texts.described(chosen[0], now, asked, said)

    async def _list(self, work: Work, tool_call: s.ToolCall) -> str:
        args = tools.read_list(tool_call.arguments)
        seen = await self._look(work)
        members = [member for member in seen.members if member.live or not args.live]
        now = self._clock.now_us()
        return session_texts.sessions(members, now, args.limit)

    async def _history(self, work: Work, tool_call: s.ToolCall) -> str:
        args = tools.read_history(tool_call.arguments)
        own = sightings.member(work.turn.run)
        if family.names_own(args.session, own):
            entries = await self._store.said(own.session_key, own.epoch)
            name = {"session": family.OWN}
        else:
            seen = await self._look(work)
            member = self._one(seen, args.session)
            kinds = MESSAGE_KINDS + (TOOL_KINDS if args.include_tools else ())
            entries = await self._entries(member, kinds)
            name = session_texts.facts_of(member)
        return session_texts.told(name, entries, limit=args.limit, offset=args.offset)

    async def _send(self, work: Work, tool_call: s.ToolCall) -> str:
        args = tools.read_send(tool_call.arguments)
        seen = await self._look(work)
        member = self._one(seen, args.session)
        return await self._say(work, tool_call, member, args.message)

    # What they do

    def _one(self, seen: _Seen, target: str) -> Member:
        if family.names_own(target, seen.own):
            raise family.NoSuchTarget("That is yourself: say it in your reply.")
        try:
            return family.select(seen.members, target)
        except family.NoSuchTarget:
            if family.names_above(target, seen.above, seen.own):
                raise family.NoSuchTarget(
                    f"{target.strip()!r} is above you: it started you and gets your reply as your "
                    "result. Nothing can be sent upwards, and it cannot be looked at or stopped."
                ) from None
            raise

    async def _kill(self, member: Member) -> str:
        name = _name(member)
        if not member.live:
            return f"{name} had ended already ({member.state})."
        request = sched.CancelRunRequest(
            run_id=member.run_id, reason="stopped by the agent that started it"
        )
        answer = await self._ask(lambda: self._scheduler.CancelRun(request))
        after = sightings.member(answer.run)
        if not after.live:
            return f"{name} has ended ({after.state})."
        return f"{name} is being stopped, with everything below it."

    async def _say(self, work: Work, tool_call: s.ToolCall, member: Member, text: str) -> str:
        name = _name(member)
        request_id = f"{work.run_id}/{tool_call.id}/{member.run_id}"
        request = sched.SteerRunRequest(
            run_id=member.run_id,
            message=spoken(
                f"{work.run_id}-{tool_call.id}-{member.run_id}", text, content_pb2.ROLE_USER
            ),
            request_id=request_id,
        )
        try:
            await self._ask(lambda: self._scheduler.SteerRun(request))
        except RunAlreadyEnded:
            return f"{name} has ended: nothing was said. Start another with sessions_spawn."
        except NotSteerable:
            return f"{name} has not begun, or is being stopped: nothing was said."
        if member.queue == "acp":
            return f"Said to {name}. It gets it as its next prompt, after the one it works on."
        return f"Said to {name}. It takes it at its next step, if it has not finished by then."

    # What they see

    async def _look(self, work: Work) -> _Seen:
        own = sightings.member(work.turn.run)
        nodes = await self._tree(own.flow_id)
        if own.depth == 0:
            # Earlier messages of the conversation may have left sub-agents at work.
            request = flow_pb.ListFlowsRequest(
                filter=flow_pb.FlowFilter(session_key=own.session_key, with_children=True),
                page_size=FLOWS,
            )
            found = await self._ask(lambda: self._flows.ListFlows(request))
            for flow in found.flows:
                if flow.flow_id != own.flow_id:
                    nodes += await self._tree(flow.flow_id)
        minutes = work.agent.settings.subagents.archive_after_minutes
        since = self._clock.now_us() - round(minutes * 60_000_000) if minutes else 0
        members = family.below(nodes, own, ended_after_us=since)
        return _Seen(own, members, family.ancestors(nodes, own))

    async def _tree(self, flow_id: str) -> list[Member]:
        nodes: list[Member] = []
        request = flow_pb.GetFlowRequest(flow_id=flow_id, page_size=1000)
        for _ in range(NODE_PAGES):
            page = await self._ask(lambda: self._flows.GetFlow(request))
            nodes += [sightings.member(node) for node in page.nodes]
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        return nodes

    async def _entries(self, member: Member, kinds: Sequence[str]) -> list[session_texts.Entry]:
        events: list[event_pb2.Event] = []
        request = log_pb.ListEventsRequest(
            session_key=member.session_key, payloads=kinds, page_size=EVENTS_PER_PAGE
        )
        for _ in range(EVENT_PAGES):
            try:
                page = await self._ask(lambda: self._log.ListEvents(request))
            except EventsCompacted:
                break  # retention came between two pages
            events += page.events
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        return sightings.entries(events)

    async def _ask(self, rpc: Callable[[], Awaitable[T]]) -> T:
        pauses = full_jitter(0.2, 2.0)
        give_up = self._clock.now_us() + PATIENCE_SECONDS * 1_000_000
        while True:
            try:
                return await call(rpc(), service="scheduler")
            except PASSING:
                if self._clock.now_us() > give_up:
                    raise
                await self._clock.sleep(next(pauses))


def _name(member: Member) -> str:
    return f"Sub-agent {member.number} «{member.label or member.run_id}»"
