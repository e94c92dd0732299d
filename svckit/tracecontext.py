"""Trace context that is stored with work, so that it survives queues, restarts and retries.

Two kinds of spans have ids that can be worked out, so that whoever comes later can link to them,
put something below them, or close them in the name of a process that is gone: the span of a turn,
by its run and fencing token, and that of an announcement, by the child.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from hashlib import blake2b

from opentelemetry import baggage, context, trace
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from conveyor.common.v1 import trace_pb2
from svckit import conventions as c

BAGGAGE_KEYS = (c.RUN_ID, c.FLOW_ID)
"""The only baggage that is stored or passed on."""
MOST_LINKS = 128
"""Of one span, as the conventions have it."""
MOST_STATE = 512
"""Characters of a `tracestate`: as much as the standard wants passed on. It is stored with every
run and sent with every span of a trace, and comes from whoever calls."""

# What others may say: anything. So it is read strictly.
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_BAGGAGE_VALUE = re.compile(r"[A-Za-z0-9_-]{1,64}")
# They write down whatever of a header they cannot read.
for _library in ("opentelemetry.trace.span", "opentelemetry.baggage"):
    logging.getLogger(_library).setLevel(logging.CRITICAL)

_trace = TraceContextTextMapPropagator()
_baggage = W3CBaggagePropagator()


def current() -> trace_pb2.TraceContext:
    """Return the context of the span that is active now, empty when there is none."""
    found = stored(trace.get_current_span().get_span_context())
    found.baggage = _baggage_of(None)
    return found


def headers_of(span: trace.Span) -> dict[str, str]:
    """Return what a call says of the trace that it belongs to; nothing when it belongs to none."""
    context = span.get_span_context()
    if not context.is_valid:
        return {}
    found = {"traceparent": traceparent_of(context)}
    if context.trace_state:
        found["tracestate"] = context.trace_state.to_header()
    passed_on = _baggage_of(None)
    if passed_on:
        found["baggage"] = passed_on
    return found


def caller_of(headers: Mapping[str, str]) -> context.Context:
    """Return the context that a call came with, below the present one."""
    traceparent = headers.get("traceparent", "")
    if not traceparent:
        return context.get_current()
    return parent_of(
        trace_pb2.TraceContext(
            traceparent=traceparent,
            tracestate=headers.get("tracestate", ""),
            baggage=headers.get("baggage", ""),
        )
    )


def stranger_of(headers: Mapping[str, str]) -> tuple[context.Context, list[trace.Link]]:
    """Return the context of a call by somebody who may not say to which trace it belongs: it begins
    one, with a link to what he says."""
    span = parse(headers.get("traceparent", ""))
    return context.Context(), [trace.Link(span)] if span is not None else []


def _baggage_of(within: context.Context | None) -> str:
    if not baggage.get_all(within):
        return ""
    kept = context.Context()
    for key in BAGGAGE_KEYS:
        value = baggage.get_baggage(key, within)
        if value is not None:
            kept = baggage.set_baggage(key, value, kept)
    carrier: dict[str, str] = {}
    _baggage.inject(carrier, kept)
    return carrier.get("baggage", "")


def stored(span: trace.SpanContext) -> trace_pb2.TraceContext:
    """Return a span's context as it is stored; empty for one that is not valid."""
    if not span.is_valid:
        return trace_pb2.TraceContext()
    return trace_pb2.TraceContext(
        traceparent=traceparent_of(span),
        tracestate=span.trace_state.to_header() if span.trace_state else "",
    )


def traceparent_of(span: trace.SpanContext) -> str:
    """Return the `traceparent` of a span."""
    return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"


def parse(traceparent: str) -> trace.SpanContext | None:
    """Return the span that a stored `traceparent` names; None when it names none."""
    found = _TRACEPARENT.fullmatch(traceparent)
    if found is None:
        return None
    trace_id, span_id, flags = found.groups()
    span = trace.SpanContext(
        trace_id=int(trace_id, 16),
        span_id=int(span_id, 16),
        is_remote=True,
        trace_flags=trace.TraceFlags(int(flags, 16)),
    )
    return span if span.is_valid else None


def with_span(traceparent: str, span_id: int) -> str:
    """Return the `traceparent` of another span of the same trace; empty when there is no trace."""
    return f"{traceparent[:36]}{span_id:016x}{traceparent[52:]}" if traceparent else ""


def turn_span_id(run_id: str, token: int) -> int:
    """Return the id of the span of a turn: the one under the lease with this fencing token."""
    return _derived(f"turn {run_id} {token}")


def announcement_span_id(child_run_id: str) -> int:
    """Return the id of the span that announces the end of a child."""
    return _derived(f"announcement {child_run_id}")


def _derived(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big") or 1


def current_id(within: context.Context | None = None) -> str:
    """Return the trace id of the span that is active, 32 hexadecimal digits, empty without one."""
    span = trace.get_current_span(within).get_span_context()
    return trace.format_trace_id(span.trace_id) if span.is_valid else ""


def page(template: str, trace_id: str) -> str:
    """Return where a person sees a trace; `template` is `telemetry.ui_url`."""
    return template.replace("{trace_id}", trace_id)


def parent_of(stored: trace_pb2.TraceContext) -> context.Context:
    """Return a context to give to `start_span(context=...)`; a fresh root when none is stored."""
    state = stored.tracestate if len(stored.tracestate) <= MOST_STATE else ""
    span = None if state else parse(stored.traceparent)
    if span is not None:
        found = trace.set_span_in_context(trace.NonRecordingSpan(span), context.Context())
    else:
        carrier = {"traceparent": stored.traceparent, "tracestate": state}
        found = _trace.extract(carrier, context.Context())
    return _with_baggage(stored.baggage, found) if stored.baggage else found


def _with_baggage(header: str, within: context.Context) -> context.Context:
    for entry in header.split(","):
        key, _, value = entry.partition("=")
        if key.strip() in BAGGAGE_KEYS and _BAGGAGE_VALUE.fullmatch(value.strip()):
            within = baggage.set_baggage(key.strip(), value.strip(), within)
    return within


def span_of(stored: trace_pb2.TraceContext) -> trace.SpanContext | None:
    """Return the stored span, with its state; None when none is stored."""
    span = parse(stored.traceparent)
    if span is None or not stored.tracestate:
        return span
    return trace.get_current_span(parent_of(stored)).get_span_context()


def link_to(stored: trace_pb2.TraceContext) -> trace.Link | None:
    """Return a link to the stored span, or None when none is stored."""
    span = parse(stored.traceparent)
    return trace.Link(span) if span is not None else None


def trace_id_of(stored: trace_pb2.TraceContext) -> str:
    """Return the stored trace id, 32 hexadecimal digits, or an empty string."""
    span = parse(stored.traceparent)
    return trace.format_trace_id(span.trace_id) if span is not None else ""


def is_recorded(stored: trace_pb2.TraceContext) -> bool:
    """Tell whether whoever began the stored trace decided that it is recorded."""
    span = parse(stored.traceparent)
    return span is not None and span.trace_flags.sampled
