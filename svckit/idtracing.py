"""Spans for when nobody collects them: ids that logs, runs and announcements show, and no more.

A recording span costs as much as a small call: attributes are cleaned, times taken, locks held.
"""

from __future__ import annotations

from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

_ids = RandomIdGenerator()
_NEW_TRACE_FLAGS = trace.TraceFlags(trace.TraceFlags.SAMPLED)


class IdTracerProvider(trace.TracerProvider):
    """Makes tracers whose spans have ids and parents as usual, and record nothing."""

    def get_tracer(self, *_: Any, **__: Any) -> trace.Tracer:
        """See OpenTelemetry; all tracers are alike."""
        return _IdTracer()

    def shutdown(self) -> None:
        """Nothing to flush."""


class _IdTracer(trace.Tracer):
    def start_span(
        self, name: str, context: Context | None = None, *_: Any, **__: Any
    ) -> trace.Span:
        parent = trace.get_current_span(context).get_span_context()
        known = parent.is_valid
        return trace.NonRecordingSpan(
            trace.SpanContext(
                trace_id=parent.trace_id if known else _ids.generate_trace_id(),
                span_id=_ids.generate_span_id(),
                is_remote=False,
                # Whether others, further on, collect theirs is decided where the trace began.
                trace_flags=parent.trace_flags if known else _NEW_TRACE_FLAGS,
                trace_state=parent.trace_state if known else None,
            )
        )

    def start_as_current_span(
        self, name: str, context: Context | None = None, *_: Any, **__: Any
    ) -> Any:
        return trace.use_span(self.start_span(name, context))
