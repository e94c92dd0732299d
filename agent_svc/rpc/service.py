"""`AgentService`: shows agents, models and transcripts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar

from agent_svc import convert, probe_wire
from agent_svc.agents import Agents
from agent_svc.models.catalog import Catalog
from agent_svc.probing import Prober, Tried
from agent_svc.standing import StandingReader
from agent_svc.store.probes import ProbeReports
from agent_svc.store.transcripts import Transcripts
from agent_svc.toolsets import Toolset
from agent_svc.windows import Windows
from conveyor.agent.v1 import agent_service_pb2 as pb
from conveyor.agent.v1 import agent_service_pb2_grpc as pb_grpc
from svckit import paging
from svckit.clock import Clock
from svckit.errors import SessionNotFound, invalid_field

if TYPE_CHECKING:
    import grpc

PAGE = 50
LARGEST_PAGE = 500
MOST_REPETITIONS = 20
T = TypeVar("T")


class AgentServicer(pb_grpc.AgentServiceServicer):
    """Reads from the configuration and the transcript store."""

    def __init__(
        self,
        *,
        store: Transcripts,
        agents: Agents,
        catalog: Catalog,
        windows: Windows,
        standing: StandingReader,
        clock: Clock,
        prober: Prober,
        reports: ProbeReports,
        toolsets: Sequence[Toolset] = (),
    ) -> None:
        self._store = store
        self._agents = agents
        self._catalog = catalog
        self._windows = windows
        self._standing = standing
        self._prober = prober
        self._reports = reports
        self._clock = clock
        self._offered = [name for toolset in toolsets for name in toolset.names]

    async def ListAgents(
        self, request: pb.ListAgentsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ListAgentsResponse:
        """List the configured agents, in the order of the file."""
        found, token = _page(self._agents.all(), request.page_size, request.page_token, "agents")
        agents = [
            pb.Agent(
                agent_id=agent.agent_id,
                display_name=agent.agent_id,
                model=agent.settings.model,
                fallback_models=agent.settings.fallback_models,
                tools=agent.tools(self._offered),
                spawnable_agent_ids=list(agent.spawnable),
                description=agent.settings.description,
            )
            for agent in found
        ]
        return pb.ListAgentsResponse(agents=agents, next_page_token=token)

    async def ListModels(
        self, request: pb.ListModelsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ListModelsResponse:
        """List the models that agents name, the demo models, and others that were probed."""
        reports = await self._reports.all()
        users: dict[str, list[str]] = {name: [] for name in self._catalog.demo_names()}
        for agent in self._agents.all():
            named = [*agent.models(), agent.settings.subagents.model]
            for name in filter(None, named):
                using = users.setdefault(name, [])
                if agent.agent_id not in using:
                    using.append(agent.agent_id)
        for name, base_url in reports:
            if self._catalog.knows(name) and self._catalog.base_url(name) == base_url:
                users.setdefault(name, [])
        names, token = _page(sorted(users), request.page_size, request.page_token, "models")
        models = []
        for name in names:
            base_url = self._catalog.base_url(name)
            report = reports.get((name, base_url))
            probe = probe_wire.report_to_proto(report) if report is not None else None
            models.append(
                pb.Model(
                    model=name,
                    base_url=base_url,
                    context_tokens=await self._windows.known(name),
                    agent_ids=users[name],
                    probe=probe,
                )
            )
        return pb.ListModelsResponse(models=models, next_page_token=token)

    async def ListMessages(
        self, request: pb.ListMessagesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ListMessagesResponse:
        """List what was said in a session, finished exchanges only."""
        key = _session_key(request.session_key)
        size = _size(request.page_size)
        filters: paging.Filters = {"session_key": key, "since_reset": request.since_reset}
        after = paging.decode(request.page_token, filters)
        position = (0, -1)
        if after is not None:
            if len(after) != 2 or not all(isinstance(part, int) for part in after):
                raise invalid_field("page_token", "is not a token of this list")
            position = (int(str(after[0])), int(str(after[1])))
        else:
            await self._standing.align(key)
        found = await self._store.list_messages(
            key, since_reset=request.since_reset, after=position, limit=size + 1
        )
        token = ""
        if len(found) > size:
            found = found[:size]
            token = paging.encode((found[-1].ordinal, found[-1].place), filters)
        messages = [convert.message_to_proto(item.message) for item in found]
        return pb.ListMessagesResponse(messages=messages, next_page_token=token)

    async def ResetSession(
        self, request: pb.ResetSessionRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ResetSessionResponse:
        """Begin the session's next epoch."""
        key = _session_key(request.session_key)
        if not 1 <= len(request.request_id) <= 128:
            raise invalid_field("request_id", "must have 1 to 128 characters")
        await self._standing.align(key)
        now = self._clock.now_us()
        try:
            epoch, forgotten = await self._store.reset(key, request.request_id, now)
        except SessionNotFound:
            # Its first message may still wait for a turn: then it exists, and can forget.
            if not await self._standing.has_runs(key):
                raise
            await self._store.ensure_session(key, now)
            epoch, forgotten = await self._store.reset(key, request.request_id, now)
        return pb.ResetSessionResponse(epoch=epoch, forgotten_messages=forgotten)

    async def ProbeModel(
        self, request: pb.ProbeModelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.ProbeModelResponse]:
        """Measure how well a model delegates."""
        if not request.model:
            raise invalid_field("model", "is required")
        if not 0 <= request.repetitions <= MOST_REPETITIONS:
            raise invalid_field("repetitions", f"must be 0 to {MOST_REPETITIONS}")
        tiers = {number: tier for tier, number in probe_wire.TIERS.items()}
        for position, tier in enumerate(request.tiers):
            if tier not in tiers:
                raise invalid_field(f"tiers[{position}]", "is no tier")
        plan = self._prober.plan(
            request.model, [tiers[tier] for tier in request.tiers], request.repetitions or 1
        )
        async with aclosing(self._prober.probe(plan)) as found:
            async for item in found:
                response = pb.ProbeModelResponse(total=len(plan.tries))
                if isinstance(item, Tried):
                    response.result.CopyFrom(probe_wire.tried_to_proto(item))
                else:
                    response.report.CopyFrom(probe_wire.report_to_proto(item))
                yield response


def _session_key(key: str) -> str:
    # A child's key grows with its depth: its parent's, and the kind and id of the child.
    if not 1 <= len(key) <= 1024:
        raise invalid_field("session_key", "must have 1 to 1024 characters")
    return key


def _size(page_size: int) -> int:
    if page_size < 0:
        raise invalid_field("page_size", "must be 0 or more")
    return min(page_size or PAGE, LARGEST_PAGE)


def _page(items: Sequence[T], size: int, token: str, kind: str) -> tuple[Sequence[T], str]:
    """One page of a list that fits in memory."""
    filters: paging.Filters = {"kind": kind}
    after = paging.decode(token, filters)
    start = 0
    if after is not None:
        if len(after) != 1 or not isinstance(after[0], int) or after[0] < 0:
            raise invalid_field("page_token", "is not a token of this list")
        start = after[0]
    end = start + _size(size)
    return items[start:end], paging.encode((end,), filters) if end < len(items) else ""
