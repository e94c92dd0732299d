"""What the scheduler counts, and what it says of itself when it is asked.

Counted is what was committed, after the commit; looked up is what stands in memory, in slices, so
that a long queue holds nobody up. The rules know nothing of this.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, TypeAlias

from scheduler_svc.domain.emits import ChildAnnounced, StateChanged
from scheduler_svc.domain.kernel import Changes, Kernel
from scheduler_svc.domain.leasing import Leased
from scheduler_svc.domain.records import SECOND, TERMINAL, Run, RunState
from svckit.errors import BY_REASON
from svckit.metrics import Metrics
from svckit.metrics import definitions as d

if TYPE_CHECKING:
    from scheduler_svc.engine import Engine

log = logging.getLogger(__name__)

Series: TypeAlias = dict[tuple[str, ...], float]
"""Values of labels, and the figure."""
SLICE = 2000
"""Runs looked at before others get their turn: about a millisecond."""
WORKER_SECONDS = 30
"""A worker that has not called for so long is not counted any more."""
ENDS = (
    ("succeeded", ""),
    ("cancelled", "RUN_CANCELLED"),
    ("expired", "RUN_EXPIRED"),
    ("failed", "TURN_FAILED"),
    ("failed", "ATTEMPTS_EXHAUSTED"),
    ("failed", "MODEL_UNAVAILABLE"),
    ("failed", "MODEL_REJECTED"),
    ("failed", "BUDGET_EXCEEDED"),
    ("failed", "ACP_TURN_FAILED"),
)
"""How runs end as a rule: shown from the start, so that the first one is seen."""
# By number: looking an enum's member up costs more than all else that is done for an event.
_NEW, _QUEUED = RunState.UNSPECIFIED, RunState.QUEUED
_RUNNING, _SUSPENDED = RunState.RUNNING, RunState.SUSPENDED
_NAMES = [state.name.lower() for state in RunState]
_ENDS = [state in TERMINAL for state in RunState]
REASONS_TO_WAIT = (
    "slot",
    "worker",
    "paused",
    "session",
    "backoff",
    "children",
    "approval",
    "limit",
    "stopping",
)


class Counts:
    """Counts what was committed. Costs nothing where nobody listens."""

    def __init__(self, metrics: Metrics, lanes: Iterable[str] = ()) -> None:
        self._listening = metrics.listening
        self._commits = metrics.histogram(d.COMMIT_SECONDS)
        self._commands = metrics.histogram(d.COMMIT_COMMANDS)
        self._events = metrics.counter(d.EVENTS)
        self._failures = metrics.counter(d.COMMITS_FAILED)
        self._accepted = metrics.counter(d.RUNS_ACCEPTED)
        self._ended = metrics.counter(d.RUNS_ENDED)
        self._attempts = metrics.counter(d.ATTEMPTS)
        self._lost = metrics.counter(d.LEASES_LOST)
        self._waits = metrics.histogram(d.WAIT_SECONDS)
        self._turns = metrics.histogram(d.TURN_SECONDS)
        self._suspensions = metrics.histogram(d.SUSPENDED_SECONDS)
        self._estimates = metrics.histogram(d.ESTIMATE_ERROR)
        self._announced = metrics.counter(d.ANNOUNCEMENTS)
        for lane in lanes:
            self._accepted.start(lane)
            self._lost.start(lane)
            self._announced.start(lane)
            for state, reason in ENDS:
                self._ended.start(lane, state, reason)
            for kind in ("first", "repeated"):
                self._attempts.start(lane, kind)
            for layer in ("session", "global"):
                self._waits.start(lane, layer)

    def committed(
        self, changes: Changes, leased: Iterable[Leased], commands: int, seconds: float
    ) -> None:
        """A group is stored. `leased`: what it gave to workers; `seconds`: the commit took.

        Raises nothing: the commit stands, and a number is not worth an answer that fails.
        """
        if not self._listening:
            return
        try:
            self._committed(changes, leased, commands, seconds)
        except Exception as err:
            log.error("a commit was not counted", exc_info=err)

    def _committed(
        self, changes: Changes, leased: Iterable[Leased], commands: int, seconds: float
    ) -> None:
        self._commits.observe(seconds)
        self._commands.observe(commands)
        self._events.add(by=len(changes.emits))
        for emit in changes.emits:
            payload = emit.payload
            if isinstance(payload, StateChanged):
                # Every change of state touches its run.
                self._changed(changes.runs[emit.run_id], payload)
            elif isinstance(payload, ChildAnnounced):
                self._announced.add(changes.runs[emit.run_id].lane)
        for item in leased:
            self._leased(item)
        for lost in changes.lost:
            if lost.counted:
                self._lost.add(lost.run.lane)

    def failed(self) -> None:
        """A group could not be stored."""
        self._failures.add()

    def _changed(self, run: Run, change: StateChanged) -> None:
        previous, state, lane = change.previous, change.state, run.lane
        if previous is _RUNNING:
            self._turns.observe(change.lasted / SECOND, lane, _NAMES[state])
        elif previous is _NEW:
            self._accepted.add(lane)
        elif previous is _SUSPENDED and state is _QUEUED:
            waited = run.resumption.wait if run.resumption is not None else None
            reason = waited.kind.value if waited is not None else "stopping"
            self._suspensions.observe(change.lasted / SECOND, lane, reason)
        if _ENDS[state]:
            self._ended.add(lane, _NAMES[state], _reason(run))

    def _leased(self, item: Leased) -> None:
        run, waited, now = item.run, item.waited, item.lease.lease_time
        lane, first = run.lane, run.attempt == 1
        self._attempts.add(lane, "first" if first else "repeated")
        # Clocks may have been set back since.
        in_line = max(waited.queued, waited.paused_until)
        self._waits.observe(max(0, waited.ready - in_line) / SECOND, lane, "session")
        self._waits.observe(max(0, now - waited.ready) / SECOND, lane, "global")
        if first and run.turn == 1 and run.told_start:
            late = (now - run.told_start) / SECOND
            self._estimates.observe(abs(late), lane, "late" if late > 0 else "early")


def _reason(run: Run) -> str:
    if run.failure is None:
        return ""
    # A worker may name any reason; those of the contract are a table.
    return run.failure.reason if run.failure.reason in BY_REASON else "OTHER"


class Standing:
    """What stands in memory, as gauges. Nothing is said while another scheduler leads."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self._engine = engine
        self._waiting: Series = {}
        self._untold: Series = {}
        metrics.before(self.look)
        metrics.read(d.LANE_WAITING, lambda: self._waiting)
        metrics.read(d.ANNOUNCEMENTS_PENDING, lambda: self._untold)
        metrics.read(d.LANE_LIMIT, self._by_lane(lambda k, name: k.lanes[name].limit))
        metrics.read(d.LANE_RUNNING, self._by_lane(lambda k, name: k.lanes[name].running))
        metrics.read(d.LANE_OLDEST, self._by_lane(self._oldest))
        metrics.read(d.WORKERS, self._workers)
        metrics.read(d.QUESTIONS_OPEN, lambda: len(engine.kernel.questions))
        metrics.read(d.COMMANDS_WAITING, lambda: engine.commands_waiting)
        metrics.read(d.SERVING, lambda: float(engine.serving))
        metrics.read(d.WATCHERS, lambda: engine.hub.standing()[0])
        metrics.read(d.WATCHER_LAG, lambda: engine.hub.standing()[1])
        metrics.read(d.WATCHERS_BEHIND, lambda: engine.hub.standing()[2])

    async def look(self) -> None:
        """Look at all unfinished runs. They may change meanwhile: nobody waits for a gauge."""
        k, now = self._engine.kernel, self._engine.now()
        lanes = k.lanes if self._engine.serving else {}
        waiting: Series = {(name, reason): 0.0 for name in lanes for reason in REASONS_TO_WAIT}
        untold: Series = {(name,): 0.0 for name in lanes}
        runs = iter(list(k.runs.values()) if lanes else ())
        while part := list(islice(runs, SLICE)):
            tally(k, part, now, waiting, untold)
            await asyncio.sleep(0)
        self._waiting, self._untold = waiting, untold

    def _by_lane(self, value: Callable[[Kernel, str], float]) -> Callable[[], Series]:
        def read() -> Series:
            k = self._engine.kernel
            return {(name,): value(k, name) for name in k.lanes if self._engine.serving}

        return read

    def _oldest(self, k: Kernel, name: str) -> float:
        since = [k.runs[run_id].ready_since for run_id in k.lanes[name].oldest if run_id in k.runs]
        return max(0.0, (self._engine.now() - min(since)) / SECOND) if since else 0.0

    def _workers(self) -> Series:
        k, now = self._engine.kernel, self._engine.now()
        found: Series = {(queue,): 0.0 for queue, _ in k.last_calls}
        for (queue, _), called in k.last_calls.items():
            found[queue,] += now - called < WORKER_SECONDS * SECOND
        return found


def tally(
    k: Kernel,
    runs: Sequence[Run],
    now: int,
    waiting: Series,
    untold: Series,
) -> None:
    """Count what runs wait for, and which ends of children no turn was told yet, by lane."""
    for run in runs:
        key = (run.lane,)
        if run.untold and key in untold:
            untold[key] += len(run.untold)
        if run.lease is None and (place := (run.lane, waits_for(k, run, now))) in waiting:
            waiting[place] += 1


def waits_for(k: Kernel, run: Run, now: int) -> str:
    """Return why a run that does not execute does not, as one of `REASONS_TO_WAIT`."""
    if run.state is RunState.SUSPENDED and run.wait is not None:
        return run.wait.kind.value
    if run.state is not RunState.QUEUED:
        return "stopping"
    if run.ready_time > now:
        return "backoff"
    if not run.ready_since:
        return "session"
    lane = k.lanes[run.lane]
    if not lane.limit:
        return "paused"
    return "worker" if lane.free else "slot"
