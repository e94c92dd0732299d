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
        self._begun = 0
        self._members: set[int] = set()
        self.customers = array("q")
        self.starts = array("q")
        self.ends = array("q")

    @property
    def count(self) -> int:
        """All groups."""
        return -(-self._begun // self._size) if self._size else 0

    def add(self, customer: int, start: int, end: int) -> int:
        """Notes a first turn, and returns the number of its group, counted from 1."""
        index = self._begun // self._size
        opens = self._begun % self._size == 0
        self._begun += 1
        if index >= MOST_WAVES:
            return index + 1
        if opens:
            self._members.clear()
            self.customers.append(0)
            self.starts.append(start)
            self.ends.append(end)
        self.starts[index] = min(self.starts[index], start)
        self.ends[index] = max(self.ends[index], end)
        if customer not in self._members:
            self._members.add(customer)
            self.customers[index] += 1
        return index + 1


class Tally:
    """Everything that was counted. Times are microseconds, `UNSET` where there is none."""

    def __init__(self, uses: list[LaneUse], wave_size: int) -> None:
        self.lanes = uses
        self.waves = Waves(wave_size)
        # By customer.
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
            self.start.append(UNSET)
            self.reply.append(UNSET)
            self.end.append(UNSET)
            self.wave.append(0)
            self._open.append(count)
        else:
            self._open[customer] += count

    def started(self, customer: int, arrival: int, start: int, end: int) -> None:
        """The first turn of a message that arrived at `arrival` begins, and is to last to `end`."""
        self.waits.append(start - arrival)
        wave = self.waves.add(customer, start, end)
        if self.start[customer] < 0:
            self.start[customer], self.wave[customer] = start, wave

    def replied(self, customer: int, now: int) -> None:
        """A customer got an answer; the first one counts."""
        if self.reply[customer] < 0:
            self.reply[customer] = now

    def ended(self, customer: int, arrival: int, now: int) -> None:
        """The flow of a message has ended. A customer has an end when all its flows have one."""
        self.completions.append(now - arrival)
        self._open[customer] -= 1
        if not self._open[customer]:
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
