"""Counters, gauges and histograms of one process: numbers in dictionaries, read when asked for.

Not thread safe, and need not be: a service counts on its event loop, and is read there. That makes
an event cost a fraction of a microsecond, which a lock and a meter's views would not.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Mapping
from typing import ClassVar, TypeAlias, TypeVar

from svckit.logging import get_logger
from svckit.metrics.definitions import Definition, Kind

_log = get_logger("svckit.metrics")

MOST_SERIES = 1000
"""Of one metric. What comes beyond is counted together, so that no mistake fills a store."""
OTHER = "other"
REFRESH_SECONDS = 2.0
"""What is looked up may take so long: whoever collects waits ten seconds for all of it."""

Labels: TypeAlias = tuple[str, ...]
Values: TypeAlias = float | Mapping[Labels, float]


class Instrument:
    """What is counted, by the values of its labels, in the order of the definition."""

    kind: ClassVar[Kind]

    def __init__(self, definition: Definition) -> None:
        self.definition = definition

    def _checked(self, labels: Labels, known: int) -> Labels:
        """Return the labels of a new series."""
        if len(labels) != len(self.definition.labels):
            raise ValueError(f"{self.definition.name} has labels {self.definition.labels}")
        return labels if known < MOST_SERIES else tuple(OTHER for _ in labels)


class Counter(Instrument):
    """What only grows."""

    kind = Kind.COUNTER

    def __init__(self, definition: Definition) -> None:
        super().__init__(definition)
        self.values: dict[Labels, float] = {} if definition.labels else {(): 0.0}

    def add(self, *labels: str, by: float = 1.0) -> None:
        """Count once more, or `by` so much."""
        try:
            self.values[labels] += by
        except KeyError:
            labels = self._checked(labels, len(self.values))
            self.values[labels] = self.values.get(labels, 0.0) + by

    def start(self, *labels: str) -> None:
        """Show a series from now on, at 0: growth from nothing would go unseen."""
        self.add(*labels, by=0.0)


class Gauge(Instrument):
    """What goes up and down."""

    kind = Kind.GAUGE

    def __init__(self, definition: Definition) -> None:
        super().__init__(definition)
        self.values: dict[Labels, float] = {} if definition.labels else {(): 0.0}

    def add(self, *labels: str, by: float = 1.0) -> None:
        """Raise, or with a negative `by` lower."""
        try:
            self.values[labels] += by
        except KeyError:
            labels = self._checked(labels, len(self.values))
            self.values[labels] = self.values.get(labels, 0.0) + by

    def set(self, value: float, *labels: str) -> None:
        """Say how much it is now."""
        if labels not in self.values:
            labels = self._checked(labels, len(self.values))
        self.values[labels] = value


class Histogram(Instrument):
    """How often something took how much."""

    kind = Kind.HISTOGRAM

    def __init__(self, definition: Definition) -> None:
        super().__init__(definition)
        self._bounds = definition.bounds
        # Of each series: how many fell into each bucket, the one without a bound last; their sum.
        self.series: dict[Labels, tuple[list[int], list[float]]] = {}
        if not definition.labels:
            self.start()

    def start(self, *labels: str) -> None:
        """Show a series from now on, without anything in it."""
        self._begin(labels)

    def observe(self, value: float, *labels: str) -> None:
        """Take in one value, in the unit of the definition."""
        counts, sums = self.series.get(labels) or self._begin(labels)
        counts[bisect_left(self._bounds, value)] += 1
        sums[0] += value

    def _begin(self, labels: Labels) -> tuple[list[int], list[float]]:
        labels = self._checked(labels, len(self.series))
        return self.series.setdefault(labels, ([0] * (len(self._bounds) + 1), [0.0]))


class Read(Instrument):
    """What is looked up when somebody asks: a number, or one for each series."""

    def __init__(self, definition: Definition, read: Callable[[], Values]) -> None:
        super().__init__(definition)
        self._read = read

    @property
    def values(self) -> Mapping[Labels, float]:
        """What it is now."""
        found = self._read()
        return found if isinstance(found, Mapping) else {(): found}


Shown: TypeAlias = Counter | Gauge | Histogram | Read
Made = TypeVar("Made", Counter, Gauge, Histogram)


class _NoCounter(Counter):
    def add(self, *labels: str, by: float = 1.0) -> None:
        """Count nothing."""


class _NoGauge(Gauge):
    def add(self, *labels: str, by: float = 1.0) -> None:
        """Count nothing."""

    def set(self, value: float, *labels: str) -> None:
        """Keep nothing."""


class _NoHistogram(Histogram):
    def start(self, *labels: str) -> None:
        """Show nothing."""

    def observe(self, value: float, *labels: str) -> None:
        """Keep nothing."""


class Metrics:
    """The metrics of one service. Those that several parts count in are one.

    Without `listening` nobody will ever ask: every instrument does nothing, and `listening` tells
    those who would have to look something up first.
    """

    def __init__(self, *, listening: bool = True) -> None:
        self.listening = listening
        self._instruments: dict[str, Shown] = {}
        self._refreshes: list[Callable[[], Awaitable[None]]] = []

    def counter(self, definition: Definition) -> Counter:
        """Return the counter of a definition."""
        return self._made(definition, Counter, _NoCounter)

    def gauge(self, definition: Definition) -> Gauge:
        """Return the gauge of a definition."""
        return self._made(definition, Gauge, _NoGauge)

    def histogram(self, definition: Definition) -> Histogram:
        """Return the histogram of a definition."""
        return self._made(definition, Histogram, _NoHistogram)

    def read(self, definition: Definition, read: Callable[[], Values]) -> None:
        """Have a gauge, or a counter that somebody keeps already, looked up when it is asked for.

        `read` is called on the service's event loop and must not block; with labels it returns a
        number for each series.
        """
        if self.listening:
            self._instruments[definition.name] = Read(definition, read)

    def before(self, refresh: Callable[[], Awaitable[None]]) -> None:
        """Have something awaited before metrics are read: a question to a database, for example."""
        if self.listening:
            self._refreshes.append(refresh)

    async def refresh(self) -> None:
        """Look up what has to be looked up. What takes too long, or fails, keeps what it said."""
        for refresh in self._refreshes:
            try:
                async with asyncio.timeout(REFRESH_SECONDS):
                    await refresh()
            except TimeoutError:
                continue
            except Exception as err:
                _log.error("metrics could not be looked up", exc_info=err)

    def instruments(self) -> list[Shown]:
        """All of them, by name."""
        return [self._instruments[name] for name in sorted(self._instruments)]

    def _made(self, definition: Definition, real: type[Made], idle: type[Made]) -> Made:
        if definition.kind is not real.kind:
            raise ValueError(f"{definition.name} is no {real.kind}")
        if not self.listening:
            return idle(definition)
        made = self._instruments.get(definition.name)
        if made is None:
            made = self._instruments[definition.name] = real(definition)
        assert isinstance(made, real)
        return made


NOBODY = Metrics(listening=False)
"""For parts that are used without a service around them."""
