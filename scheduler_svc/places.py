"""Tells whoever watches where waiting messages stand, as they move up.

Live only, as the contract says: nothing of it is stored or numbered, so a long queue writes
nothing. Only root runs that somebody watches are looked at, a bounded number at a time, and what is
told again has moved. What was told last is kept for watchers that join.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from scheduler_svc.domain.estimates import TELLING_PAUSE, estimate, moved
from scheduler_svc.domain.kernel import Kernel
from scheduler_svc.domain.records import SECOND, Run, RunState
from scheduler_svc.engine import Engine
from scheduler_svc.live import LivePlace
from svckit.clock import Clock
from svckit.errors import ServiceError

LOOK_SECONDS = 0.5
# Runs looked at in one go, which holds up everything else: some ten milliseconds at most.
MOST_LOOKS = 50
# Of one session: those behind move with those ahead.
MOST_OF_SESSION = 5
# A run that starts right after it was accepted is not worth a word.
PATIENCE = 1 * SECOND


class Places:
    """Looks and tells. One per process; `run` is a task of the service."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        # When each run was looked at last.
        self._looked: dict[str, int] = {}

    async def run(self) -> None:
        """Looks again and again, until cancelled."""
        while True:
            await self._clock.sleep(LOOK_SECONDS)
            if not any(self._watched()):
                continue
            try:
                await self._engine.submit(self.look)
            except ServiceError:
                self._looked.clear()  # the store is away, or this scheduler does not lead

    def _watched(self) -> tuple[list[str], list[str], bool]:
        return self._engine.hub.place_watchers()

    def look(self, k: Kernel, now: int) -> None:
        """Tells what has moved of the runs whose turn it is to be looked at."""
        due = {run.run_id: run for run in self._waiting(k, now)}
        oldest_first = sorted(due, key=lambda run_id: self._looked.get(run_id, 0))
        for run_id in oldest_first[:MOST_LOOKS]:
            self._looked[run_id] = now
            self._tell(k, due[run_id], now)
        if len(self._looked) > 2 * len(k.runs) + MOST_LOOKS:
            self._looked = {key: at for key, at in self._looked.items() if key in k.runs}

    def _tell(self, k: Kernel, run: Run, now: int) -> None:
        told = self._engine.hub.places.get(run.run_id)
        found = estimate(k, run, now)
        if told is None or moved(told.estimate, told.time, found, now):
            self._engine.hub.show_place(
                LivePlace(run.run_id, run.session_key, run.flow_id, found, now)
            )

    def _waiting(self, k: Kernel, now: int) -> Iterator[Run]:
        """Waiting roots that somebody watches and that were not looked at a moment ago."""
        for run_id in self._candidates(k):
            run = k.runs.get(run_id)
            if (
                run is not None
                and run.state is RunState.QUEUED
                and not run.depth
                and now - run.state_time >= PATIENCE
                and now - self._looked.get(run_id, 0) >= TELLING_PAUSE
            ):
                yield run

    def _candidates(self, k: Kernel) -> Iterator[str]:
        sessions, flows, everywhere = self._watched()
        yield from flows
        for key in sessions:
            session = k.sessions.get(key)
            if session is not None:
                yield session.holder
                yield from islice(session.line(), MOST_OF_SESSION)
        if everywhere:
            for lane in k.lanes.values():
                for queue in lane.ready.values():
                    yield from queue.upcoming(MOST_LOOKS)
