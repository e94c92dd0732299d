"""Ids of spans: random ones, or the one that was worked out beforehand."""

from __future__ import annotations

import random
from contextvars import ContextVar
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace.id_generator import IdGenerator

_given: ContextVar[int] = ContextVar("span_id", default=0)
# Of its own, so that a test or a library that seeds the common one does not make ids repeat.
_random = random.SystemRandom()


class SpanIds(IdGenerator):
    """Makes the ids of our providers; `start_span` below can say which."""

    def __init__(self) -> None:
        # Ids need to differ, not to be secret; asking the system for each would cost as much as
        # the rest of a span.
        self._bits = random.Random(_random.getrandbits(256)).getrandbits

    def generate_span_id(self) -> int:
        """See OpenTelemetry."""
        return _given.get() or self._bits(64) or 1

    def generate_trace_id(self) -> int:
        """See OpenTelemetry."""
        return self._bits(128) or 1


def start_span(tracer: trace.Tracer, span_id: int, name: str, **how: Any) -> trace.Span:
    """Start a span with this id, if the tracer is one of ours; else with any."""
    token = _given.set(span_id)
    try:
        return tracer.start_span(name, **how)
    finally:
        _given.reset(token)
