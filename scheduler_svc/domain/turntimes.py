"""How long turns take: measured, and forgotten again.

Turns are compared only with their like: of the same queue and the same agent and model, roots apart
from children, and first turns apart from closing ones, which have children's results to join. Of
each kind the newest times are kept, newer ones counting for more. With them goes what came after
the turn: did the run wait for children, and how long did it stay away. That is what estimates of
the global lane need to know.

Times are microseconds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from math import sqrt
from typing import Any, NamedTuple

import msgspec

from scheduler_svc.domain.records import Run, WaitKind

# Newest times of a kind that are kept.
KEPT = 64
# Fewer say too little.
ENOUGH = 5
# Kinds that are kept; the one that was not seen for longest goes first.
MOST_KINDS = 256
# A kind is stored when it is first of use and then with every so many turns: what a restart forgets
# changes no estimate much, and a write with every turn would.
STORED_EVERY = 8
# A time counts for half as much when so many newer ones have come.
HALF_LIFE = 16

_WEIGHTS = [0.5 ** (age / HALF_LIFE) for age in range(KEPT)]


class TurnKind(NamedTuple):
    """Turns that are compared with each other."""

    queue: str
    estimate_key: str
    child: bool
    closing: bool

    @property
    def key(self) -> str:
        """The kind as the key of a stored record."""
        place = "child" if self.child else "root"
        return f"{self.queue}/{place}/{'closing' if self.closing else 'first'}/{self.estimate_key}"


def kind_of(run: Run) -> TurnKind:
    """The kind of the run's present turn, or of the one it waits to begin.

    Going on after a wait for a limit is the turn that was interrupted, not another kind.
    """
    after = run.resumption
    resumed = after is not None and not (after.wait and after.wait.kind is WaitKind.LIMIT)
    return TurnKind(run.queue, run.estimate_key, run.depth > 0, resumed or bool(run.told))


def closing(kind: TurnKind) -> TurnKind:
    """The kind of the turn that follows when the run waited for children."""
    return kind._replace(closing=True)


class TurnRecord(msgspec.Struct, omit_defaults=True):
    """What is kept of one kind. Lists are newest last."""

    queue: str
    estimate_key: str
    child: bool = False
    closing: bool = False
    # Executing times of turns, and whether the run then waited for children.
    took: list[int] = []
    waited: list[bool] = []
    # How long runs waited for children, for as many as did.
    away: list[int] = []
    # Turns ever counted.
    seen: int = 0

    @property
    def kind(self) -> TurnKind:
        """Which turns these are."""
        return TurnKind(self.queue, self.estimate_key, self.child, self.closing)


class Times:
    """What newest times say about the next one."""

    __slots__ = ("_above", "_sorted", "deviation", "mean", "p50", "p90", "samples")

    def __init__(self, newest_last: list[int]) -> None:
        pairs = sorted(zip(reversed(newest_last), _WEIGHTS, strict=False))
        weights = list(accumulate(weight for _, weight in pairs))
        self.samples = len(pairs)
        self.p50 = pairs[bisect_right(weights, weights[-1] * 0.5 - 1e-9)][0]
        self.p90 = pairs[bisect_right(weights, weights[-1] * 0.9 - 1e-9)][0]
        # The longest tenth counts as the ninth: one turn that hung says nothing about the next.
        capped = [(min(time, self.p90), weight) for time, weight in pairs]
        mean = sum(time * weight for time, weight in capped) / weights[-1]
        square = sum((time - mean) ** 2 * weight for time, weight in pairs) / weights[-1]
        self.mean = round(mean)
        self.deviation = sqrt(square)
        self._sorted = [time for time, _ in capped]
        # Weight, and time times weight, of each time and all longer ones.
        self._above: list[tuple[float, float]] = [
            *zip(
                accumulate(weight for _, weight in reversed(capped)),
                accumulate(time * weight for time, weight in reversed(capped)),
                strict=True,
            )
        ][::-1]

    def left(self, elapsed: int) -> int:
        """How much longer something takes that has taken `elapsed`.

        What has taken longer than all before it is expected to be late by as much again.
        """
        index = bisect_right(self._sorted, elapsed)
        if index == len(self._sorted):
            return elapsed - self._sorted[-1]
        weight, total = self._above[index]
        return round(total / weight) - elapsed


class Assumed:
    """Stands in for `Times` while too little was measured. Nine in ten take at most twice as long:
    that is no measurement, and so `samples` is 0."""

    __slots__ = ("deviation", "mean", "p50", "p90", "samples")

    def __init__(self, time: int) -> None:
        self.mean = self.p50 = time
        self.p90 = 2 * time
        self.deviation = time / 1.2816  # of a normal distribution with this p90
        self.samples = 0

    def left(self, elapsed: int) -> int:
        """As `Times.left`."""
        return abs(self.mean - elapsed)


class TurnTimes:
    """All that was measured. One per kernel."""

    def __init__(self) -> None:
        # Least recently seen first.
        self._records: dict[TurnKind, TurnRecord] = {}
        self._took: dict[TurnKind, Times] = {}
        self._away: dict[TurnKind, Times] = {}

    def __iter__(self) -> Iterator[TurnRecord]:
        return iter(self._records.values())

    def take_in(self, record: TurnRecord) -> None:
        """Takes in what was stored."""
        self._records[record.kind] = record

    def ended(self, kind: TurnKind, took: int, *, waits: bool) -> dict[str, TurnRecord | None]:
        """A turn took so long, and the run now waits for children, or not.

        Returns what is to be stored, by key; `None` for what is to be forgotten.
        """
        record = self._records.pop(kind, None) or TurnRecord(*kind)
        self._records[kind] = record
        _add(record.took, took)
        _add(record.waited, waits)
        record.seen += 1
        self._took.pop(kind, None)
        stored: dict[str, TurnRecord | None] = {}
        if record.seen == ENOUGH or record.seen % STORED_EVERY == 0:
            stored[kind.key] = record
        if len(self._records) > MOST_KINDS:
            oldest = next(iter(self._records))
            del self._records[oldest]
            self._took.pop(oldest, None)
            self._away.pop(oldest, None)
            stored[oldest.key] = None
        return stored

    def came_back(self, kind: TurnKind, away: int) -> None:
        """A run that waited for children after a turn of this kind goes on."""
        record = self._records.get(kind)
        if record is not None:
            _add(record.away, away)
            self._away.pop(kind, None)

    def measured(self, kind: TurnKind) -> Times | None:
        """Times of the turns of a kind; `None` while too few were seen."""
        times = self._took.get(kind)
        if times is None:
            record = self._records.get(kind)
            if record is None or len(record.took) < ENOUGH:
                return None
            times = self._took[kind] = Times(record.took)
        return times

    def waits(self, kind: TurnKind) -> float:
        """Share of the turns of a kind that were followed by a wait for children."""
        record = self._records.get(kind)
        if record is None or len(record.waited) < ENOUGH:
            return 0.0
        return sum(record.waited) / len(record.waited)

    def away(self, kind: TurnKind) -> Times | None:
        """How long runs waited for children after a turn of a kind; `None` when none did."""
        times = self._away.get(kind)
        if times is None:
            record = self._records.get(kind)
            if record is None or not record.away:
                return None
            times = self._away[kind] = Times(record.away)
        return times


def _add(values: list[Any], value: int | bool) -> None:
    values.append(value)
    if len(values) > KEPT:
        del values[0]
