"""Reports what model calls used. Spent is spent: reports outlive the turn, and even its lease."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal, Protocol

from opentelemetry import trace

from conveyor.common.v1 import usage_pb2
from conveyor.scheduler.v1 import limit_service_pb2 as limit_pb
from svckit.backoff import full_jitter
from svckit.clock import Clock
from svckit.errors import PASSING, ServiceError
from svckit.grpc.client import call
from svckit.grpc.deadline import spawn
from svckit.grpc.status import from_proto
from svckit.logging import get_logger

if TYPE_CHECKING:
    from conveyor.scheduler.v1.limit_service_pb2_grpc import LimitServiceAsyncStub

PATIENCE_SECONDS = 2.0
LONGEST_TRY_SECONDS = 600.0
MOST_TOKENS = 1_000_000_000
"""Of one call. Who says more is mistaken: neither the contract nor a span can say any number."""

_OUTCOMES = {
    "throttled": limit_pb.CALL_OUTCOME_THROTTLED,
    "unavailable": limit_pb.CALL_OUTCOME_UNAVAILABLE,
    "rejected": limit_pb.CALL_OUTCOME_REJECTED,
}
_log = get_logger("svckit.usage")


def believable(tokens: int) -> int:
    """Return what a provider or a harness says that it used, within reason."""
    return max(0, min(tokens, MOST_TOKENS))


class Model(Protocol):
    """Who was asked: what a report needs to know of a model."""

    @property
    def provider_id(self) -> str:
        """The provider in the configuration."""
        ...

    @property
    def name(self) -> str:
        """The model without its provider."""
        ...


class UsageReporter:
    """Tells `LimitService` about model calls. Each report has an id, so that repeating is safe."""

    def __init__(self, stub: LimitServiceAsyncStub, clock: Clock) -> None:
        self._stub = stub
        self._clock = clock
        self._pending: set[asyncio.Task[limit_pb.ReportResponse | None]] = set()

    async def answered(
        self,
        request_id: str,
        run_id: str,
        provider_id: str,
        model: str,
        usage: usage_pb2.Usage,
        reservation_id: str = "",
        requested_model: str = "",
    ) -> None:
        """Report an answered call; a turn waits for it a moment, so that totals are soon right.

        `reservation_id` is the reservation that it settles, `requested_model` the one that was
        asked for first. Raises `BudgetExceeded` when the report passed a cap.
        """
        request = limit_pb.ReportRequest(
            reservation_id=reservation_id,
            request_id=request_id,
            call=limit_pb.ModelCall(provider_id=provider_id, model=model, run_id=run_id),
            outcome=limit_pb.CALL_OUTCOME_ANSWERED,
            usage=usage,
            requested_model=requested_model,
        )
        task = self._start(request)
        done, _ = await asyncio.wait({task}, timeout=PATIENCE_SECONDS)
        response = task.result() if done else None
        if response is not None and response.HasField("budget_error"):
            raise from_proto(response.budget_error)

    async def failed(
        self,
        request_id: str,
        run_id: str,
        model: Model,
        outcome: Literal["throttled", "unavailable", "rejected"],
        retry_after: float | None,
        reservation_id: str = "",
    ) -> None:
        """Report a call that was refused or not answered.

        A provider that takes no more now must be known before the call is made again: a turn waits
        a moment for that report, and for no other.
        """
        request = limit_pb.ReportRequest(
            reservation_id=reservation_id,
            request_id=request_id,
            call=limit_pb.ModelCall(provider_id=model.provider_id, model=model.name, run_id=run_id),
            outcome=_OUTCOMES[outcome],
        )
        if retry_after is not None:
            request.retry_after.FromMilliseconds(round(retry_after * 1000))
        task = self._start(request)
        if outcome == "throttled":
            await asyncio.wait({task}, timeout=PATIENCE_SECONDS)

    def settled(
        self, request_id: str, model: Model, usage: usage_pb2.Usage, reservation_id: str
    ) -> None:
        """Report an answered call outside a run. Nobody waits for it."""
        self._start(
            limit_pb.ReportRequest(
                reservation_id=reservation_id,
                request_id=request_id,
                call=limit_pb.ModelCall(provider_id=model.provider_id, model=model.name),
                outcome=limit_pb.CALL_OUTCOME_ANSWERED,
                usage=usage,
            )
        )

    def not_sent(self, reservation_id: str, run_id: str, model: Model) -> None:
        """Give a reservation back that was not used."""
        self._start(
            limit_pb.ReportRequest(
                reservation_id=reservation_id,
                request_id=reservation_id,
                call=limit_pb.ModelCall(
                    provider_id=model.provider_id, model=model.name, run_id=run_id
                ),
                outcome=limit_pb.CALL_OUTCOME_NOT_SENT,
            )
        )

    async def drain(self, seconds: float) -> None:
        """Give open reports a last chance."""
        if self._pending:
            await asyncio.wait(self._pending, timeout=seconds)
        for task in list(self._pending):
            task.cancel()
        await asyncio.gather(*self._pending, return_exceptions=True)

    def _start(
        self, request: limit_pb.ReportRequest
    ) -> asyncio.Task[limit_pb.ReportResponse | None]:
        # Not of the turn's task, which it may outlive, but of its trace.
        span = trace.get_current_span()
        task = spawn(self._report(request, span), name="usage")
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)
        return task

    async def _report(
        self, request: limit_pb.ReportRequest, span: trace.Span
    ) -> limit_pb.ReportResponse | None:
        give_up = self._clock.now_us() + LONGEST_TRY_SECONDS * 1_000_000
        pauses = full_jitter(0.2, 10.0)
        while True:
            try:
                with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                    return await call(self._stub.Report(request), service="scheduler")
            except PASSING:
                if self._clock.now_us() > give_up:
                    _log.warning("usage was not reported", request_id=request.request_id)
                    return None
                await self._clock.sleep(next(pauses))
            except ServiceError as err:
                _log.warning("usage was refused", reason=err.reason)
                return None
