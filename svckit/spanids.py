"""Ids of traces and spans."""

from __future__ import annotations

import os
import random

from opentelemetry.sdk.trace.id_generator import IdGenerator

# One of our own, so that seeding the common one makes no id repeat; and again in a process that is
# forked, which would else go on with the ids of the other one.
_random = random.Random()
_bits = _random.getrandbits
os.register_at_fork(after_in_child=_random.seed)


class SpanIds(IdGenerator):
    """Makes the ids of our providers.

    They have to differ, not to be secret: asking the system for each costs as much as the rest of a
    span.
    """

    def generate_span_id(self) -> int:
        """See OpenTelemetry."""
        return _bits(64) or 1

    def generate_trace_id(self) -> int:
        """See OpenTelemetry."""
        return _bits(128) or 1
