"""Spans for when nobody collects them: ids that logs, runs and announcements show, and no more.

A recording span costs as much as a small call: attributes are cleaned, times taken, locks held.
"""

from __future__ import annotations

from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

from svckit.spanids import SpanIds

_ids = SpanIds()
_SAMPLED = trace.TraceFlags(trace.TraceFlags.SAMPLED)
_NOT_SAMPLED = trace.TraceFlags(trace.TraceFlags.DEFAULT)


def begin(parent: trace.SpanContext, bound: int) -> trace.SpanContext:
    """Return the context of a span below `parent`, of the first of a trace if that is not valid.

    Whether a trace is recorded is decided where it begins, by its id and the `bound` of a ratio;
    everybody further on does as was decided.
    """
    if parent.is_valid:
        trace_id, flags, state = parent.trace_id, parent.trace_flags, parent.trace_state
    else:
        trace_id, state = _ids.generate_trace_id(), None
        kept = trace_id & TraceIdRatioBased.TRACE_ID_LIMIT < bound
        flags = _SAMPLED if kept else _NOT_SAMPLED
    return trace.SpanContext(trace_id, _ids.generate_span_id(), False, flags, state)


class IdTracerProvider(trace.TracerProvider):
    """Makes tracers whose spans have ids and parents as usual, and record nothing.

    `sample_ratio`: the part of the traces that begin here which others, further on, collect.
    """

    def __init__(self, sample_ratio: float = 1.0) -> None:
        self._bound = TraceIdRatioBased.get_bound_for_rate(sample_ratio)

    def get_tracer(self, *_: Any, **__: Any) -> trace.Tracer:
        """See OpenTelemetry; all tracers are alike."""
        return _IdTracer(self._bound)

    def shutdown(self) -> None:
        """Nothing to flush."""


class _IdTracer(trace.Tracer):
    def __init__(self, bound: int) -> None:
        self._bound = bound

    def start_span(
        self, name: str, context: Context | None = None, *_: Any, **__: Any
    ) -> trace.Span:
        parent = trace.get_current_span(context).get_span_context()
        return trace.NonRecordingSpan(begin(parent, self._bound))

    def start_as_current_span(
        self, name: str, context: Context | None = None, *_: Any, **__: Any
    ) -> Any:
        return trace.use_span(self.start_span(name, context))
