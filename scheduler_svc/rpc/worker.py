"""`WorkerService`: hands runs to workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from google.rpc import error_details_pb2, status_pb2

from conveyor.scheduler.v1 import run_pb2
from conveyor.scheduler.v1 import worker_service_pb2 as pb
from conveyor.scheduler.v1 import worker_service_pb2_grpc as pb_grpc
from scheduler_svc.domain import leasing, turns
from scheduler_svc.domain.kernel import Kernel
from scheduler_svc.domain.leasing import Leased
from scheduler_svc.domain.questions import MOST_OPEN
from scheduler_svc.domain.records import AnnounceMode, Failure, Run, Wait, WaitKind
from scheduler_svc.engine import Engine
from scheduler_svc.rpc import OF_THE_CALL, CallContext, convert, side_by_side, validate
from svckit.errors import RunNotFound, ServiceError, invalid_field
from svckit.failpoints import failpoint
from svckit.grpc import status as grpc_status

# An answer must leave before the caller's deadline.
POLL_MARGIN_SECONDS = 1.0
RESPONSE_BYTES = 3_500_000


class WorkerServicer(pb_grpc.WorkerServiceServicer):
    """Translates; the rules are in `domain.leasing` and `domain.turns`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def LeaseRuns(
        self, request: pb.LeaseRunsRequest, context: CallContext
    ) -> pb.LeaseRunsResponse:
        """See the contract."""
        _check_worker(request.worker)
        if request.queue not in validate.QUEUES:
            raise invalid_field("queue", "must be agent or acp")
        if not 0 <= request.max_runs <= 64:
            raise invalid_field("max_runs", "must be 0 to 64")
        wait = validate.micros(request.wait, "wait") / 1e6
        wait = min(wait, 60.0)
        remaining = context.time_remaining()
        if remaining is not None:
            wait = min(wait, max(0.0, remaining - POLL_MARGIN_SECONDS))
        held = None
        if request.HasField("held"):
            if len(request.held.lease_ids) > 1024:
                raise invalid_field("held.lease_ids", "must be at most 1024")
            held = {validate.lease_id(value, "held.lease_ids") for value in request.held.lease_ids}
        leased = await self._engine.lease(
            request.queue,
            request.worker.name,
            request.worker.incarnation,
            request.max_runs,
            wait,
            held,
        )
        response = pb.LeaseRunsResponse()
        room = RESPONSE_BYTES
        for item in leased:
            message = await self._leased_run(item)
            room -= message.ByteSize()
            if room < 0 and response.leased_runs:
                # Too much for one answer: back to the head of its lane, uncounted.
                await self._engine.give_back([item])
                continue
            response.leased_runs.append(message)
        if response.leased_runs:
            failpoint("scheduler.lease.unanswered")
        return response

    async def _leased_run(self, item: Leased) -> pb.LeasedRun:
        run = item.run
        wanted = [run.run_id] if run.has_result else []
        if item.resumption is not None:
            wanted += [*item.resumption.told, *item.resumption.live]
        stored = await self._engine.store.get_runs(wanted) if wanted else {}
        own = stored.get(run.run_id)
        payload = own.payload if own else await self._engine.payload(run.run_id)
        message = convert.run_message(run, payload or b"", own.result if own else None)
        told = item.resumption.told if item.resumption else []
        links = self._engine.spans.links(
            item,
            [stored[child].run for child in told if child in stored],
            [entry.trace for entry in message.inputs[1:]],
        )
        self._engine.spans.leased(item)
        leased = pb.LeasedRun(
            run=message,
            lease=convert.lease(item.lease, run, self._engine.now()),
            resumption=convert.resumption(item.resumption, stored, item.grant)
            if item.resumption
            else None,
            budgeted=item.capped,
            previous_runs=[convert.previous_run(previous) for previous in item.previous],
            links=links,
        )
        room = RESPONSE_BYTES - leased.ByteSize()
        leased.steered.extend(convert.steered(item.steered, item.answers, room))
        return leased

    async def ExtendLeases(
        self, request: pb.ExtendLeasesRequest, context: CallContext
    ) -> pb.ExtendLeasesResponse:
        """See the contract."""
        _check_worker(request.worker)
        if not 1 <= len(request.lease_ids) <= 256:
            raise invalid_field("lease_ids", "must hold 1 to 256 leases")
        leases = [validate.lease_id(value, "lease_ids") for value in request.lease_ids]
        name, incarnation = request.worker.name, request.worker.incarnation

        def apply(k: Kernel, now: int) -> list[pb.LeaseStatus]:
            found, room = [], RESPONSE_BYTES
            for status in leasing.extend(k, name, incarnation, leases, now):
                found.append(convert.lease_status(status, now, room))
                room -= found[-1].ByteSize()
            return found

        return pb.ExtendLeasesResponse(statuses=await self._engine.submit(apply))

    async def SuspendRun(
        self, request: pb.SuspendRunRequest, context: CallContext
    ) -> pb.SuspendRunResponse:
        """See the contract."""
        end = _turn_end(request)
        interim = b""
        if request.HasField("interim_reply"):
            validate.user_message(request.interim_reply, "interim_reply")
            validate.size(request.interim_reply, "interim_reply", 16 * validate.KIB)
            interim = request.interim_reply.SerializeToString()
        wait = _wait(request)
        yield_after = validate.micros(request.yield_after, "yield_after")
        ends_after = _ends_after(request)

        def apply(k: Kernel, now: int) -> Run:
            if ends_after is not None:
                wait.expire_time = now + ends_after
            if yield_after and request.hold_session_lane:
                wait.yield_time = now + yield_after
            return turns.suspend(
                k,
                *end,
                wait=wait,
                hold_lane=request.hold_session_lane,
                interim=interim,
                taken=list(request.taken_request_ids),
                keep=request.keep_lease,
                now=now,
            )

        asked = request.condition.approval.question_ids
        return pb.SuspendRunResponse(run=await self._ended(end, apply, asked))

    async def CompleteRuns(
        self, request: pb.CompleteRunsRequest, context: CallContext
    ) -> pb.CompleteRunsResponse:
        """See the contract."""
        if not 1 <= len(request.completions) <= 256:
            raise invalid_field("completions", "must hold 1 to 256 items")
        results = await side_by_side([self._complete(item) for item in request.completions])
        failpoint("scheduler.end.unanswered")
        return pb.CompleteRunsResponse(results=results)

    async def _complete(self, completion: pb.RunCompletion) -> pb.CompletionResult:
        try:
            return pb.CompletionResult(run=await self._completed(completion))
        except OF_THE_CALL:
            raise
        except ServiceError as err:
            return pb.CompletionResult(error=grpc_status.to_proto(err))

    async def _completed(self, completion: pb.RunCompletion) -> run_pb2.Run:
        end = _turn_end(completion)
        result: bytes | None = None
        reply: bytes | None = None
        if completion.HasField("result"):
            validate.size(completion.result.details, "result.details", 64 * validate.KIB)
            if completion.result.HasField("reply"):
                validate.user_message(completion.result.reply, "result.reply")
                reply = completion.result.reply.SerializeToString()
            result = completion.result.SerializeToString()
        each = completion.announce_mode == run_pb2.ANNOUNCE_MODE_EACH

        def apply(k: Kernel, now: int) -> Run:
            return turns.complete(
                k,
                *end,
                result=result,
                reply=reply,
                mode=AnnounceMode.EACH if each else AnnounceMode.ALL,
                taken=list(completion.taken_request_ids),
                steered_is_next_prompt=completion.steered_is_next_prompt,
                now=now,
            )

        return await self._ended(end, apply)

    async def FailRun(self, request: pb.FailRunRequest, context: CallContext) -> pb.FailRunResponse:
        """See the contract."""
        end = _turn_end(request)
        if not request.HasField("error") or not request.error.code:
            raise invalid_field("error", "is required, with a code other than OK")
        validate.size(request.error, "error", 8 * validate.KIB)
        failure, retry_after = _failure(request.error)

        def apply(k: Kernel, now: int) -> Run:
            return turns.fail(
                k,
                *end,
                failure=failure,
                retryable=request.retryable,
                retry_after=retry_after,
                taken=list(request.taken_request_ids),
                now=now,
            )

        return pb.FailRunResponse(run=await self._ended(end, apply))

    async def ReleaseRun(
        self, request: pb.ReleaseRunRequest, context: CallContext
    ) -> pb.ReleaseRunResponse:
        """See the contract."""
        end = _turn_end(request)
        run = await self._ended(end, lambda k, now: turns.release(k, *end, now))
        return pb.ReleaseRunResponse(run=run)

    async def _ended(
        self,
        end: _TurnEnd,
        apply: Callable[[Kernel, int], Run],
        questions: Sequence[str] = (),
    ) -> run_pb2.Run:
        """Applies the end of a turn, and answers with the run as it was right after it."""
        run = await self._engine.submit(
            lambda k, now: leasing.copy(apply(k, now)), runs=[end.run_id], questions=questions
        )
        payload = await self._engine.payload(run.run_id)
        if payload is None:
            raise RunNotFound("no such run", metadata={"runId": run.run_id})
        return convert.run_message(run, payload, brief=True)


class _TurnEnd(NamedTuple):
    """Under which lease a turn ends, and the fingerprint that a repeated call is known by."""

    run_id: str
    token: int
    digest: str


def _turn_end(
    request: pb.SuspendRunRequest | pb.RunCompletion | pb.FailRunRequest | pb.ReleaseRunRequest,
) -> _TurnEnd:
    return _TurnEnd(*validate.lease_id(request.lease_id), validate.digest(request))


def _check_worker(worker: pb.Worker) -> None:
    validate.text(worker.name, "worker.name", 64)
    if worker.incarnation <= 0:
        raise invalid_field("worker.incarnation", "must be above 0, greater at every start")


def _wait(request: pb.SuspendRunRequest) -> Wait:
    match request.condition.WhichOneof("condition"):
        case "children":
            children = request.condition.children
            if len(children.run_ids) > 100:
                raise invalid_field("condition.children.run_ids", "must be at most 100")
            each = children.mode == run_pb2.ANNOUNCE_MODE_EACH
            return Wait(
                kind=WaitKind.CHILDREN,
                run_ids=list(children.run_ids),
                mode=AnnounceMode.EACH if each else AnnounceMode.ALL,
            )
        case "limit":
            limit = request.condition.limit
            if limit.WhichOneof("limit") is None:
                raise invalid_field("condition.limit", "must hold reservation_id or retry_after")
            if limit.HasField("reservation_id"):
                validate.text(limit.reservation_id, "condition.limit.reservation_id", 128)
            return Wait(
                kind=WaitKind.LIMIT, name=limit.name[:128], reservation=limit.reservation_id
            )
        case "approval":
            ids = list(request.condition.approval.question_ids)
            if not 1 <= len(ids) <= MOST_OPEN:
                raise invalid_field(
                    "condition.approval.question_ids", f"must hold 1 to {MOST_OPEN} questions"
                )
            return Wait(kind=WaitKind.APPROVAL, question_ids=ids)
        case _:
            raise invalid_field("condition", "is required")


def _ends_after(request: pb.SuspendRunRequest) -> int | None:
    # When the wait ends by itself; `None` means never.
    limit = request.condition.limit
    if request.condition.HasField("limit") and request.HasField("timeout"):
        raise invalid_field("timeout", "is not for a wait for a limit; leave it unset")
    if limit.HasField("retry_after"):
        return validate.micros(limit.retry_after, "condition.limit.retry_after")
    return validate.micros(request.timeout, "timeout") if request.HasField("timeout") else None


def _failure(status: status_pb2.Status) -> tuple[Failure, int]:
    reason, retry_after = "INTERNAL", 0
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            reason = info.reason or reason
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after = max(0, retry.retry_delay.ToMicroseconds())
    return Failure(reason, status.message, status=status.SerializeToString()), retry_after
