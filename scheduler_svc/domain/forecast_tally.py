"""What is counted while a load is played: by lane, by customer, by wave.

Columns of numbers rather than objects: a million customers take 40 MB.
"""

from __future__ import annotations

from array import array

from scheduler_svc.domain.fairness import Waiting
from scheduler_svc.domain.lanes import GlobalLane, ReadyQueue
from scheduler_svc.domain.limits import REQUESTS, TOKENS

# Waves that are described; further ones are counted.
MOST_WAVES = 1000
UNSET = -1
_BLOCK = 10_000
_UNSET_BLOCK = array("q", [UNSET]) * _BLOCK
_ZERO_BLOCK = array("q", [0]) * _BLOCK


class LaneUse:
    """One global lane, and how it was used."""

    __slots__ = (
        "busy",
        "lane",
        "peak_running",
        "peak_waiting",
        "queue",
        "waited",
        "waiting",
    )

    def __init__(self, lane: GlobalLane, queue: ReadyQueue) -> None:
        self.lane = lane
        self.queue = queue
        # Ready runs.
        self.waiting = 0
        self.peak_running = 0
        self.peak_waiting = 0
        # Sums of microseconds: of slots in use, and of runs that waited for one.
        self.busy = 0
        self.waited = 0

    def push(self, run: Waiting) -> None:
        """Adds a ready run at its place."""
        self.waiting += 1
        self.queue.push(run)

    def pop(self) -> str:
        """The run that gets the next slot; there must be one."""
        self.waiting -= 1
        return self.queue.pop()

    def remove(self, run_id: str) -> None:
        """Takes a ready run out."""
        self.waiting -= 1
        self.queue.remove(run_id)


class Waves:
    """First turns in groups as large as the limit of their lane, in the order in which they begin.

    Only the first `MOST_WAVES` groups are described.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        # Of the group that is being filled, and how many it still takes.
        self._number = 0
        self._left = 0
        # Customers in it that first started in an earlier one.
        self._members: set[int] = set()
        self.customers = array("q")
        self.starts = array("q")
        self.ends = array("q")

    @property
    def count(self) -> int:
        """All groups."""
        return self._number

    def add(self, customer: int, number: int, start: int, end: int) -> int:
        """Notes a first turn, and returns the number of its group, counted from 1.

        `number` is the group of the customer's first one, 0 when this is it.
        """
        if not self._left:
            self._left = self._size
            self._number += 1
            if self._number <= MOST_WAVES:
                self._members.clear()
                self.customers.append(0)
                self.starts.append(start)
                self.ends.append(end)
        self._left -= 1
        if self._number <= MOST_WAVES:
            if start < self.starts[-1]:
                self.starts[-1] = start
            if end > self.ends[-1]:
                self.ends[-1] = end
            if not number:
                self.customers[-1] += 1
            elif number != self._number and customer not in self._members:
                self._members.add(customer)
                self.customers[-1] += 1
        return self._number


class Tally:
    """Everything that was counted. Times are microseconds, `UNSET` where there is none."""

    def __init__(self, uses: list[LaneUse], wave_size: int) -> None:
        self.lanes = uses
        self.waves = Waves(wave_size)
        # By customer. All but the first grow in blocks, see `trim`.
        self.arrival = array("q")
        self.start = array("q")
        self.reply = array("q")
        self.end = array("q")
        self.wave = array("q")
        self._open = array("q")
        # By message, in the order in which they happened.
        self.waits = array("q")
        self.completions = array("q")
        self.messages = 0
        self.children = 0
        self.turns = 0
        self.unfinished = 0
        # The end of the last turn.
        self.makespan = 0
        # Sums of what runs waited.
        self.session_wait = 0
        self.provider_wait = {REQUESTS: 0, TOKENS: 0}

    def arrived(self, customer: int, at: int, count: int) -> None:
        """Messages of a customer arrived; customers are numbered by first arrival."""
        self.messages += count
        if customer == len(self.arrival):
            self.arrival.append(at)
            if customer == len(self.start):
                for column in (self.start, self.reply, self.end):
                    column.extend(_UNSET_BLOCK)
                for column in (self.wave, self._open):
                    column.extend(_ZERO_BLOCK)
        self._open[customer] += count

    def trim(self) -> None:
        """Ends the counting: all columns get one entry for each customer."""
        for column in (self.start, self.reply, self.end, self.wave, self._open):
            del column[len(self.arrival) :]

    def started(self, customer: int, arrival: int, start: int, end: int) -> None:
        """The first turn of a message that arrived at `arrival` begins, and is to last to `end`."""
        self.waits.append(start - arrival)
        first = self.wave[customer]
        wave = self.waves.add(customer, first, start, end)
        if not first:
            self.start[customer], self.wave[customer] = start, wave

    def replied(self, customer: int, now: int) -> None:
        """A customer got an answer; the first one counts."""
        if self.reply[customer] < 0:
            self.reply[customer] = now

    def ended(self, customer: int, arrival: int, now: int) -> None:
        """The flow of a message has ended, with an answer if there was none before.

        A customer has an end when all its flows have one.
        """
        self.completions.append(now - arrival)
        if self.reply[customer] < 0:
            self.reply[customer] = now
        left = self._open[customer] = self._open[customer] - 1
        if not left:
            self.end[customer] = now

    def held_up(self, limit: str, time: int) -> None:
        """One of the provider's limits let a turn wait."""
        self.provider_wait[limit] += time

    def by_start(self) -> list[int]:
        """Numbers of the customers in order of first start; at the end those who never start."""
        start = self.start
        stuck = [number for number, time in enumerate(start) if time < 0]
        served = [number for number, time in enumerate(start) if time >= 0]
        served.sort(key=start.__getitem__)
        return served + stuck


class BriefTally(Tally):
    """Counts what a play with a raised limit is compared by: waits, and the end of all."""

    def arrived(self, customer: int, at: int, count: int) -> None:
        """Customers are left out."""

    def started(self, customer: int, arrival: int, start: int, end: int) -> None:
        """Only the wait counts."""
        self.waits.append(start - arrival)

    def replied(self, customer: int, now: int) -> None:
        """Customers are left out."""

    def ended(self, customer: int, arrival: int, now: int) -> None:
        """Customers are left out."""
