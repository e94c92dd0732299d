"""Stands between a worker and the scheduler and keeps account of what is reserved and settled."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc

from conveyor.scheduler.v1 import limit_service_pb2 as limit_pb

RESERVE = "/conveyor.scheduler.v1.LimitService/Reserve"
REPORT = "/conveyor.scheduler.v1.LimitService/Report"


@dataclass
class Ledger:
    """What a scheduler has granted and not heard of yet, and what it has been told was used.

    Both are never more than the scheduler itself has at that moment: a reservation counts from the
    answer that grants it until the report of it is sent; what a report says, once it is answered.
    """

    outstanding: dict[str, int] = field(default_factory=dict)
    settled: int = 0
    totals: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    """By run: what was settled and reserved in all whenever it was granted a call."""
    most_at_once: int = 0
    """The most reservations at a time."""
    refused: list[limit_pb.ReserveRefused] = field(default_factory=list)

    def granted(self, run_id: str, reservation_id: str, tokens: int) -> None:
        """A call may be made."""
        self.outstanding[reservation_id] = tokens
        self.totals[run_id].append(self.settled + sum(self.outstanding.values()))
        self.most_at_once = max(self.most_at_once, len(self.outstanding))

    def reporting(self, reservation_id: str) -> None:
        """Its report is on its way."""
        self.outstanding.pop(reservation_id, None)

    def reported(self, tokens: int) -> None:
        """The report was taken."""
        self.settled += tokens


class Tap(grpc.GenericRpcHandler):
    """Passes every call on. `ledger_of` says whose account a run's calls go to, if anybody's."""

    def __init__(self, target: grpc.Channel, ledger_of: Callable[[str], Ledger | None]) -> None:
        self._target = target
        self._ledger_of = ledger_of
        self._lock = threading.Lock()

    def service(self, details: Any) -> Any:
        """Every method is passed on as bytes."""
        forward = self._target.unary_unary(details.method)

        def handle(request: bytes, context: grpc.ServicerContext) -> bytes:
            with self._lock:
                self._before(details.method, request)
            call = forward.future(
                request, timeout=context.time_remaining(), metadata=context.invocation_metadata()
            )
            context.add_callback(call.cancel)
            try:
                response: bytes = call.result()
            except grpc.RpcError as err:
                context.set_trailing_metadata(call.trailing_metadata() or ())
                context.set_code(err.code())
                context.set_details(err.details() or "")
                return b""
            except grpc.FutureCancelledError:
                return b""
            with self._lock:
                self._after(details.method, request, response)
            return response

        return grpc.unary_unary_rpc_method_handler(handle)

    def _before(self, method: str, request: bytes) -> None:
        if method == REPORT:
            report = limit_pb.ReportRequest.FromString(request)
            if (ledger := self._ledger_of(report.call.run_id)) is not None:
                ledger.reporting(report.reservation_id)

    def _after(self, method: str, request: bytes, response: bytes) -> None:
        if method == REPORT:
            report = limit_pb.ReportRequest.FromString(request)
            if (ledger := self._ledger_of(report.call.run_id)) is not None:
                ledger.reported(report.usage.input_tokens + report.usage.output_tokens)
        elif method == RESERVE:
            asked = limit_pb.ReserveRequest.FromString(request)
            answer = limit_pb.ReserveResponse.FromString(response)
            if (ledger := self._ledger_of(asked.call.run_id)) is None:
                return
            if answer.HasField("refused"):
                ledger.refused.append(answer.refused)
            else:
                ledger.granted(
                    asked.call.run_id, answer.granted.reservation_id, asked.estimated_tokens
                )


@contextmanager
def tapped(address: str, target: str, ledger_of: Callable[[str], Ledger | None]) -> Iterator[None]:
    """Serve at `address` what `target` answers."""
    with (
        grpc.insecure_channel(target) as channel,
        # A poll for work keeps its thread until there is some.
        ThreadPoolExecutor(32, "tap") as threads,
    ):
        server = grpc.server(threads, handlers=[Tap(channel, ledger_of)])
        server.add_insecure_port(address)
        server.start()
        try:
            yield
        finally:
            server.stop(0.5).wait()
