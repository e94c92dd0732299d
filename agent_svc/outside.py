"""Model calls outside a run: they stand in the provider's line, and are reported, like all others.

A run gives its slot back while it waits; here is none to give back, so the caller waits itself, and
not for ever.
"""

from __future__ import annotations

import asyncio

import msgspec

from agent_svc import convert
from agent_svc.domain import estimate
from agent_svc.domain import steps as s
from agent_svc.domain.prompt import Prompt
from agent_svc.models.asking import FailedCall
from agent_svc.models.base import Model
from agent_svc.reserving import Reservations
from conveyor.scheduler.v1 import limit_service_pb2 as limit_pb
from svckit.errors import ModelUnavailable
from svckit.ids import new_ulid

LONGEST_WAIT = 300.0
"""Seconds that a call waits in the line of its provider."""
SCHEDULER_PATIENCE = 10.0
"""Seconds that a scheduler may be away."""
LOOK_AGAIN = 5.0
"""Seconds after which a waiting call asks how the line has moved."""


class Outside(Reservations):
    """Makes the places in line of calls that belong to no run."""

    def line(self, prompt: Prompt) -> Line:
        """The calls of one prompt."""
        return Line(self, prompt)


class Line:
    """The places in line that one prompt takes, one per call of the model."""

    def __init__(self, outside: Outside, prompt: Prompt) -> None:
        self._outside = outside
        self._prompt = prompt
        self._id = f"outside/{new_ulid()}"
        self._count = 0

    async def take(self, model: Model) -> str:
        """Wait for the moment of a call, and return its reservation.

        Raises `ModelUnavailable` when that is too far off, `Unreachable` without a scheduler.
        """
        out = self._outside
        if not out.limited(model):
            return ""
        self._count += 1
        expected = estimate.expected(self._prompt)
        request = limit_pb.ReserveRequest(
            call=_called(model),
            request_id=f"{self._id}.{self._count}",
            estimated_tokens=expected.read + expected.written,
        )
        waited = 0.0
        try:
            while True:
                grant = await out.reserve(request, longest_pause=2.0, patience=SCHEDULER_PATIENCE)
                delay = grant.delay.ToMicroseconds() / 1e6
                if delay <= 0 or grant.HasField("expire_time"):  # granted, perhaps for a moment on
                    await out.clock.sleep(max(delay, 0.0))
                    return grant.reservation_id
                if waited + delay > LONGEST_WAIT:
                    raise ModelUnavailable(
                        f"{model.provider_id} takes no more requests for {round(delay)} s",
                        metadata={
                            "providerId": model.provider_id,
                            "model": model.name,
                            "cause": "throttled",
                        },
                        retry_after=delay,
                    )
                # The place is kept: the line may move faster, or stop for a cool-down.
                pause = min(delay, LOOK_AGAIN)
                await out.clock.sleep(pause)
                waited += pause
        except (asyncio.CancelledError, ModelUnavailable):
            out.usage.not_sent(request.request_id, "", model)
            raise

    async def failed(self, failed: FailedCall) -> None:
        """Tell the scheduler of a call that failed: all workers share what follows."""
        if self._outside.limited(failed.model) and failed.failure.cause:
            await self._outside.usage.failed(
                f"{self._id}.{failed.number}/failed",
                "",
                failed.model,
                failed.failure.outcome,
                failed.failure.retry_after,
                failed.reservation_id,
            )

    async def answered(self, model: Model, usage: s.Usage, reservation_id: str) -> int | None:
        """Report an answered call; returns its cost, `None` when the price is not known."""
        out = self._outside
        cost = await out.cost(model, usage)
        if out.limited(model):
            priced = msgspec.structs.replace(usage, cost=cost)
            out.usage.settled(
                f"{self._id}.{self._count}/used",
                model,
                convert.usage_to_proto(priced),
                reservation_id,
            )
        return cost


def _called(model: Model) -> limit_pb.ModelCall:
    return limit_pb.ModelCall(provider_id=model.provider_id, model=model.name)
