"""What a harness used, from what it reports of it.

Harnesses report totals: the tokens in their context, the cost of the session so far, and, some of
them, the tokens of a prompt when it ends. Runs count what each of them used, so only growth counts,
and never twice. What a harness does not report cannot be counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spent:
    """What was used since the last report."""

    read: int = 0
    cached: int = 0
    written: int = 0
    cost_micros: int = 0
    priced: bool = True
    """False when the harness named no cost, or one in another currency than US dollars."""


@dataclass(frozen=True, slots=True)
class Totals:
    """What a prompt used as its end tells. `read` includes what was cached."""

    read: int
    written: int
    cached: int = 0


def together(parts: Sequence[Spent]) -> Spent:
    """Return what was used in all: a harness may report more often than is told on."""
    return Spent(
        read=sum(part.read for part in parts),
        written=sum(part.written for part in parts),
        cached=sum(part.cached for part in parts),
        cost_micros=sum(part.cost_micros for part in parts),
        priced=all(part.priced for part in parts),
    )


class Meter:
    """The meter of one session, for as long as its process lives.

    `fresh`: its counters begin at zero. Those of a session that was opened again may go on from
    where they were or begin anew: they count from the first report on, so that nothing is counted
    twice.
    """

    def __init__(self, *, fresh: bool) -> None:
        self._context = 0 if fresh else -1
        self._cost = 0 if fresh else -1
        self._counted = 0
        self._priced = False

    def begin(self) -> None:
        """Another prompt begins."""
        self._counted = 0
        self._priced = False

    def told(self, context: int, cost_micros: int | None) -> Spent | None:
        """Take a report in: tokens in the context, cost of the session. None when nothing grew.

        What came into the context was read at least once.
        """
        read = max(0, context - self._context) if self._context >= 0 else 0
        # Shorter after it was summarised: from there on it grows again.
        self._context = max(0, context)
        self._counted += read
        cost = 0
        if cost_micros is not None:
            self._priced = True
            if self._cost >= 0:
                began_anew = cost_micros < self._cost
                cost = cost_micros if began_anew else cost_micros - self._cost
            self._cost = max(0, cost_micros)
        return Spent(read=read, cost_micros=cost) if read or cost else None

    def ended(self, totals: Totals | None) -> Spent | None:
        """The prompt ended. Returns what no report before it counted; None when that is nothing."""
        if totals is None:
            return None if self._priced else Spent(priced=False)
        more = max(0, totals.read - self._counted)
        return Spent(
            read=more,
            cached=min(totals.cached, more),
            written=max(0, totals.written),
            priced=self._priced,
        )
