"""Asks the scheduler before each model call: when it may go, and whether the budget allows it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from agent_svc.domain import estimate
from agent_svc.domain import steps as s
from agent_svc.domain.prompt import Prompt
from agent_svc.models.asking import Later
from agent_svc.models.base import Model, full_name
from agent_svc.prices import Prices
from agent_svc.work import Work
from conveyor.scheduler.v1 import announcement_pb2 as ann
from conveyor.scheduler.v1 import limit_service_pb2 as limit_pb
from conveyor.scheduler.v1 import run_pb2
from conveyor.scheduler.v1 import worker_service_pb2 as ws
from svckit.backoff import full_jitter
from svckit.clock import Clock
from svckit.errors import PASSING
from svckit.grpc.client import call
from svckit.grpc.status import from_proto
from svckit.settings import Settings
from svckit.usage import UsageReporter

if TYPE_CHECKING:
    from conveyor.scheduler.v1.limit_service_pb2_grpc import LimitServiceAsyncStub

COOL_DOWN = "cool_down"
"""What a grant names as its limit when the provider is left alone for a while."""
SHORT_WAIT = 1.0
"""Seconds that a worker waits itself. A longer wait gives the slot back."""


class MustWait(Later):
    """The reserved time is further off than a turn may hold its slot."""

    def __init__(
        self, grant: limit_pb.ReserveGrant, model: str, give_back: Callable[[], None]
    ) -> None:
        seconds = grant.delay.ToMicroseconds() / 1e6
        super().__init__(seconds, cooling=grant.limit == COOL_DOWN, give_back=give_back)
        self.reservation_id = grant.reservation_id
        self.model = model

    def suspension(self, work: Work) -> ws.SuspendRunRequest:
        """How the turn waits: in its session lane, without a slot."""
        limit = run_pb2.LimitWait(reservation_id=self.reservation_id, name=self.model)
        return ws.SuspendRunRequest(
            condition=run_pb2.WaitCondition(limit=limit),
            hold_session_lane=True,
            taken_request_ids=work.taken(),
        )


class Reservations:
    """Reserves model calls at the scheduler: what those of a run and those outside one share."""

    def __init__(
        self,
        stub: LimitServiceAsyncStub,
        usage: UsageReporter,
        prices: Prices,
        settings: Settings,
        clock: Clock,
    ) -> None:
        self.stub = stub
        self.usage = usage
        self.prices = prices
        self.clock = clock
        # The demo models are asked at once unless the configuration limits them.
        demo = settings.providers.get("demo")
        self._demo_limited = demo is not None and bool(
            demo.requests_per_minute or demo.tokens_per_minute
        )

    async def cost(self, model: Model, usage: s.Usage) -> int | None:
        """What a call cost, in millionths of a US dollar; `None` when the price is not known."""
        if model.provider_id != "demo":
            await self.prices.load()
        return self.prices.cost(model.provider_id, model.name, usage)

    def limited(self, model: Model) -> bool:
        """True when calls of the model stand in line, whoever makes them."""
        return model.provider_id != "demo" or self._demo_limited

    async def reserve(
        self,
        request: limit_pb.ReserveRequest,
        *,
        longest_pause: float,
        patience: float = math.inf,
    ) -> limit_pb.ReserveGrant:
        """Ask for a place in line, for `patience` seconds while the scheduler is away."""
        pauses = full_jitter(0.2, longest_pause)
        give_up = self.clock.now_us() + patience * 1e6
        while True:
            try:
                response = await call(self.stub.Reserve(request), service="scheduler")
            except PASSING:
                if self.clock.now_us() > give_up:
                    raise
                await self.clock.sleep(next(pauses))
                continue
            if response.HasField("refused"):
                raise from_proto(response.refused.error)
            return response.granted


class Reserver(Reservations):
    """Makes the tickets of a turn's model calls."""

    def tickets(self, work: Work, call: str, prompt: Prompt) -> Tickets:
        """The tickets of one call, with its fallbacks and repetitions.

        A grant that the turn resumed with is the first ticket of its first call.
        """
        return Tickets(self, work, call, prompt)

    def needed(self, model: Model, work: Work) -> bool:
        """True when a call is to be reserved."""
        return self.limited(model) or work.turn.leased.budgeted


class Tickets:
    """Permission for the requests of one model call, one at a time."""

    def __init__(self, reserver: Reserver, work: Work, call: str, prompt: Prompt) -> None:
        self._reserver = reserver
        self._work = work
        self._call = call
        self._prompt = prompt
        self._count = 0
        self.resumed_for, self._held = _held(work)
        work.first_call = False

    async def take(self, model: Model) -> str:
        """Wait for the moment of a call. Returns the reservation to report, empty when there is
        none. Raises `MustWait`, `BudgetExceeded`, `LeaseLost`."""
        if not self._reserver.needed(model, self._work):
            return ""
        grant, self._held = self._held, None
        if grant is None or self.resumed_for != full_name(model):
            grant = await self._reserve(model)
        delay = grant.delay.ToMicroseconds() / 1e6
        if delay > SHORT_WAIT:
            raise MustWait(grant, full_name(model), partial(self._give_back, grant, model))
        if delay > 0:
            try:
                await self._reserver.clock.sleep(delay)
            except asyncio.CancelledError:
                self._give_back(grant, model)
                raise
        return grant.reservation_id

    def _give_back(self, grant: limit_pb.ReserveGrant, model: Model) -> None:
        self._reserver.usage.not_sent(grant.reservation_id, self._work.run_id, model)

    async def _reserve(self, model: Model) -> limit_pb.ReserveGrant:
        work, reserver = self._work, self._reserver
        self._count += 1
        expected = estimate.expected(self._prompt)
        cost = await reserver.cost(model, expected)
        fencing = work.turn.leased.lease.fencing_token
        request = limit_pb.ReserveRequest(
            call=limit_pb.ModelCall(
                provider_id=model.provider_id, model=model.name, run_id=work.run_id
            ),
            lease_id=work.turn.lease_id,
            request_id=(
                # By lease and not by attempt: one that was handed back in the middle of a call is
                # not counted, and the call after it needs a time of its own.
                f"{work.run_id}/{work.number}.{self._call}/{fencing}.{self._count}"
            ),
            estimated_tokens=expected.read + expected.written,
            estimated_cost_micros_usd=cost or 0,
        )
        # Until it is back, or the lease is gone and this task with it.
        return await reserver.reserve(request, longest_pause=5.0)


def _held(work: Work) -> tuple[str, limit_pb.ReserveGrant | None]:
    """The model that a turn resumed to ask, and the grant that it holds for it.

    For its first call only. Once a reply, a summary or a rung of the guard is stored, an attempt
    before this one has used it.
    """
    leased = work.turn.leased
    if not work.first_call or work.summaries:
        return "", None
    if leased.resumption.reason != ann.RESUME_REASON_LIMIT_GRANTED or any(
        step.turn == work.number and isinstance(step.record, s.Replied | s.Guarded)
        for step in work.steps
    ):
        return "", None
    grant = leased.resumption.grant if leased.resumption.HasField("grant") else None
    return leased.resumption.condition.limit.name, grant
