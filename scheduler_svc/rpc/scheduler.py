"""`SchedulerService`: accepts runs and answers questions about them."""

from __future__ import annotations

from conveyor.scheduler.v1 import explain_pb2, lane_pb2, run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as pb
from conveyor.scheduler.v1 import scheduler_service_pb2_grpc as pb_grpc
from scheduler_svc.domain import admission, estimates, lanes, leasing, settling, steering
from scheduler_svc.domain.kernel import Kernel
from scheduler_svc.domain.records import Run
from scheduler_svc.engine import Engine
from scheduler_svc.forecast.desk import Desk
from scheduler_svc.rpc import (
    OF_THE_CALL,
    CallContext,
    answers,
    convert,
    questions,
    side_by_side,
    validate,
)
from scheduler_svc.rpc.forecast import forecast
from scheduler_svc.rpc.pages import position, run_query, runs_page, token_after
from svckit import tracecontext
from svckit.errors import (
    LaneNotFound,
    RunNotFound,
    ServiceError,
    invalid_field,
)
from svckit.failpoints import failpoint
from svckit.grpc import status as grpc_status


class SchedulerServicer(pb_grpc.SchedulerServiceServicer):
    """Translates; the rules are in `domain`."""

    def __init__(self, engine: Engine, defaults: validate.NewRunDefaults, desk: Desk) -> None:
        self._engine = engine
        self._defaults = defaults
        self._desk = desk

    async def EnqueueRuns(
        self, request: pb.EnqueueRunsRequest, context: CallContext
    ) -> pb.EnqueueRunsResponse:
        """See the contract."""
        if not 1 <= len(request.items) <= 256:
            raise invalid_field("items", "must hold 1 to 256 items")
        results = await side_by_side([self._enqueue(item) for item in request.items])
        failpoint("scheduler.accept.unanswered")
        return pb.EnqueueRunsResponse(results=results)

    async def _enqueue(self, item: pb.EnqueueItem) -> pb.EnqueueResult:
        try:
            return pb.EnqueueResult(accepted=await self._accept(item))
        except OF_THE_CALL:
            raise
        except ServiceError as err:
            return pb.EnqueueResult(error=grpc_status.to_proto(err))

    async def _accept(self, item: pb.EnqueueItem) -> pb.AcceptedRun:
        coming = self._engine.spans.accepting(item.trace, self._engine.now())
        item.trace.CopyFrom(coming.stored)
        new = validate.enqueue_item(item, self._engine.now(), self._defaults)
        parent = validate.lease_id(item.parent_lease_id) if item.parent_lease_id else None

        def apply(
            k: Kernel, now: int
        ) -> tuple[admission.Accepted, Run | None, lane_pb2.QueueEstimate | None]:
            accepted = admission.enqueue(
                k, new, now, parent_lease=parent, tool_call_id=item.tool_call_id
            )
            run = k.runs.get(accepted.run_id)
            if run is None:
                return accepted, None, None
            told = estimates.estimate(k, run, now)
            if not accepted.deduplicated:
                if accepted.run_id == new.run_id:
                    run.told_position, run.told_start = told.position, told.start
                self._engine.spans.accepted(coming, run, accepted.outcome.name.lower())
            return accepted, leasing.copy(run), answers.queue_estimate(told, now)

        accepted, run, estimate = await self._engine.submit(
            apply,
            requests=[new.request_id],
            sessions=[] if parent else [new.session_key],
            runs=[parent[0]] if parent else [],
        )
        if run is None:  # a repeated request whose run has ended
            stored = await self._engine.store.get_runs([accepted.run_id])
            found = stored[accepted.run_id]
            run, payload = found.run, found.payload
            head = await self._engine.store.session_head(run.session_key) or 0
        else:
            payload = await self._engine.payload(run.run_id) or b""
            head = accepted.last_sequence
        outcome = lane_pb2.EnqueueOutcome.ValueType(int(accepted.outcome))
        if accepted.deduplicated:
            outcome = convert.outcome_of(payload, new.request_id)
        return pb.AcceptedRun(
            run=convert.run_message(run, payload, brief=True),
            outcome=outcome,
            deduplicated=accepted.deduplicated,
            estimate=estimate
            or lane_pb2.QueueEstimate(as_of_time=convert.timestamp(self._engine.now())),
            last_sequence=head,
        )

    async def GetRun(self, request: pb.GetRunRequest, context: CallContext) -> pb.GetRunResponse:
        """See the contract."""
        return pb.GetRunResponse(run=await self._run(request.run_id))

    async def _run(self, run_id: str, *, brief: bool = False) -> run_pb2.Run:
        validate.text(run_id, "run_id", 64)
        stored = await self._engine.store.get_runs([run_id])
        if run_id not in stored:
            raise _not_found(run_id)
        found = stored[run_id]
        return convert.run_message(found.run, found.payload, found.result, brief=brief)

    async def ListRuns(
        self, request: pb.ListRunsRequest, context: CallContext
    ) -> pb.ListRunsResponse:
        """See the contract."""
        size = validate.page_size(request.page_size, 50, 500)
        page, token = await runs_page(
            self._engine.store, run_query(request.filter), request.filter, request.page_token, size
        )
        runs = [convert.run_message(found.run, found.payload, brief=True) for found in page]
        return pb.ListRunsResponse(runs=runs, next_page_token=token)

    async def CancelRun(
        self, request: pb.CancelRunRequest, context: CallContext
    ) -> pb.CancelRunResponse:
        """See the contract."""
        count = await cancel(self._engine, request.run_id, request.reason)
        return pb.CancelRunResponse(
            run=await self._run(request.run_id, brief=True), affected_runs=count
        )

    async def SteerRun(
        self, request: pb.SteerRunRequest, context: CallContext
    ) -> pb.SteerRunResponse:
        """See the contract."""
        if request.HasField("answer"):
            asked = await questions.answer(self._engine, request)
            run = await self._run(asked.run_id, brief=True)
            return pb.SteerRunResponse(run=run, question=asked)
        validate.text(request.run_id, "run_id", 64)
        validate.text(request.request_id, "request_id", 128)
        validate.user_message(request.message, "message")
        said = validate.body_hash("steer", request.run_id, request.message)
        entry = run_pb2.RunInput(
            request_id=request.request_id,
            body_hash=said,
            message=request.message,
            trace=request.trace if request.trace.traceparent else tracecontext.current(),
        )
        entry.create_time.FromMicroseconds(self._engine.now())

        def apply(k: Kernel, now: int) -> None:
            if request.run_id not in k.runs and request.run_id not in k.ended:
                raise _not_found(request.run_id)
            steering.steer(
                k,
                request.run_id,
                request.request_id,
                said,
                entry.SerializeToString(),
                request.message.SerializeToString(),
                now,
                most=self._defaults.lane_cap,
            )

        await self._engine.submit(apply, requests=[request.request_id], runs=[request.run_id])
        return pb.SteerRunResponse(run=await self._run(request.run_id, brief=True))

    async def ListLanes(
        self, request: pb.ListLanesRequest, context: CallContext
    ) -> pb.ListLanesResponse:
        """See the contract."""
        size = validate.page_size(request.page_size, 50, 500)
        filters = pb.ListLanesRequest(kind=request.kind)
        start = position(request.page_token, filters)
        end = start + size
        page, more = await self._engine.submit(
            lambda k, now: _lanes(k, request.kind, slice(start, end))
        )
        token = token_after(end, filters) if more else ""
        return pb.ListLanesResponse(lanes=page, next_page_token=token)

    async def UpdateLane(
        self, request: pb.UpdateLaneRequest, context: CallContext
    ) -> pb.UpdateLaneResponse:
        """See the contract."""
        limit = request.limit if request.HasField("limit") else None
        if limit is not None and not 0 <= limit <= 1_000_000:
            raise invalid_field("limit", "must be 0 to 1,000,000; 0 pauses the lane")

        def apply(k: Kernel, now: int) -> lane_pb2.Lane:
            lane = k.lanes.get(request.name)
            if lane is None:
                raise LaneNotFound(
                    f"no global lane is named {request.name!r}; configured are: "
                    f"{', '.join(sorted(k.lanes))}",
                    metadata={"lane": request.name},
                )
            lane.limit = lane.configured if limit is None else limit
            k.changes.lanes[lane.name] = limit
            return _global_lane(k, lane)

        return pb.UpdateLaneResponse(lane=await self._engine.submit(apply))

    async def ExplainRun(
        self, request: pb.ExplainRunRequest, context: CallContext
    ) -> pb.ExplainRunResponse:
        """See the contract."""
        run_id = validate.text(request.run_id, "run_id", 64)

        def apply(k: Kernel, now: int) -> tuple[Run, explain_pb2.RunExplanation] | None:
            run = k.runs.get(run_id)
            if run is None:
                return None
            asked_for = any(
                k.may_take(run, worker, now) for worker in self._engine.asking(run.queue)
            )
            return leasing.copy(run), answers.explanation(k, run, now, asked_for=asked_for)

        found = await self._engine.submit(apply)
        if found is not None:
            run, explanation = found
            payload = await self._engine.payload(run_id) or b""
        else:
            stored = await self._engine.store.get_runs([run_id])
            if run_id not in stored:
                raise _not_found(run_id)
            run, payload = stored[run_id].run, stored[run_id].payload
            explanation = answers.ended(run)
        explanation.run.CopyFrom(convert.run_message(run, payload, brief=True))
        return pb.ExplainRunResponse(explanation=explanation)

    async def Forecast(
        self, request: pb.ForecastRequest, context: CallContext
    ) -> pb.ForecastResponse:
        """See the contract."""
        return await forecast(self._engine, self._desk, request)

    async def ListQuestions(
        self, request: pb.ListQuestionsRequest, context: CallContext
    ) -> pb.ListQuestionsResponse:
        """See the contract."""
        return await questions.list_page(self._engine.store, request)


async def cancel(engine: Engine, run_id: str, reason: str) -> int:
    """Cancels a run with its subtree. Returns how many runs that changed; raises `RunNotFound`."""
    validate.text(run_id, "run_id", 64)
    if len(reason) > 256:
        raise invalid_field("reason", "must be at most 256 characters")

    def apply(k: Kernel, now: int) -> int:
        run = k.runs.get(run_id)
        if run is not None:
            return settling.cancel(k, run, reason, "request", now)
        if run_id not in k.ended:
            raise _not_found(run_id)
        return 0

    return await engine.submit(apply, runs=[run_id])


def _not_found(run_id: str) -> RunNotFound:
    return RunNotFound(f"no run has the id {run_id!r}", metadata={"runId": run_id})


def _lanes(
    k: Kernel, kind: lane_pb2.LaneKind.ValueType, part: slice
) -> tuple[list[lane_pb2.Lane], bool]:
    # Only the page is made into messages: there may be thousands of sessions.
    found: list[lanes.GlobalLane | lanes.Session] = []
    if kind != lane_pb2.LANE_KIND_SESSION:
        found += k.lanes.values()
    if kind != lane_pb2.LANE_KIND_GLOBAL:
        found += k.sessions.values()
    page = [
        _session_lane(k, lane) if isinstance(lane, lanes.Session) else _global_lane(k, lane)
        for lane in found[part]
    ]
    return page, part.stop < len(found)


def _global_lane(k: Kernel, lane: lanes.GlobalLane) -> lane_pb2.Lane:
    oldest = min((k.runs[run_id].ready_since for run_id in lane.oldest), default=0)
    return convert.global_lane(lane, oldest)


def _session_lane(k: Kernel, session: lanes.Session) -> lane_pb2.Lane:
    holder = k.runs.get(session.holder)
    runs = [k.runs[run_id] for run_id in session.line()]
    return lane_pb2.Lane(
        kind=lane_pb2.LANE_KIND_SESSION,
        name=session.key,
        limit=1,
        configured_limit=1,
        running=int(holder is not None and holder.lease is not None),
        suspended=int(holder is not None and holder.wait is not None),
        waiting=len(runs),
        waiting_customers=len({run.customer_key for run in runs}),
        oldest_waiting_time=convert.timestamp(min((r.state_time for r in runs), default=0)),
    )
