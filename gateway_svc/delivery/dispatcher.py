"""Empties the outboxes: per recipient in order, recipients side by side."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from types import MappingProxyType

from opentelemetry import trace

from gateway_svc.delivery.channel import Channel, Delivery, DeliveryFailed, Undeliverable
from gateway_svc.domain.deliveries import DeliveryKind
from gateway_svc.domain.reply_route import decode_address
from gateway_svc.spans import Delivering
from gateway_svc.store import outbox
from gateway_svc.store.outbox import Entry, OutboxState
from svckit import conventions as c
from svckit.backoff import full_jitter
from svckit.clock import Clock
from svckit.database import Database
from svckit.errors import StoreUnavailable
from svckit.logging import get_logger
from svckit.metrics import NOBODY, Metrics, definitions

ATTEMPT_SECONDS = 30.0
GIVE_UP_SECONDS = 24 * 3600.0
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
_STORE_PAUSE_SECONDS = 1.0

log = get_logger(__name__)


class Dispatcher:
    """Runs for as long as the process. A crash while sending repeats that one delivery.

    `kinds` tells of each channel what it is, such as `slack`.
    """

    def __init__(
        self,
        database: Database,
        channels: Mapping[str, Channel],
        clock: Clock,
        *,
        attempt_seconds: float = ATTEMPT_SECONDS,
        give_up_seconds: float = GIVE_UP_SECONDS,
        metrics: Metrics = NOBODY,
        tracer: trace.Tracer | None = None,
        kinds: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._database = database
        self._channels = channels
        self._clock = clock
        self._attempt_seconds = attempt_seconds
        self._give_up_us = round(give_up_seconds * 1_000_000)
        self._tracer = tracer or trace.get_tracer(c.TRACER)
        self._kinds = kinds
        self._work: dict[str, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._started = False
        self._tried = metrics.counter(definitions.DELIVERIES)
        for channel in channels:
            for outcome in (c.DELIVERED, c.POSTPONED, c.GIVEN_UP):
                self._tried.start(channel, outcome)

    def wake(self) -> None:
        """Say that something was put into an outbox."""
        self._wake.set()

    async def run(self) -> None:
        """Deliver until cancelled. What is being sent then is sent again by the next process."""
        self._wake.set()
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                try:
                    await self._start_work()
                except StoreUnavailable:
                    await self._clock.sleep(_STORE_PAUSE_SECONDS)
                    self._wake.set()
        finally:
            tasks = list(self._work.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _start_work(self) -> None:
        if not self._started:
            latest = self._clock.now_us() + round(_LONGEST_PAUSE * 1_000_000)
            await self._database.run(lambda db: outbox.bring_forward(db, latest))
            self._started = True
        for recipient in await self._database.run(outbox.waiting_recipients):
            if recipient not in self._work:
                task = asyncio.create_task(self._empty(recipient), name="deliver")
                self._work[recipient] = task

    async def _empty(self, recipient: str) -> None:
        """Deliver everything that waits for a recipient."""
        try:
            while True:
                entry = await self._database.run(
                    lambda connection: outbox.first_pending(connection, recipient)
                )
                if entry is None:
                    break
                wait_us = entry.next_us - self._clock.now_us()
                if wait_us > 0:
                    await self._clock.sleep(wait_us / 1_000_000)
                await self._attempt(entry)
        except StoreUnavailable:
            await self._clock.sleep(_STORE_PAUSE_SECONDS)
        except Exception as error:
            # A fault of ours with this recipient must not stop the others.
            log.error("delivery failed unexpectedly", exc_info=error)
            await self._clock.sleep(_LONGEST_PAUSE)
        finally:
            # An entry that came after the last look is found by the next round.
            self._work.pop(recipient, None)
            self._wake.set()

    async def _attempt(self, entry: Entry) -> None:
        channel = self._channels.get(entry.channel)
        address = decode_address(entry.recipient)
        if channel is None or address is None:
            await self._give_up(entry, "the channel is not configured any more")
            return
        delivery = Delivery(
            address=address,
            kind=DeliveryKind(entry.kind),
            text=entry.text,
            run_id=entry.run_id,
            idempotency_key=entry.event_key,
            attempt=entry.attempts + 1,
        )
        span = Delivering(
            self._tracer,
            self._kinds.get(entry.channel, entry.channel),
            delivery,
            entry.trace,
            self._clock.now_us() - entry.create_us,
        )
        with span.current():
            failure = await self._send(channel, delivery)
            span.sent()
            outcome = await self._settle(entry, failure)
        span.over(outcome, failure)

    async def _send(self, channel: Channel, delivery: Delivery) -> DeliveryFailed | None:
        try:
            async with asyncio.timeout(self._attempt_seconds):
                await channel.deliver(delivery)
        except DeliveryFailed as error:
            return error
        except TimeoutError:
            return DeliveryFailed("the channel did not answer in time")
        except Exception as error:
            log.error("channel failed unexpectedly", channel=channel.name, exc_info=error)
            return DeliveryFailed("the channel failed unexpectedly")
        return None

    async def _settle(self, entry: Entry, failure: DeliveryFailed | None) -> str:
        """Store what came of an attempt; returns how it is called in traces and metrics."""
        if isinstance(failure, Undeliverable):
            return await self._give_up(entry, failure.problem)
        if failure is not None:
            return await self._postpone(entry, failure.problem, failure.retry_after)
        now = self._clock.now_us()
        await self._database.run(
            lambda connection: outbox.settle(
                connection, entry.outbox_id, OutboxState.DELIVERED, now
            )
        )
        self._tried.add(entry.channel, c.DELIVERED)
        return c.DELIVERED

    async def _postpone(self, entry: Entry, problem: str, retry_after: float | None) -> str:
        now = self._clock.now_us()
        if now - entry.create_us > self._give_up_us:
            return await self._give_up(entry, problem)
        pause = retry_after
        if pause is None:
            pauses = full_jitter(_FIRST_PAUSE, _LONGEST_PAUSE)
            pause = next(itertools.islice(pauses, min(entry.attempts, 10), None))
        next_us = now + round(pause * 1_000_000)
        log.warning(
            "delivery postponed",
            channel=entry.channel,
            problem=problem,
            attempts=entry.attempts + 1,
        )
        await self._database.run(
            lambda connection: outbox.postpone(connection, entry.outbox_id, next_us, problem)
        )
        self._tried.add(entry.channel, c.POSTPONED)
        return c.POSTPONED

    async def _give_up(self, entry: Entry, problem: str) -> str:
        log.error("delivery given up", channel=entry.channel, run_id=entry.run_id, problem=problem)
        now = self._clock.now_us()
        await self._database.run(
            lambda connection: outbox.settle(
                connection, entry.outbox_id, OutboxState.GIVEN_UP, now, problem
            )
        )
        self._tried.add(entry.channel, c.GIVEN_UP)
        return c.GIVEN_UP
