"""Where forecasts are made: each in a process of its own, few at a time, kept for a while.

A process gets its load from a file and writes to another one, both without a name: no pipe has to
be emptied, a result of a million customers takes no memory here, and nothing is left behind by a
crash. Its priority is low, and it ends itself when nobody waits any longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import IO

import msgspec

from conveyor.scheduler.v1 import forecast_pb2 as pb
from scheduler_svc.forecast import writing
from svckit.clock import Clock
from svckit.errors import Internal, RateLimited, ShuttingDown, invalid_field
from svckit.logging import get_logger

MODULE = "scheduler_svc.forecast"
AT_ONCE = 2
MOST_IN_LINE = 8
KEPT_MICROS = 600_000_000
MOST_KEPT = 32
MOST_KEPT_BYTES = 512 << 20
# Nobody waits longer; what a call has left of its deadline may be less.
MOST_SECONDS = 600
# A bound rather than a need: a million customers take about a fifth of it.
MOST_MEMORY = 6 << 30

_log = get_logger(__name__)


class Made(msgspec.Struct, frozen=True):
    """A forecast that was made. Ask `Desk.page` for its customers."""

    key: str
    result: pb.ForecastResult
    names: list[str]
    customers: int
    expire_time: int
    file: IO[bytes]
    size: int
    rows_at: int


class Desk:
    """Makes forecasts and keeps them. One per scheduler."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: dict[str, Made] = {}
        self._places = asyncio.Semaphore(AT_ONCE)
        self._in_line = 0
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    async def make(self, given: pb.ForecastInput) -> Made:
        """The forecast of a resolved and valid input: the one that is kept, or a new one.

        Raises `RateLimited` when too many wait, and `ShuttingDown`.
        """
        data = given.SerializeToString(deterministic=True)
        key = hashlib.sha256(data).hexdigest()[:32]
        kept = self.find(key)
        if kept is not None:
            return kept
        with self._standing_in_line():
            async with self._places:
                # An equal one may have been made meanwhile.
                return self.find(key) or await self._make(key, data)

    def find(self, key: str) -> Made | None:
        """The forecast, if it is still kept."""
        now = self._clock.now_us()
        for made in list(self._kept.values()):
            if made.expire_time <= now:
                self._forget(made)
        return self._kept.get(key)

    async def page(self, made: Made, start: int, count: int) -> list[pb.CustomerForecast]:
        """Customers from a place in the order of first start."""
        # Ours, so that a forecast that is forgotten meanwhile takes nothing away.
        file = os.dup(made.file.fileno())
        try:
            return await asyncio.to_thread(_read_page, file, made, start, count)
        finally:
            os.close(file)

    def close(self) -> None:
        """Ends all processes; whoever waits for one gets `ShuttingDown`, now and later."""
        self._closed = True
        for process in self._processes:
            process.kill()
        for made in list(self._kept.values()):
            self._forget(made)

    @contextlib.contextmanager
    def _standing_in_line(self) -> Iterator[None]:
        if self._in_line >= AT_ONCE + MOST_IN_LINE:
            raise RateLimited(
                f"{self._in_line} forecasts are made or wait already; try again in a moment",
                metadata={"limit": str(AT_ONCE + MOST_IN_LINE), "windowSeconds": "1"},
                retry_after=2.0,
            )
        self._in_line += 1
        try:
            yield
        finally:
            self._in_line -= 1

    async def _make(self, key: str, data: bytes) -> Made:
        target = tempfile.TemporaryFile()  # noqa: SIM115  (kept as long as the forecast)
        try:
            with tempfile.TemporaryFile() as source:
                source.write(data)
                source.seek(0)
                await self._run(source, target)
            made = await asyncio.to_thread(_read_head, key, target, self._clock)
        except BaseException:
            target.close()
            raise
        self._keep(made)
        return made

    async def _run(self, source: IO[bytes], target: IO[bytes]) -> None:
        self._check_open()
        starting = asyncio.ensure_future(asyncio.to_thread(_start, source, target))
        try:
            process = await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.to_thread(_end, await starting)
            raise
        self._processes.add(process)
        ended = asyncio.ensure_future(asyncio.to_thread(process.wait))
        try:
            # The drain may have come while the process started.
            self._check_open()
            code = await asyncio.shield(ended)
        finally:
            if not ended.done():  # nobody waits any longer
                process.kill()
                await ended
            self._processes.discard(process)
        self._check_open()
        if code == writing.OUT_OF_MEMORY:
            raise invalid_field(
                "input.arrivals", "need more memory than a forecast may take; give fewer messages"
            )
        if code:
            _log.error("forecast process failed", exit_code=code)
            raise Internal("the forecast could not be made")

    def _check_open(self) -> None:
        if self._closed:
            raise ShuttingDown("the scheduler is shutting down; try again in a moment")

    def _keep(self, made: Made) -> None:
        self._kept[made.key] = made
        for oldest in list(self._kept.values()):
            size = sum(kept.size for kept in self._kept.values())
            if oldest is made or (len(self._kept) <= MOST_KEPT and size <= MOST_KEPT_BYTES):
                break
            self._forget(oldest)

    def _forget(self, made: Made) -> None:
        del self._kept[made.key]
        made.file.close()


def _start(source: IO[bytes], target: IO[bytes]) -> subprocess.Popen[bytes]:
    # Not by the loop: uvloop forks, which gRPC does not like, where `Popen` uses vfork.
    return subprocess.Popen(  # noqa: S603  (our own interpreter and module)
        [sys.executable, "-P", "-m", MODULE, str(MOST_SECONDS), str(MOST_MEMORY)],
        stdin=source,
        stdout=target,
        start_new_session=True,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _read_head(key: str, file: IO[bytes], clock: Clock) -> Made:
    file.seek(0)
    result_bytes, name_bytes, customers = writing.HEAD.unpack(file.read(writing.HEAD.size))
    result = pb.ForecastResult.FromString(file.read(result_bytes))
    names = file.read(name_bytes).decode()
    return Made(
        key=key,
        result=result,
        names=names.split("\n") if names else [],
        customers=customers,
        expire_time=clock.now_us() + KEPT_MICROS,
        file=file,
        size=file.seek(0, os.SEEK_END),
        rows_at=writing.HEAD.size + result_bytes + name_bytes,
    )


def _read_page(file: int, made: Made, start: int, count: int) -> list[pb.CustomerForecast]:
    count = max(0, min(count, made.customers - start))
    size, at = count * writing.ROW_BYTES, made.rows_at + start * writing.ROW_BYTES
    return writing.customers(os.pread(file, size, at), made.names)
