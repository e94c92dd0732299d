"""A turn as the worker holds it: its lease, its handler, its span."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from conveyor.scheduler.v1 import run_pb2
from conveyor.scheduler.v1 import worker_service_pb2 as ws
from svckit import failpoints
from svckit.errors import ServiceError
from svckit.grpc.status import from_proto
from svckit.turn import Fail, Handler, LeasedTurn, Outcome
from svckit.turnspan import NO_SPAN, TurnSpan

Keep = Callable[["HeldTurn", ws.SuspendRunRequest], Awaitable[None]]


class HeldTurn:
    """A turn that this worker holds."""

    def __init__(self, leased: ws.LeasedRun, keep: Keep, stop_seconds: float) -> None:
        self.stop_seconds = stop_seconds
        self.public = LeasedTurn(leased, lambda request: keep(self, request))
        self.span: TurnSpan = NO_SPAN
        # Set while the lease is kept: done when the next turn of the run has come.
        self.next_turn: asyncio.Future[None] | None = None
        self.ttl = 0.0
        self.expires_at = 0.0
        self.handler: asyncio.Task[Outcome] | None = None
        self.watchdog: asyncio.TimerHandle | None = None
        self.releasing = False
        # The call that ends the turn is under way: it alone says what became of the lease.
        self.ending = False
        self.stopping = asyncio.Event()

    @property
    def lease_id(self) -> str:
        """The lease that it goes by now."""
        return self.public.lease_id

    @property
    def kept(self) -> bool:
        """True while its run waits and it holds nothing but the lease."""
        return self.next_turn is not None

    def goes_on_with(self, leased: ws.LeasedRun) -> bool:
        """True when this is the next turn of its run, which nobody else has begun before."""
        run, lease, now = leased.run, leased.lease, self.public
        return (
            self.kept
            and not self.ending
            and not now.lost.is_set()
            and (run.run_id, lease.turn, lease.attempt) == (now.run.run_id, now.turn + 1, 1)
        )

    def stop_handler(self) -> None:
        """Cancel the handler, also one that has not begun."""
        if self.handler is not None:
            self.handler.cancel()
        self.stopping.set()

    async def handler_ended(self) -> bool:
        """Wait for the handler; False when it goes on although it was told to stop."""
        assert self.handler is not None
        stopping = asyncio.create_task(self.stopping.wait())
        either: set[asyncio.Future[Any]] = {self.handler, stopping}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({self.handler}, timeout=self.stop_seconds)
            return self.handler.done()
        finally:
            stopping.cancel()


def place_of(run: run_pb2.Run, turn: int) -> str:
    """Where failpoints find the turn."""
    if not failpoints.ARMED:
        return ""
    return failpoints.place_of(run.spec.label or run.spec.session_key, turn)


async def call(handler: Handler, turn: LeasedTurn) -> Outcome:
    """Run a handler as a coroutine of its own."""
    return await handler(turn)


def reason_of(outcome: Outcome) -> str:
    """The stable reason of a failure; empty for what is none."""
    if not isinstance(outcome, Fail):
        return ""
    error = outcome.error
    return error.reason if isinstance(error, ServiceError) else from_proto(error).reason
