"""A scheduler that does what the test says, over real gRPC: hands out leases, notes what comes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from google.protobuf import any_pb2

from conveyor.agent.v1 import task_pb2 as task_pb
from conveyor.common.v1 import content_pb2
from conveyor.events.v1 import event_log_service_pb2 as log_pb
from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import announcement_pb2 as ann
from conveyor.scheduler.v1 import limit_service_pb2 as limit_pb
from conveyor.scheduler.v1 import run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as sched
from conveyor.scheduler.v1 import worker_service_pb2 as ws
from svckit.errors import LeaseLost, RunNotFound, ServiceError, invalid_field
from svckit.grpc.status import to_proto
from svckit.testing import ScriptedServicer

SESSION = "agent:main:http:direct:local"


class FakeScheduler:
    """The four services that the agent calls. Run ids of children are `C1`, `C2`, ..."""

    def __init__(self) -> None:
        self.ends: dict[str, Any] = {}
        self.children: dict[str, sched.EnqueueItem] = {}
        self.child_ids: dict[str, str] = {}
        self.events: dict[str, event_pb2.Event] = {}
        self.deltas: list[event_pb2.MessageDelta] = []
        self.reports: dict[str, limit_pb.ReportRequest] = {}
        self.reserved: list[limit_pb.ReserveRequest] = []
        # What the next reservations get: seconds to wait, or a refusal. Then they go at once.
        self.reservations: list[float | ServiceError] = []
        # What every report is told.
        self.over_budget: ServiceError | None = None
        self.runs: dict[str, run_pb2.Run] = {}
        self.lost: set[str] = set()
        self.cancelled: set[str] = set()
        self.steered: dict[str, list[run_pb2.RunInput]] = {}
        self.refuse: Callable[[sched.EnqueueItem], ServiceError | None] = lambda _: None
        self._ready: asyncio.Queue[ws.LeasedRun] = asyncio.Queue()
        self._ended = asyncio.Condition()
        self._token = 0
        worker = ScriptedServicer("conveyor.scheduler.v1.WorkerService")
        worker.always("LeaseRuns", self._lease_runs)
        worker.always("ExtendLeases", self._extend)
        worker.always("SuspendRun", lambda r: self._end(r.lease_id, r, ws.SuspendRunResponse()))
        worker.always("FailRun", lambda r: self._end(r.lease_id, r, ws.FailRunResponse()))
        worker.always("ReleaseRun", lambda r: self._end(r.lease_id, r, ws.ReleaseRunResponse()))
        worker.always("CompleteRuns", self._complete)
        scheduler = ScriptedServicer("conveyor.scheduler.v1.SchedulerService")
        scheduler.always("EnqueueRuns", self._enqueue)
        scheduler.always("GetRun", self._get_run)
        scheduler.always("ListRuns", self._list_runs)
        log = ScriptedServicer("conveyor.events.v1.EventLogService")
        log.always("AppendEvents", self._append)
        limits = ScriptedServicer("conveyor.scheduler.v1.LimitService")
        limits.always("Report", self._report)
        limits.always("Reserve", self._reserve)
        self.worker, self.scheduler, self.log, self.limits = worker, scheduler, log, limits
        # Not the scheduler's, but asked by the agent as well; not there unless it is scripted.
        self.acp = ScriptedServicer("conveyor.acp.v1.AcpService")
        self.servicers = (worker, scheduler, log, limits, self.acp)

    # What a test does

    def lease(self, leased: ws.LeasedRun) -> str:
        """Hand a run out; returns the lease id."""
        self._ready.put_nowait(leased)
        return leased.lease.lease_id

    def leased(
        self,
        text: str,
        *,
        run_id: str = "R1",
        session: str = SESSION,
        turn: int = 1,
        attempt: int = 1,
        depth: int = 0,
        max_depth: int | None = None,
        epoch: int = 0,
        delivers_later: bool = True,
        task: task_pb.AgentTask | None = None,
        parent: str = "",
        resumption: ann.Resumption | None = None,
        previous: Iterable[tuple[str, run_pb2.RunState.ValueType, int]] = (),
        steered: Iterable[run_pb2.RunInput] = (),
        budgeted: bool = False,
    ) -> ws.LeasedRun:
        """Build a lease of a run that answers `text`."""
        packed = any_pb2.Any()
        packed.Pack(task or task_pb.AgentTask(agent_id="main"))
        self._token += 1
        run = run_pb2.Run(
            run_id=run_id,
            turn=turn,
            attempt=attempt,
            state=run_pb2.RUN_STATE_RUNNING,
            spec=run_pb2.RunSpec(
                session_key=session,
                queue="agent",
                task=packed,
                session_epoch=epoch,
                reply_route=run_pb2.ReplyRoute(delivers_later=delivers_later),
            ),
            inputs=[said(f"q-{run_id}", text)],
            spawn=run_pb2.SpawnLink(flow_id=run_id, depth=depth, parent_run_id=parent),
        )
        if max_depth is not None:
            run.spec.budget.max_depth = max_depth
        self.runs[run_id] = run
        lease = ws.Lease(
            lease_id=f"{run_id}:{self._token}",
            run_id=run_id,
            turn=turn,
            attempt=attempt,
            fencing_token=self._token,
        )
        lease.ttl.FromSeconds(15)
        return ws.LeasedRun(
            run=run,
            lease=lease,
            resumption=resumption,
            steered=steered,
            budgeted=budgeted,
            previous_runs=[
                ws.PreviousRun(run_id=other, state=state, turn=last)
                for other, state, last in previous
            ],
        )

    async def ended(self, lease_id: str) -> Any:
        """Wait for the call that ends a turn. The first use of an SDK imports for seconds."""
        async with asyncio.timeout(30), self._ended:
            await self._ended.wait_for(lambda: lease_id in self.ends)
            return self.ends[lease_id]

    async def answer(self, leased: ws.LeasedRun) -> Any:
        """Hand a run out and wait for the end of its turn."""
        return await self.ended(self.lease(leased))

    def child_result(self, run_id: str, text: str = "found", **fields: Any) -> ann.ChildResult:
        """How a child ended."""
        item = self.children[run_id]
        status = fields.pop("status", run_pb2.RUN_STATE_SUCCEEDED)
        return ann.ChildResult(
            run_id=run_id,
            tool_call_id=item.tool_call_id,
            label=item.spec.label,
            status=status,
            text=text,
            **fields,
        )

    def resumption(
        self,
        *children: ann.ChildResult,
        reason: ann.ResumeReason.ValueType = ann.RESUME_REASON_CHILDREN_SETTLED,
        lane_released: bool = False,
    ) -> ann.Resumption:
        """Why a turn begins."""
        return ann.Resumption(reason=reason, children=children, lane_released=lane_released)

    def texts(self) -> list[str]:
        """Kinds and tool call ids of the events, in order."""
        found = []
        for event in self.events.values():
            kind = str(event.WhichOneof("payload"))
            payload = getattr(event, kind)
            found.append(f"{kind} {getattr(payload, 'tool_call_id', '')}".strip())
        return found

    # What the agent calls

    async def _lease_runs(self, request: ws.LeaseRunsRequest) -> ws.LeaseRunsResponse:
        try:
            async with asyncio.timeout(request.wait.ToMilliseconds() / 1000):
                return ws.LeaseRunsResponse(leased_runs=[await self._ready.get()])
        except TimeoutError:
            return ws.LeaseRunsResponse()

    def _extend(self, request: ws.ExtendLeasesRequest) -> ws.ExtendLeasesResponse:
        statuses = []
        for lease_id in request.lease_ids:
            if lease_id in self.lost or lease_id in self.ends:
                statuses.append(ws.LeaseStatus(lost=True))
                continue
            lease = ws.Lease(lease_id=lease_id)
            lease.ttl.FromSeconds(15)
            statuses.append(
                ws.LeaseStatus(
                    lease=lease,
                    cancel_requested=lease_id in self.cancelled,
                    cancel_reason="told to" if lease_id in self.cancelled else "",
                    steered=self.steered.get(lease_id, []),
                )
            )
        return ws.ExtendLeasesResponse(statuses=statuses)

    async def _end(self, lease_id: str, request: Any, response: Any) -> Any:
        self._check(lease_id)
        async with self._ended:
            self.ends[lease_id] = request
            self._ended.notify_all()
        return response

    async def _complete(self, request: ws.CompleteRunsRequest) -> ws.CompleteRunsResponse:
        (item,) = request.completions
        run = self.runs[item.lease_id.partition(":")[0]]
        result = ws.CompletionResult(run=run)
        await self._end(item.lease_id, item, None)
        return ws.CompleteRunsResponse(results=[result])

    def _enqueue(self, request: sched.EnqueueRunsRequest) -> sched.EnqueueRunsResponse:
        if not 1 <= len(request.items) <= 256:
            raise invalid_field("items", "1 to 256 items")
        results = []
        for item in request.items:
            self._check(item.parent_lease_id)
            if (error := self.refuse(item)) is not None:
                results.append(sched.EnqueueResult(error=to_proto(error)))
                continue
            child = self.child_ids.setdefault(item.request_id, f"C{len(self.child_ids) + 1}")
            known = child in self.children
            self.children[child] = item
            run = run_pb2.Run(run_id=child, spec=run_pb2.RunSpec(session_key=f"s:{child}"))
            accepted = sched.AcceptedRun(run=run, deduplicated=known)
            results.append(sched.EnqueueResult(accepted=accepted))
        return sched.EnqueueRunsResponse(results=results)

    def _append(self, request: log_pb.AppendEventsRequest) -> log_pb.AppendEventsResponse:
        if len(request.events) > 256 or request.ByteSize() > 2 * 1024 * 1024:
            raise invalid_field("events", "at most 256 events, at most 2 MiB")
        self._check(request.lease_id)
        self.deltas.extend(request.deltas)
        for event in request.events:
            self.events.setdefault(event.event_id, event)
        return log_pb.AppendEventsResponse(last_sequence=len(self.events))

    def _reserve(self, request: limit_pb.ReserveRequest) -> limit_pb.ReserveResponse:
        self._check(request.lease_id)
        self.reserved.append(request)
        answer = self.reservations.pop(0) if self.reservations else 0.0
        if isinstance(answer, ServiceError):
            refusal = limit_pb.ReserveRefusal(error=to_proto(answer))
            return limit_pb.ReserveResponse(refused=refusal)
        grant = limit_pb.ReserveGrant(reservation_id=request.request_id)
        if answer:
            grant.delay.FromMilliseconds(round(answer * 1000))
            grant.limit = "requests_per_minute"
        return limit_pb.ReserveResponse(granted=grant)

    def _report(self, request: limit_pb.ReportRequest) -> limit_pb.ReportResponse:
        self.reports.setdefault(request.request_id, request)
        over = to_proto(self.over_budget) if self.over_budget else None
        return limit_pb.ReportResponse(budget_error=over)

    def _get_run(self, request: sched.GetRunRequest) -> Any:
        run = self.runs.get(request.run_id)
        return RunNotFound("gone") if run is None else sched.GetRunResponse(run=run)

    def _list_runs(self, request: sched.ListRunsRequest) -> sched.ListRunsResponse:
        key = request.filter.session_key
        runs = [run for run in self.runs.values() if run.spec.session_key == key]
        return sched.ListRunsResponse(runs=runs)

    def _check(self, lease_id: str) -> None:
        if lease_id in self.lost:
            raise LeaseLost("a newer lease exists")


def said(request_id: str, text: str) -> run_pb2.RunInput:
    """A message of a person."""
    message = content_pb2.Message(
        message_id=f"m-{request_id}",
        role=content_pb2.ROLE_USER,
        parts=[content_pb2.ContentPart(text=text)],
    )
    return run_pb2.RunInput(request_id=request_id, message=message)


def reply_text(completion: ws.RunCompletion) -> str:
    """What a turn replied."""
    return "".join(part.text for part in completion.result.reply.parts)
