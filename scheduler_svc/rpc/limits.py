"""`LimitService`: asks before a model call, and counts after it what it used."""

from __future__ import annotations

from google.rpc import status_pb2

from conveyor.common.v1 import usage_pb2
from conveyor.scheduler.v1 import limit_service_pb2 as pb
from conveyor.scheduler.v1 import limit_service_pb2_grpc as pb_grpc
from scheduler_svc.domain import accounting, budgets, leasing, reserving
from scheduler_svc.domain.kernel import Kernel
from scheduler_svc.domain.limits import Outcome
from scheduler_svc.domain.records import Usage
from scheduler_svc.domain.reserving import Grant
from scheduler_svc.engine import Engine
from scheduler_svc.rpc import CallContext, convert, validate
from svckit.errors import BudgetExceeded, RunNotFound, invalid_field
from svckit.grpc import status as grpc_status

MOST_TOKENS = 1_000_000_000
MOST_COST = 10**12


class LimitServicer(pb_grpc.LimitServiceServicer):
    """Translates; the rules are in `domain.reserving`, `domain.limits` and `domain.accounting`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def Reserve(self, request: pb.ReserveRequest, context: CallContext) -> pb.ReserveResponse:
        """See the contract."""
        validate.text(request.request_id, "request_id", 128)
        call = request.call
        _check_call(call)
        if not 1 <= request.estimated_tokens <= MOST_TOKENS:
            raise invalid_field("estimated_tokens", f"must be 1 to {MOST_TOKENS:,}")
        if not 0 <= request.estimated_cost_micros_usd <= MOST_COST:
            raise invalid_field("estimated_cost_micros_usd", f"must be 0 to {MOST_COST:,}")
        lease = None
        if call.run_id:
            validate.text(call.run_id, "call.run_id", 64)
            lease = validate.lease_id(request.lease_id)
            if lease[0] != call.run_id:
                raise invalid_field("lease_id", "is not of the run in call.run_id")

        def apply(k: Kernel, now: int) -> Grant | BudgetExceeded:
            run = None
            if lease is not None:
                if lease[0] not in k.runs and lease[0] not in k.ended:
                    raise _no_run(lease[0])
                run = leasing.leased_run(k, *lease)
            try:
                return reserving.reserve(
                    k,
                    run,
                    request.request_id,
                    provider_id=call.provider_id,
                    credential_id=call.credential_id,
                    model=call.model,
                    tokens=request.estimated_tokens,
                    cost=request.estimated_cost_micros_usd,
                    now=now,
                )
            except BudgetExceeded as refused:
                return refused

        answer = await self._engine.submit(apply, runs=[call.run_id] if call.run_id else [])
        if isinstance(answer, BudgetExceeded):
            refusal = pb.ReserveRefusal(error=grpc_status.to_proto(answer))
            return pb.ReserveResponse(refused=refusal)
        return pb.ReserveResponse(granted=convert.reserve_grant(answer))

    async def Report(self, request: pb.ReportRequest, context: CallContext) -> pb.ReportResponse:
        """See the contract."""
        validate.text(request.request_id, "request_id", 128)
        if not Outcome.ANSWERED <= request.outcome <= Outcome.NOT_SENT:
            raise invalid_field("outcome", "is required")
        validate.text(request.reservation_id, "reservation_id", 128, required=False)
        if len(request.requested_model) > 256:
            raise invalid_field("requested_model", "must be at most 256 characters")
        call = request.call
        _check_call(call)
        outcome = Outcome(request.outcome)
        used = _usage(request.usage)
        asked = validate.micros(request.retry_after, "retry_after")
        run_id = call.run_id
        runs, sessions = await self._ancestry(run_id) if run_id else ([], [])
        model = f"{call.provider_id}:{call.model}" if call.model else call.provider_id
        said = validate.body_hash("report", run_id, model, request.usage)
        report_id = f"report/{request.request_id}"

        def apply(k: Kernel, now: int) -> tuple[int, status_pb2.Status | None]:
            error, news = None, True
            if run_id:
                news = accounting.report(
                    k, run_id, report_id, said, used, request.requested_model, model, now
                )
                over = budgets.overspent(k, k.runs.get(run_id) or k.ended[run_id])
                error = grpc_status.to_proto(over) if over is not None else None
            if not news and request.reservation_id not in k.limits.reservations:
                return 0, error  # repeated: what it changed has been changed
            key = k.limits.key(call.provider_id, call.credential_id, call.model)
            reservation = request.reservation_id
            return reserving.settle(k, reservation, key, outcome, used.tokens, asked, now), error

        cool, error = await self._engine.submit(
            apply, requests=[report_id] if run_id else [], runs=runs, sessions=sessions
        )
        return pb.ReportResponse(cool_down_until=convert.timestamp(cool), budget_error=error)

    async def _ancestry(self, run_id: str) -> tuple[list[str], list[str]]:
        """The run and its ancestors, and its session: reports may come after all have ended."""
        validate.text(run_id, "call.run_id", 64)
        runs: list[str] = []
        sessions: list[str] = []
        next_id = run_id
        while next_id:
            found = (await self._engine.store.get_runs([next_id])).get(next_id)
            if found is None:
                raise _no_run(next_id)
            runs.append(next_id)
            sessions = sessions or [found.run.session_key]
            next_id = found.run.parent_id
        return runs, sessions


def _check_call(call: pb.ModelCall) -> None:
    validate.text(call.provider_id, "call.provider_id", 64)
    validate.text(call.credential_id, "call.credential_id", 64, required=False)
    if len(call.model) > 256:
        raise invalid_field("call.model", "must be at most 256 characters")


def _no_run(run_id: str) -> RunNotFound:
    return RunNotFound(f"no run has the id {run_id!r}", metadata={"runId": run_id})


def _usage(value: usage_pb2.Usage) -> Usage:
    used = Usage(
        model_calls=value.model_calls,
        input_tokens=value.input_tokens,
        cached_input_tokens=value.cached_input_tokens,
        output_tokens=value.output_tokens,
        cost_micros_usd=value.cost_micros_usd,
        unpriced_calls=value.unpriced_calls,
    )
    for name in used.__struct_fields__:
        if getattr(used, name) < 0:
            raise invalid_field(f"usage.{name}", "must not be negative")
    return used
