"""The two layers of waiting.

A run is *ready* when it is the oldest unfinished run of its session lane that holds or may take the
lane, its backoff is over, and its global lane has a free slot. This module knows the lanes; the
kernel moves runs through them.
"""

from __future__ import annotations

from bisect import bisect, insort
from collections.abc import Callable, Mapping
from types import MappingProxyType

import msgspec

from scheduler_svc.domain.fairness import FairLine, Waiting
from scheduler_svc.domain.records import PreviousRun, Run

# After this many resumed turns one first turn goes, so that finished work cannot starve new work.
RESUMED_BEFORE_FIRST = 3

NO_WEIGHTS: Mapping[str, int] = MappingProxyType({})


class Session(msgspec.Struct):
    """Layer one: a session lane, and the head of the session's event log.

    In memory only while the session has unfinished runs, so that a session ever seen costs a row in
    the store and nothing here.
    """

    key: str
    # Sequence of the newest event.
    head: int = 0
    # The run that holds the lane; empty when none does.
    holder: str = ""
    # Resumed runs that gave the lane up before, in the order they resumed: first in line.
    returning: list[str] = []
    # Never-started runs by `Run.place`: those that jump, then the others as they were accepted.
    fresh: list[tuple[int, str]] = []
    # Order of the newest message that was offered to a run and may still become one of its own.
    offered: int = 0
    # The run of this session that stands in its global lane's ready queue; empty when none does.
    ready: str = ""
    unfinished: int = 0
    # Runs that executed and ended, which no later turn of the session has been told yet.
    previous: list[PreviousRun] = []

    def next_run(self) -> str:
        """The run that holds or may take the lane; empty when there is none."""
        if self.holder:
            return self.holder
        if self.returning and not self._jumping:
            return self.returning[0]
        return self.fresh[0][1] if self.fresh else ""

    def line(self) -> list[str]:
        """The runs that wait for the lane, in the order in which they take it."""
        fresh = [run_id for _, run_id in self.fresh]
        return [*fresh[: self._jumping], *self.returning, *fresh[self._jumping :]]

    @property
    def _jumping(self) -> int:
        """How many never-started runs go before all others."""
        return bisect(self.fresh, (0, ""))

    def ahead_of(self, run: Run) -> int:
        """How many runs of the session start or go on before a queued one of it."""
        if self.holder == run.run_id:
            return 0
        ahead = 1 if self.holder else 0
        if run.run_id in self.returning:
            return ahead + self._jumping + self.returning.index(run.run_id)
        returning = 0 if run.jumps else len(self.returning)
        return ahead + returning + bisect(self.fresh, (run.place, ""))

    def add_fresh(self, place: int, run_id: str) -> None:
        """Queues a never-started run at its `Run.place`."""
        insort(self.fresh, (place, run_id))

    def drop(self, run: Waiting) -> None:
        """Takes a run out of the line, wherever it stands."""
        if self.holder == run.run_id:
            self.holder = ""
        if run.run_id in self.returning:
            self.returning.remove(run.run_id)
        at = bisect(self.fresh, (run.place, ""))
        if at < len(self.fresh) and self.fresh[at][1] == run.run_id:
            del self.fresh[at]


class ReadyQueue:
    """Ready runs of one global lane and one queue, in the order in which they get slots.

    `weights` are those of the customers that the configuration names; others have weight 1.
    """

    __slots__ = ("_choosy", "_first", "_in_a_row", "_resumed")

    def __init__(self, weights: Mapping[str, int] = NO_WEIGHTS) -> None:
        self._resumed = FairLine(weights)
        self._first = FairLine(weights)
        self._in_a_row = 0
        # Runs in line that not every worker may take.
        self._choosy: set[str] = set()

    def __len__(self) -> int:
        return len(self._resumed) + len(self._first)

    @property
    def resumed(self) -> FairLine:
        """Ready runs that executed before. For looking only."""
        return self._resumed

    @property
    def first(self) -> FairLine:
        """Ready runs that did not. For looking only."""
        return self._first

    def copy(self) -> ReadyQueue:
        """A queue of its own with the same runs, for playing forward. Costs all that is in it."""
        twin = ReadyQueue()
        twin._resumed, twin._first = self._resumed.copy(), self._first.copy()
        twin._in_a_row, twin._choosy = self._in_a_row, set(self._choosy)
        return twin

    def push(self, run: Waiting, *, choosy: bool = False) -> None:
        """Adds a run at its place. One that is `choosy` not every worker may take."""
        (self._resumed if run.resumed else self._first).push(run)
        if choosy:
            self._choosy.add(run.run_id)

    def remove(self, run_id: str) -> None:
        """Takes a run out; harmless when it is not in."""
        self._resumed.remove(run_id)
        self._first.remove(run_id)
        self._choosy.discard(run_id)

    @property
    def choosy(self) -> bool:
        """True when somebody in line is not for every worker."""
        return bool(self._choosy)

    def pop_for(self, may_take: Callable[[str], bool]) -> str:
        """The run that gets the next slot among those that a worker may take; empty without one.

        The same order as that of `pop`. Who is passed over keeps its place.
        """
        lines = (self._resumed, self._first)
        resumed_first = self._in_a_row < RESUMED_BEFORE_FIRST
        for line in lines if resumed_first else reversed(lines):
            run_id = line.pop_for(may_take)
            if run_id:
                self._in_a_row = self._in_a_row + 1 if line is self._resumed else 0
                self._choosy.discard(run_id)
                return run_id
        return ""

    def pop(self) -> str:
        """The run that gets the next slot; empty when there is none."""
        resumed = self._resumed.owners
        if resumed and _resumed_next(len(resumed), len(self._first.owners), self._in_a_row):
            self._in_a_row += 1
            return self._resumed.pop()
        if not self._first.owners:
            return ""  # a poll that finds nothing does not change what comes next
        self._in_a_row = 0
        return self._first.pop()

    def upcoming(self, n: int) -> list[str]:
        """The next `n` runs, or as many as there are, as `pop` would give them. Changes nothing."""
        resumed, first = len(self._resumed), len(self._first)
        resumed_runs, first_runs = self._resumed.in_order(), self._first.in_order()
        in_a_row = self._in_a_row
        found: list[str] = []
        while len(found) < n and resumed + first:
            if _resumed_next(resumed, first, in_a_row):
                in_a_row, resumed = in_a_row + 1, resumed - 1
                found.append(next(resumed_runs))
            else:
                in_a_row, first = 0, first - 1
                found.append(next(first_runs))
        return found

    def customers(self) -> set[str]:
        """Customers with a ready run."""
        return self._resumed.customers | self._first.customers


def _resumed_next(resumed: int, first: int, in_a_row: int) -> bool:
    return resumed > 0 and (in_a_row < RESUMED_BEFORE_FIRST or not first)


class GlobalLane:
    """Layer two: a named pool with a limit, shared by all sessions."""

    __slots__ = ("configured", "limit", "name", "ready", "running", "suspended", "weights")

    def __init__(self, name: str, configured: int, weights: Mapping[str, int] = NO_WEIGHTS) -> None:
        self.name = name
        self.weights = weights
        self.configured = configured
        # The limit in force: `configured`, or what was set at run time.
        self.limit = configured
        self.running = 0
        self.suspended = 0
        self.ready: dict[str, ReadyQueue] = {}

    @property
    def free(self) -> int:
        """Free slots; 0 also when the limit was lowered below what runs."""
        return max(0, self.limit - self.running)

    def queue(self, name: str) -> ReadyQueue:
        """The ready runs for one kind of worker."""
        queue = self.ready.get(name)
        if queue is None:
            queue = self.ready[name] = ReadyQueue(self.weights)
        return queue

    @property
    def waiting(self) -> int:
        """Ready runs of all queues."""
        return sum(len(q) for q in self.ready.values())

    @property
    def oldest(self) -> list[str]:
        """Ready runs of which one has been ready for longest."""
        lines = [line for queue in self.ready.values() for line in (queue.resumed, queue.first)]
        return [line.oldest for line in lines if line]
