"""What is exposed, against what is defined."""

from __future__ import annotations

from svckit.metrics import Metrics, definitions
from svckit.metrics.definitions import Definition
from svckit.metrics.exposition import exposed


def all_definitions() -> list[Definition]:
    """Return every metric there is."""
    return [value for value in vars(definitions).values() if isinstance(value, Definition)]


async def figures(metrics: Metrics) -> dict[str, float]:
    """Return what is exposed, by series as Prometheus writes it."""
    text, _ = await exposed(metrics)
    found = {}
    for line in text.decode().splitlines():
        if not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            found[series] = float(value)
    return found
