"""A real scheduler on each store, and a hand-driven worker."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import status_pb2
from grpc import aio

from conveyor.common.v1 import content_pb2
from conveyor.events.v1 import event_log_service_pb2 as events
from conveyor.events.v1 import event_log_service_pb2_grpc as events_grpc
from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import flow_service_pb2_grpc as flow_grpc
from conveyor.scheduler.v1 import lane_pb2, run_pb2
from conveyor.scheduler.v1 import limit_service_pb2_grpc as limit_grpc
from conveyor.scheduler.v1 import scheduler_service_pb2 as pb
from conveyor.scheduler.v1 import scheduler_service_pb2_grpc as pb_grpc
from conveyor.scheduler.v1 import worker_service_pb2 as ws
from conveyor.scheduler.v1 import worker_service_pb2_grpc as ws_grpc
from scheduler_svc import app
from scheduler_svc.counts import Counts
from scheduler_svc.engine import Engine
from scheduler_svc.forecast.desk import Desk
from svckit.errors import ServiceError
from svckit.grpc.status import from_rpc_error, to_proto
from svckit.metrics import Metrics
from svckit.service import App, Context
from svckit.settings import Settings, load
from svckit.testing import in_process


def message(text: str, message_id: str = "", role: int = content_pb2.ROLE_USER) -> Any:
    return content_pb2.Message(
        message_id=message_id or f"m-{text[:40].replace(' ', '-')}",
        role=role,
        parts=[content_pb2.ContentPart(text=text)],
    )


class Driver:
    """Talks to a scheduler as gateway and as worker."""

    engine: Engine
    desk: Desk
    address: str
    metrics: Metrics

    def __init__(self, channel: aio.Channel) -> None:
        self.channel = channel
        self.scheduler: Any = pb_grpc.SchedulerServiceStub(channel)
        self.worker: Any = ws_grpc.WorkerServiceStub(channel)
        self.flows: Any = flow_grpc.FlowServiceStub(channel)
        self.limits: Any = limit_grpc.LimitServiceStub(channel)
        self.events: Any = events_grpc.EventLogServiceStub(channel)
        self._ids = itertools.count(1)
        self.me = ws.Worker(name="agent-0", incarnation=1)

    def item(self, session: str, text: str, request_id: str = "", **spec: Any) -> pb.EnqueueItem:
        mode = spec.pop("mode", lane_pb2.QUEUE_MODE_FOLLOWUP)
        later = spec.pop("delivers_later", True)
        queue = spec.pop("queue", "agent")
        spec.setdefault("customer_key", session)
        return pb.EnqueueItem(
            spec=run_pb2.RunSpec(
                session_key=session,
                queue=queue,
                reply_route=run_pb2.ReplyRoute(address="a", delivers_later=later),
                **spec,
            ),
            message=message(text),
            request_id=request_id or f"req-{next(self._ids)}",
            queue_policy=lane_pb2.QueuePolicy(mode=mode),
        )

    async def send(self, session: str, text: str = "hello", **more: Any) -> pb.AcceptedRun:
        response = await self.scheduler.EnqueueRuns(
            pb.EnqueueRunsRequest(items=[self.item(session, text, **more)])
        )
        [result] = response.results
        assert result.WhichOneof("result") == "accepted", result
        return result.accepted

    async def refused(self, item: pb.EnqueueItem) -> status_pb2.Status:
        """Return why an item, or the whole call, was refused."""
        try:
            response = await self.scheduler.EnqueueRuns(pb.EnqueueRunsRequest(items=[item]))
        except aio.AioRpcError as err:
            return to_proto(from_rpc_error(err))
        [result] = response.results
        assert result.WhichOneof("result") == "error", result
        return result.error

    async def lease(self, most: int = 1, wait: float = 0, queue: str = "agent") -> list[Any]:
        span = Duration()
        span.FromMicroseconds(round(wait * 1e6))
        response = await self.worker.LeaseRuns(
            ws.LeaseRunsRequest(worker=self.me, queue=queue, max_runs=most, wait=span)
        )
        return list(response.leased_runs)

    async def lease_one(self, wait: float = 5) -> Any:
        [leased] = await self.lease(1, wait)
        return leased

    def child(self, parent: Any, text: str, call: str, **spec: Any) -> pb.EnqueueItem:
        return pb.EnqueueItem(
            spec=run_pb2.RunSpec(queue="agent", label=text[:64], **spec),
            message=message(text),
            request_id=f"{parent.run.run_id}/{call}",
            parent_lease_id=parent.lease.lease_id,
            tool_call_id=call,
        )

    async def spawn(self, parent: Any, *texts: str, turn: int = 1, **spec: Any) -> list[str]:
        items = [self.child(parent, t, f"{turn}.1.{i}", **spec) for i, t in enumerate(texts)]
        response = await self.scheduler.EnqueueRuns(pb.EnqueueRunsRequest(items=items))
        assert all(r.HasField("accepted") for r in response.results), response
        return [r.accepted.run.run_id for r in response.results]

    async def complete(self, leased: Any, text: str | None = "done", **more: Any) -> Any:
        result = None
        if text is not None:
            reply = message(text, f"r-{leased.lease.turn}", content_pb2.ROLE_AGENT)
            result = run_pb2.RunResult(reply=reply)
        response = await self.worker.CompleteRuns(
            ws.CompleteRunsRequest(
                completions=[
                    ws.RunCompletion(lease_id=leased.lease.lease_id, result=result, **more)
                ]
            )
        )
        [found] = response.results
        assert found.HasField("run"), found
        return found.run

    async def wait_for_children(
        self,
        leased: Any,
        *ids: str,
        hold: bool = True,
        yield_after: float = 0,
        interim: str = "",
        taken: tuple[str, ...] = (),
    ) -> Any:
        span = None
        if yield_after:
            span = Duration()
            span.FromMicroseconds(round(yield_after * 1e6))
        response = await self.worker.SuspendRun(
            ws.SuspendRunRequest(
                lease_id=leased.lease.lease_id,
                condition=run_pb2.WaitCondition(children=run_pb2.ChildrenWait(run_ids=ids)),
                hold_session_lane=hold,
                yield_after=span,
                interim_reply=message(interim, "i-1", content_pb2.ROLE_AGENT) if interim else None,
                taken_request_ids=taken,
            )
        )
        return response.run

    async def fail(self, leased: Any, err: ServiceError, retryable: bool = False) -> Any:
        response = await self.worker.FailRun(
            ws.FailRunRequest(
                lease_id=leased.lease.lease_id, error=to_proto(err), retryable=retryable
            )
        )
        return response.run

    async def extend(self, *leased: Any) -> list[Any]:
        response = await self.worker.ExtendLeases(
            ws.ExtendLeasesRequest(
                worker=self.me, lease_ids=[item.lease.lease_id for item in leased]
            )
        )
        return list(response.statuses)

    async def run(self, run_id: str) -> Any:
        response = await self.scheduler.GetRun(pb.GetRunRequest(run_id=run_id))
        return response.run

    async def state(self, run_id: str) -> str:
        run = await self.run(run_id)
        return run_pb2.RunState.Name(run.state).removeprefix("RUN_STATE_")

    async def log(self, session: str) -> list[event_pb2.Event]:
        response = await self.events.ListEvents(
            events.ListEventsRequest(session_key=session, page_size=1000)
        )
        found = list(response.events)
        assert [event.sequence for event in found] == list(range(1, len(found) + 1))
        return found

    async def kinds(self, session: str) -> list[str]:
        return [str(event.WhichOneof("payload")) for event in await self.log(session)]


def settings(directory: Path, store: str = "sqlite", **env: str) -> Settings:
    url = {"memory": "memory:", "sqlite": f"sqlite:///{directory}"}.get(store, store)
    return load(None, {"CONVEYOR_STORE__URL": url} | env)


@asynccontextmanager
async def driver(config: Settings, **faults: Any) -> AsyncIterator[Driver]:
    """A driver of a scheduler of its own; `engine` is that scheduler's, for what no RPC shows.

    `wrap` puts something between the engine and its store; `tracer` traces.
    """
    engines: list[Engine] = []
    desks: list[Desk] = []

    @asynccontextmanager
    async def build(context: Context) -> AsyncIterator[App]:
        store = faults.get("wrap", lambda inner: inner)(app.make_store(config))
        rules = app.config(config)
        engine = Engine(
            store,
            rules,
            context.clock,
            context.set_serving,
            counts=Counts(context.metrics, rules.lanes),
            spans=app.make_spans(context),
        )
        await engine.start()
        engines.append(engine)
        desks.append(Desk(context.clock))
        try:
            yield app.make_app(engine, context, desks[-1])
        finally:
            await engine.close()

    tracer = faults.get("tracer")
    async with in_process(build, config, name="scheduler", tracer=tracer) as service:
        found = Driver(service.channel)
        found.address = service.address
        found.engine = engines[0]
        found.metrics = service.context.metrics
        found.desk = desks[0]
        yield found


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def store(request: pytest.FixtureRequest) -> str:
    """A kind of store; that in PostgreSQL as the address of an empty database."""
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return str(request.param)


@pytest.fixture
async def s(store: str, tmp_path: Path) -> AsyncIterator[Driver]:
    """A scheduler with short pauses, on each store."""
    config = settings(
        tmp_path,
        store,
        CONVEYOR_RUNS__BACKOFF__INITIAL_SECONDS="0",
        CONVEYOR_RUNS__LEASE_SECONDS="1",
        CONVEYOR_STORE__LEADER_LEASE_SECONDS="0.5",
        CONVEYOR_AGENTS__DEFAULTS__SUBAGENTS__MAX_SPAWN_DEPTH="3",
    )
    async with driver(config) as found:
        yield found
