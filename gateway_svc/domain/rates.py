"""How often each caller may call: so many in a minute, at once or spread over it."""

from __future__ import annotations

WINDOW_SECONDS = 60.0


class Rates:
    """One bucket per caller, full at first, which refills steadily."""

    def __init__(self) -> None:
        # Caller to the time at which its bucket is full again.
        self._full_at: dict[str, float] = {}

    def take(self, caller: str, per_minute: int, now: float) -> float:
        """Count one call at `now` (seconds of any clock) and return 0, or the seconds to wait.

        A call that has to wait is not counted. `per_minute` 0 is no limit.
        """
        if per_minute <= 0:
            return 0.0
        each = WINDOW_SECONDS / per_minute
        full_at = max(now, self._full_at.get(caller, 0.0)) + each
        # Half a call of slack: sums of fractions are a little off.
        over = full_at - now - WINDOW_SECONDS
        if over > each / 2:
            return over
        self._full_at[caller] = full_at
        return 0.0
