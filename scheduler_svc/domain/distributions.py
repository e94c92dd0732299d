"""How long turns take in a forecast.

A time is drawn by quantile: `at(u)` is the time that a share `u` of all turns does not exceed. So
one number in [0, 1) decides it, and the same number gives the same time whatever the limits are.
"""

from __future__ import annotations

import math
from bisect import bisect_left

import msgspec


class Fixed(msgspec.Struct, frozen=True):
    """Always the same number of microseconds."""

    time: int

    def at(self, u: float) -> int:
        """The time, whatever `u` is."""
        return self.time


class Percentiles(msgspec.Struct, frozen=True):
    """Log-linear between the given percentiles, in microseconds, each at least the one before.

    Below the median it mirrors what is above it: a tenth takes at most `p50 * p50 / p90`.
    """

    p50: int
    p90: int
    p99: int
    most: int

    def at(self, u: float) -> int:
        """The time that a share `u` of the turns does not exceed."""
        if u < 0.5:
            return max(1, round(self.p50 * self.p50 / self._above(1.0 - u)))
        return round(self._above(u))

    def _above(self, u: float) -> float:
        marks = (0.5, 0.9, 0.99, 1.0)
        times = (self.p50, self.p90, self.p99, self.most)
        end = max(1, bisect_left(marks, u))
        share = (u - marks[end - 1]) / (marks[end] - marks[end - 1])
        low, high = math.log(times[end - 1]), math.log(times[end])
        return math.exp(low + share * (high - low))


class Samples(msgspec.Struct, frozen=True):
    """One of the measured times, in microseconds and ascending, each as likely as the others."""

    times: list[int]

    def at(self, u: float) -> int:
        """The time that a share `u` of the samples does not exceed."""
        return self.times[int(u * len(self.times))]


Times = Fixed | Percentiles | Samples
