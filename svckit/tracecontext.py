"""Trace context that is stored with work, so that it survives queues, restarts and retries."""

from __future__ import annotations

from opentelemetry import baggage, context, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from conveyor.common.v1 import trace_pb2

BAGGAGE_KEYS = ("conveyor.run.id", "conveyor.flow.id")
"""The only baggage that is stored or passed on."""

_trace = TraceContextTextMapPropagator()
_baggage = W3CBaggagePropagator()


def current() -> trace_pb2.TraceContext:
    """Return the context of the span that is active now, empty when there is none."""
    carrier: dict[str, str] = {}
    _trace.inject(carrier)
    kept = context.Context()
    for key in BAGGAGE_KEYS:
        value = baggage.get_baggage(key)
        if value is not None:
            kept = baggage.set_baggage(key, value, kept)
    _baggage.inject(carrier, kept)
    return trace_pb2.TraceContext(**carrier)


def current_id(within: context.Context | None = None) -> str:
    """Return the trace id of the span that is active, 32 hexadecimal digits, empty without one."""
    span = trace.get_current_span(within).get_span_context()
    return trace.format_trace_id(span.trace_id) if span.is_valid else ""


def page(template: str, trace_id: str) -> str:
    """Return where a person sees a trace; `template` is `telemetry.ui_url`."""
    return template.replace("{trace_id}", trace_id)


def parent_of(stored: trace_pb2.TraceContext) -> context.Context:
    """Return a context to give to `start_span(context=...)`; a fresh root when none is stored."""
    carrier = {"traceparent": stored.traceparent, "tracestate": stored.tracestate}
    found = _trace.extract(carrier, context.Context())
    return _baggage.extract({"baggage": stored.baggage}, found) if stored.baggage else found


def link_to(stored: trace_pb2.TraceContext) -> trace.Link | None:
    """Return a link to the stored span, or None when none is stored."""
    span = trace.get_current_span(parent_of(stored)).get_span_context()
    return trace.Link(span) if span.is_valid else None


def trace_id_of(stored: trace_pb2.TraceContext) -> str:
    """Return the stored trace id, 32 hexadecimal digits, or an empty string."""
    return current_id(parent_of(stored))


def is_recorded(stored: trace_pb2.TraceContext) -> bool:
    """Tell whether whoever began the stored trace decided that it is recorded."""
    span = trace.get_current_span(parent_of(stored)).get_span_context()
    return bool(span.trace_flags.sampled)
