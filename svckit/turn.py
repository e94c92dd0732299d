"""What a worker gives to a handler, and what a handler gives back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from google.rpc import status_pb2

from conveyor.scheduler.v1 import run_pb2
from conveyor.scheduler.v1 import worker_service_pb2 as ws
from svckit.errors import ServiceError


class LeasedTurn:
    """One turn, for as long as the lease lasts.

    `cancelled` is set, with `cancel_reason`, when the run should stop; `lost` when the lease is
    gone and nothing may be written any more; `draining` when the worker stops soon, so that a
    handler between two steps can return `Release()`. After the first two the handler's task is
    cancelled as well: it cleans up and ends.
    """

    def __init__(self, leased: ws.LeasedRun) -> None:
        self.leased = leased
        self.run: run_pb2.Run = leased.run
        self.lease_id: str = leased.lease.lease_id
        self.turn: int = leased.lease.turn
        self.attempt: int = leased.lease.attempt
        self.cancelled = asyncio.Event()
        self.cancel_reason = ""
        self.lost = asyncio.Event()
        self.draining = asyncio.Event()
        self._steered: dict[str, run_pb2.RunInput] = {}
        self._given: set[str] = set()
        self._arrived = asyncio.Event()
        self.offer(leased.steered)

    def offer(self, inputs: Iterable[run_pb2.RunInput]) -> None:
        """Take in steered input. The scheduler repeats it until a call names it as taken."""
        for item in inputs:
            self._steered.setdefault(item.request_id, item)
        if self._steered.keys() - self._given:
            self._arrived.set()

    def new_steered(self) -> list[run_pb2.RunInput]:
        """Return the steered input that no earlier call returned, oldest first.

        Whoever uses an input names its `request_id` in the `taken` of the outcome.
        """
        fresh = [item for key, item in self._steered.items() if key not in self._given]
        self._given.update(item.request_id for item in fresh)
        self._arrived.clear()
        return fresh

    async def wait_steered(self) -> list[run_pb2.RunInput]:
        """Wait until there is new steered input and return it, as `new_steered` does."""
        await self._arrived.wait()
        return self.new_steered()


@dataclass(frozen=True)
class Complete:
    """The turn ended with a result; None sends nothing and keeps that of an earlier turn."""

    result: run_pb2.RunResult | None
    announce_mode: run_pb2.AnnounceMode.ValueType = run_pb2.ANNOUNCE_MODE_UNSPECIFIED
    taken: Sequence[str] = ()
    steered_is_next_prompt: bool = False


@dataclass(frozen=True)
class Suspend:
    """The turn has to wait. `request` without `lease_id`, which the worker fills in."""

    request: ws.SuspendRunRequest


@dataclass(frozen=True)
class Fail:
    """The attempt failed. With `retryable` the scheduler may give the turn another one."""

    error: ServiceError | status_pb2.Status
    retryable: bool
    taken: Sequence[str] = ()


@dataclass(frozen=True)
class Release:
    """Hand the attempt back uncounted, for example because the worker drains."""

    reason: str = field(default="", compare=False)


Outcome: TypeAlias = Complete | Suspend | Fail | Release
Handler: TypeAlias = Callable[[LeasedTurn], Awaitable[Outcome]]
