"""The two layers of waiting.

A run is *ready* when it is the oldest unfinished run of its session lane that holds or may take the
lane, its backoff is over, and its global lane has a free slot. This module knows the lanes; the
kernel moves runs through them.
"""

from __future__ import annotations

import heapq
from bisect import insort
from collections import OrderedDict

import msgspec

from scheduler_svc.domain.records import SECOND, PreviousRun, Run

# After this many resumed turns one first turn goes, so that finished work cannot starve new work.
RESUMED_BEFORE_FIRST = 3


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
    # Never-started runs by order of acceptance.
    fresh: list[tuple[int, str]] = []
    # The run of this session that stands in its global lane's ready queue; empty when none does.
    ready: str = ""
    unfinished: int = 0
    # Runs that executed and ended, which no later turn of the session has been told yet.
    previous: list[PreviousRun] = []

    def next_run(self) -> str:
        """The run that holds or may take the lane; empty when there is none."""
        if self.holder:
            return self.holder
        if self.returning:
            return self.returning[0]
        return self.fresh[0][1] if self.fresh else ""

    def ahead_of(self, run: Run) -> int:
        """How many runs of the session start or go on before a queued one of it."""
        if self.holder == run.run_id:
            return 0
        ahead = 1 if self.holder else 0
        if run.run_id in self.returning:
            return ahead + self.returning.index(run.run_id)
        return ahead + len(self.returning) + sum(order < run.order for order, _ in self.fresh)

    def add_fresh(self, order: int, run_id: str) -> None:
        """Queues a never-started run at its place in the order of acceptance."""
        insort(self.fresh, (order, run_id))

    def drop(self, run: Run) -> None:
        """Takes a run out of the line, wherever it stands."""
        if self.holder == run.run_id:
            self.holder = ""
        if run.run_id in self.returning:
            self.returning.remove(run.run_id)
        entry = (run.order, run.run_id)
        if entry in self.fresh:
            self.fresh.remove(entry)


class _Ring:
    """Runs of one class, round robin over customers, first come first served within a customer."""

    __slots__ = ("_customers", "_live")

    def __init__(self) -> None:
        self._customers: OrderedDict[str, list[tuple[int, int, str]]] = OrderedDict()
        # run id -> customer; what is not here any more is skipped when its turn comes.
        self._live: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._live)

    def push(self, run: Run) -> None:
        # `priority` is an offset on the waiting time within the customer, never a class.
        key = (run.create_time - run.priority * SECOND, run.order, run.run_id)
        heapq.heappush(self._customers.setdefault(run.customer_key, []), key)
        self._live[run.run_id] = run.customer_key

    def remove(self, run_id: str) -> None:
        self._live.pop(run_id, None)

    def pop(self) -> str:
        """The next run; empty when there is none. Its customer goes to the end of the ring."""
        while self._customers:
            customer, heap = next(iter(self._customers.items()))
            while heap and self._live.get(heap[0][2]) != customer:
                heapq.heappop(heap)
            if not heap:
                del self._customers[customer]
                continue
            run_id = heapq.heappop(heap)[2]
            del self._live[run_id]
            if heap:
                self._customers.move_to_end(customer)
            else:
                del self._customers[customer]
            return run_id
        return ""

    def customers(self) -> set[str]:
        return set(self._live.values())


class ReadyQueue:
    """Ready runs of one global lane and one queue, in the order in which they get slots."""

    __slots__ = ("_first", "_in_a_row", "_resumed")

    def __init__(self) -> None:
        self._resumed = _Ring()
        self._first = _Ring()
        self._in_a_row = 0

    def __len__(self) -> int:
        return len(self._resumed) + len(self._first)

    def push(self, run: Run) -> None:
        """Adds a run at its place."""
        (self._resumed if run.resumed else self._first).push(run)

    def remove(self, run_id: str) -> None:
        """Takes a run out; harmless when it is not in."""
        self._resumed.remove(run_id)
        self._first.remove(run_id)

    def pop(self) -> str:
        """The run that gets the next slot; empty when there is none."""
        if self._resumed and (self._in_a_row < RESUMED_BEFORE_FIRST or not self._first):
            self._in_a_row += 1
            return self._resumed.pop()
        self._in_a_row = 0
        return self._first.pop()

    def customers(self) -> set[str]:
        """Customers with a ready run."""
        return self._resumed.customers() | self._first.customers()


class GlobalLane:
    """Layer two: a named pool with a limit, shared by all sessions."""

    __slots__ = ("configured", "limit", "name", "ready", "running", "suspended")

    def __init__(self, name: str, configured: int) -> None:
        self.name = name
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
        return self.ready.setdefault(name, ReadyQueue())

    @property
    def waiting(self) -> int:
        """Ready runs of all queues."""
        return sum(len(q) for q in self.ready.values())
