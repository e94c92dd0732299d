"""Ids of traces and spans."""

from __future__ import annotations

import random

from opentelemetry.sdk.trace.id_generator import IdGenerator

_seeds = random.SystemRandom()


class SpanIds(IdGenerator):
    """Makes the ids of our providers.

    They have to differ, not to be secret: asking the system for each costs as much as the rest of a
    span. Each has a generator of its own, so that seeding the common one makes no id repeat.
    """

    def __init__(self) -> None:
        self._bits = random.Random(_seeds.getrandbits(256)).getrandbits

    def generate_span_id(self) -> int:
        """See OpenTelemetry."""
        return self._bits(64) or 1

    def generate_trace_id(self) -> int:
        """See OpenTelemetry."""
        return self._bits(128) or 1
