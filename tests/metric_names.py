"""What is exposed, against what is defined."""

from __future__ import annotations

from svckit.metrics import definitions
from svckit.metrics.definitions import Definition


def all_definitions() -> list[Definition]:
    """Return every metric there is."""
    return [value for value in vars(definitions).values() if isinstance(value, Definition)]
