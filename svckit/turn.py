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
    """One turn, for as long as the lease lasts; with `wait_kept`, the turns that follow it too.

    `cancelled` is set, with `cancel_reason`, when the run should stop; `lost` when the lease is
    gone and nothing may be written any more; `draining` when the worker stops soon, so that a
    handler between two steps can return `Release()`. After the first two the handler's task is
    cancelled as well: it cleans up and ends.

    `keeper` is how the worker keeps a lease; without one `wait_kept` cannot be used.
    """

    def __init__(self, leased: ws.LeasedRun, keeper: Keeper | None = None) -> None:
        self._keeper = keeper
        self.cancelled = asyncio.Event()
        self.cancel_reason = ""
        self.lost = asyncio.Event()
        self.draining = asyncio.Event()
        self._steered: dict[str, run_pb2.RunInput] = {}
        self._given: set[str] = set()
        self._arrived = asyncio.Event()
        self.begin(leased)

    def begin(self, leased: ws.LeasedRun) -> None:
        """Become this turn. For the worker; handlers call `wait_kept`."""
        self.leased = leased
        self.run: run_pb2.Run = leased.run
        self.lease_id: str = leased.lease.lease_id
        self.turn: int = leased.lease.turn
        self.attempt: int = leased.lease.attempt
        self.offer(leased.steered)

    async def wait_kept(self, request: ws.SuspendRunRequest) -> LeasedTurn:
        """End this turn with a wait, and go on in the next one: for a handler that has something in
        hand that cannot move, such as a process that waits for an approval.

        `request` without `lease_id` and `keep_lease`, which the worker fills in. Meanwhile the run
        holds no slot, neither here nor at the scheduler. Returns this same object, which by then is
        the next turn: `leased` (with `resumption`), `run`, `lease_id`, `turn` and `attempt` are the
        new ones, so read them when they are used instead of keeping them. The current span is that
        of the next turn from then on, in the task that called this and in no other.

        During the wait `lease_id` is good for `AppendEvents`. A call that was sent with the old id
        may meet the new turn and fail with `LEASE_LOST`: if `lease_id` has changed, send it again.
        A question that is asked during a wait for answers is waited for as well.

        Raises `LeaseLost`, and `ServiceError` when the scheduler refuses the wait, which then has
        not begun. A cancellation, a loss or a drain cancels the handler here, as anywhere. Whoever
        gives up waiting (by cancelling this call) must return `Fail` or `Release`: nothing else is
        allowed then. One wait at a time.
        """
        if self._keeper is None:
            raise RuntimeError("this turn has no worker that could keep its lease")
        await self._keeper(request)
        return self

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

    @property
    def steered_waits(self) -> bool:
        """True while there is steered input that no call of `new_steered` returned."""
        return self._arrived.is_set()

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


Keeper: TypeAlias = Callable[[ws.SuspendRunRequest], Awaitable[None]]
Outcome: TypeAlias = Complete | Suspend | Fail | Release
Handler: TypeAlias = Callable[[LeasedTurn], Awaitable[Outcome]]
