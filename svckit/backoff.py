"""Pauses between retries."""

from __future__ import annotations

import random
from collections.abc import Iterator


def full_jitter(initial: float, maximum: float, multiplier: float = 2.0) -> Iterator[float]:
    """Yield pauses in seconds for ever: each random between 0 and a bound that grows.

    The bound starts at `initial`, grows by `multiplier` and stops at `maximum`. Full jitter keeps
    clients that failed together from coming back together.
    """
    bound = initial
    while True:
        yield random.uniform(0, bound)
        bound = min(maximum, bound * multiplier)
