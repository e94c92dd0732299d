"""One of several schedulers leads; the others stand by. For stores that they share.

A standby campaigns: it asks the store for the lead, over and over, and learns who has it. The one
that gets it builds memory from the store, which renews the lease of every live turn in full, and
serves until it cannot renew its own lease in time, until a write is refused because another one
leads, or until it drains. Then it forgets everything and stands by again.

Two things keep a leader of yesterday from doing harm. Its writes carry an epoch that the store
refuses. And its answers, reads too, pass `check`, which looks at the clock: a process that was
stopped and woken finds its tenure over before it says a word.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from typing import Any

from scheduler_svc.domain.tenure import Tenure
from scheduler_svc.engine import Engine
from scheduler_svc.store.base import Leader, SharedStore
from svckit.backoff import full_jitter
from svckit.errors import NotLeader, ServiceError, StoreUnavailable
from svckit.grpc.deadline import spawn
from svckit.ids import new_ulid
from svckit.logging import get_logger

log = get_logger("scheduler.leadership")

# The longest pause between two looks at who leads: a leader that resigns is followed within it.
LOOK_SECONDS = 0.5
RESIGN_SECONDS = 2.0


def uptime() -> float:
    """Seconds that go on while the process is stopped, and while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Leadership:
    """`run` it as a task. `ttl`: the leader lease in seconds. `address`: where others call us.

    `tell` hears True when this process begins to lead, False when it stands by.
    """

    def __init__(
        self,
        engine: Engine,
        store: SharedStore,
        *,
        ttl: float,
        address: Callable[[], str],
        tell: Callable[[bool], None],
        now: Callable[[], float] = uptime,
    ) -> None:
        self.holder = new_ulid()
        self._engine = engine
        self._store = store
        self._ttl = ttl
        self._address = address
        self._tell = tell
        self._now = now
        # Set while this process serves: it leads, and its memory is built.
        self._tenure: Tenure | None = None
        self._leader: Leader | None = None
        self._seen = 0.0
        self._trouble: StoreUnavailable | None = None
        self._leaving = asyncio.Event()
        self._gone = asyncio.Event()
        self._settled = asyncio.Event()

    # What answers have to pass

    @property
    def leads(self) -> bool:
        """Whether this process may answer now."""
        try:
            self.check()
        except ServiceError:
            return False
        return True

    def check(self, began: Tenure | None = None) -> Tenure:
        """Return the tenure under which an answer may leave; `began`: the one it began under.

        Raises `NotLeader`, or `StoreUnavailable` when nobody knows who leads.
        """
        tenure = self._tenure
        if (
            tenure is None
            or not self._engine.leading
            or (began is not None and began is not tenure)
            or not tenure.lasts(self._now())
        ):
            raise self._refusal()
        return tenure

    def _refusal(self) -> ServiceError:
        if self._trouble is not None:
            return StoreUnavailable(self._trouble.message, retry_after=1.0)
        leader = self._leader
        known = (
            leader is not None
            and leader.holder != self.holder
            and leader.seconds_left > self._now() - self._seen
        )
        return NotLeader(
            "this scheduler does not lead; call the one that does",
            metadata={
                "leader": leader.address if leader is not None and known else "",
                "epoch": str(leader.epoch if leader is not None else 0),
            },
        )

    # The life of a candidate

    async def settled(self) -> None:
        """Wait until this process leads for the first time, or knows that it does not."""
        await self._settled.wait()

    async def leave(self) -> None:
        """Stop leading and campaigning for good, so that another one leads at once."""
        self._tenure = None
        self._leaving.set()
        await self._gone.wait()

    async def run(self) -> None:
        """Campaign and lead until told to leave. Ends only by being cancelled, or by a bug."""
        try:
            await _first_of(self._for_ever(), self._leaving.wait())
        finally:
            with contextlib.suppress(StoreUnavailable, TimeoutError):
                async with asyncio.timeout(RESIGN_SECONDS):
                    await self._store.resign()
            self._gone.set()
        await asyncio.get_running_loop().create_future()  # the service ends its tasks by itself

    async def _for_ever(self) -> None:
        pauses = full_jitter(0.1, 1.0)
        while True:
            tenure = await self._win()
            try:
                await self._lead(tenure)
            except NotLeader:
                log.warning("another scheduler leads")
            except StoreUnavailable as err:
                log.warning("the store does not answer", problem=err.message)
                await asyncio.sleep(next(pauses))
            else:
                log.warning("the lead could not be renewed in time")

    async def _win(self) -> Tenure:
        """Ask for the lead until we have it."""
        pauses = full_jitter(0.1, LOOK_SECONDS)
        while True:
            asked = self._now()
            try:
                leader = await self._store.campaign(self.holder, self._address(), self._ttl)
            except StoreUnavailable as err:
                if self._trouble is None:
                    log.warning("nobody knows who leads", problem=err.message)
                self._trouble, pause = err, next(pauses)
            else:
                self._trouble, pauses = None, full_jitter(0.1, LOOK_SECONDS)
                if self._leader is None or self._leader.epoch != leader.epoch:
                    ours = leader.holder == self.holder
                    log.info(
                        "taking the lead" if ours else "standing by",
                        leader=leader.address,
                        epoch=leader.epoch,
                    )
                self._leader, self._seen = leader, asked
                if leader.holder == self.holder:
                    return Tenure(self._ttl, asked)
                pause = min(LOOK_SECONDS, max(0.01, leader.seconds_left))
            self._settled.set()
            await asyncio.sleep(pause)

    async def _lead(self, tenure: Tenure) -> None:
        """Serve while the lease is ours. Returns, or raises, when it is not any more."""
        try:
            await _first_of(self._serve(tenure), self._hold(tenure))
        finally:
            self._tenure = None
            self._engine.stand_by()
            self._tell(False)

    async def _serve(self, tenure: Tenure) -> None:
        await self._engine.lead()
        self._tenure = tenure
        self._tell(True)
        self._settled.set()
        log.info("leading")
        await self._engine.run()

    async def _hold(self, tenure: Tenure) -> None:
        """Renew the lease; returns, or raises, when it may be over."""
        try:
            while True:
                await asyncio.sleep(tenure.renew_every)
                asked = self._now()
                try:
                    # Long enough for one try also when time has passed unnoticed.
                    async with asyncio.timeout(max(tenure.left(asked), tenure.renew_every)):
                        await self._store.renew(self._ttl)
                except (StoreUnavailable, TimeoutError):
                    if not tenure.lasts(self._now()):
                        return
                else:
                    tenure.granted(asked)
        finally:
            self._tenure = None  # before anything that is cut short now can be answered


async def _first_of(*works: Coroutine[Any, Any, Any]) -> None:
    """Await whichever ends first, also by raising, and cancel the others."""
    tasks = [spawn(work, name="leadership") for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
