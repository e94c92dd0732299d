"""How long a leader may answer, by its own clock.

Counted from before the store was asked, since the lease began later, by the store's clock; and
with a margin, since no two clocks run at exactly the same speed.
"""

from __future__ import annotations

MARGIN = 0.1
RENEWALS = 5


class Tenure:
    """The lease of a leader as the leader sees it. Times in seconds of one clock."""

    def __init__(self, ttl: float, asked: float) -> None:
        self._ttl = ttl
        self._end = 0.0
        self.granted(asked)

    @property
    def renew_every(self) -> float:
        """Pause between renewals: several may fail before the lease is lost."""
        return self._ttl / RENEWALS

    def granted(self, asked: float) -> None:
        """The store gave the lease, or renewed it, when it was asked at that time."""
        self._end = asked + self._ttl * (1 - MARGIN)

    def left(self, now: float) -> float:
        """Seconds in which nobody else can have become the leader."""
        return max(0.0, self._end - now)

    def lasts(self, now: float) -> bool:
        """Whether nobody else can have become the leader yet."""
        return now < self._end
