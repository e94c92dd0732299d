"""`LimitService`: counts what model calls used. Provider limits and budgets come later."""

from __future__ import annotations

from conveyor.common.v1 import usage_pb2
from conveyor.scheduler.v1 import limit_service_pb2 as pb
from conveyor.scheduler.v1 import limit_service_pb2_grpc as pb_grpc
from scheduler_svc.domain import accounting
from scheduler_svc.domain.kernel import Kernel
from scheduler_svc.domain.records import Usage
from scheduler_svc.engine import Engine
from scheduler_svc.rpc import CallContext, validate
from svckit.errors import NotImplementedYet, RunNotFound, invalid_field


class LimitServicer(pb_grpc.LimitServiceServicer):
    """Translates; the rules are in `domain.accounting`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def Reserve(self, request: pb.ReserveRequest, context: CallContext) -> pb.ReserveResponse:
        """See the contract."""
        raise NotImplementedYet(
            "provider limits and budgets of tokens are not in this release; call the model without",
            metadata={"feature": "Reserve"},
        )

    async def Report(self, request: pb.ReportRequest, context: CallContext) -> pb.ReportResponse:
        """See the contract."""
        validate.text(request.request_id, "request_id", 128)
        if request.outcome == pb.CALL_OUTCOME_UNSPECIFIED:
            raise invalid_field("outcome", "is required")
        if request.reservation_id:
            raise invalid_field("reservation_id", "names no reservation; leave it empty")
        used = _usage(request.usage)
        if not request.call.run_id:
            return pb.ReportResponse()  # outside a run there is nothing to count it for
        run_id = request.call.run_id
        runs, sessions = await self._ancestry(run_id)
        call = request.call
        model = f"{call.provider_id}:{call.model}" if call.model else call.provider_id
        said = validate.body_hash("report", run_id, model, request.usage)

        def apply(k: Kernel, now: int) -> None:
            accounting.report(k, run_id, f"report/{request.request_id}", said, used, "", model, now)

        await self._engine.submit(
            apply, requests=[f"report/{request.request_id}"], runs=runs, sessions=sessions
        )
        return pb.ReportResponse()

    async def _ancestry(self, run_id: str) -> tuple[list[str], list[str]]:
        """The run and its ancestors, and its session: reports may come after all have ended."""
        validate.text(run_id, "call.run_id", 64)
        runs: list[str] = []
        sessions: list[str] = []
        next_id = run_id
        while next_id:
            found = (await self._engine.store.get_runs([next_id])).get(next_id)
            if found is None:
                raise RunNotFound(f"no run has the id {next_id!r}", metadata={"runId": next_id})
            runs.append(next_id)
            sessions = sessions or [found.run.session_key]
            next_id = found.run.parent_id
        return runs, sessions


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
