"""Spans whose beginning and end are known when they are made, such as a wait that is over.

They are put together at once, with an id that may have been given away before, and cost a small
part of one that is started, filled and ended. Nothing is made when nobody records, and nothing of a
trace that is not sampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry import trace

from svckit.conventions import TRACER, Value
from svckit.spanids import SpanIds


class Finisher:
    """Makes finished spans for the exporters of a tracer."""

    def __init__(self, tracer: trace.Tracer | None) -> None:
        # The tracers of the SDK have these; one that records nothing has not.
        self._processor: Any = getattr(tracer, "span_processor", None)
        self._resource: Any = getattr(tracer, "resource", None)
        self._ids = SpanIds()
        if self._processor is not None:
            from opentelemetry.sdk.trace import ReadableSpan
            from opentelemetry.sdk.util.instrumentation import InstrumentationScope

            self._made = ReadableSpan
            self._scope = InstrumentationScope(TRACER)

    @property
    def records(self) -> bool:
        """True when spans go anywhere."""
        return self._processor is not None

    def context(
        self, parent: trace.SpanContext, span_id: int = 0, *, new_trace: bool = False
    ) -> trace.SpanContext:
        """Return the context of a span below `parent`, or in a trace of its own, sampled as that
        one is; with an id that was worked out, or any."""
        return trace.SpanContext(
            trace_id=self._ids.generate_trace_id() if new_trace else parent.trace_id,
            span_id=span_id or self._ids.generate_span_id(),
            is_remote=False,
            trace_flags=parent.trace_flags,
            trace_state=None if new_trace else parent.trace_state,
        )

    def make(
        self,
        name: str,
        context: trace.SpanContext,
        parent: trace.SpanContext | None,
        start_us: int,
        end_us: int,
        *,
        kind: trace.SpanKind = trace.SpanKind.INTERNAL,
        attributes: Mapping[str, Value] | None = None,
        links: Sequence[trace.Link] = (),
        error: str | None = None,
    ) -> None:
        """Make a span and hand it to the exporters. `error`: why its status is an error."""
        if self._processor is None or not context.trace_flags & trace.TraceFlags.SAMPLED:
            return
        status = trace.Status(
            trace.StatusCode.UNSET if error is None else trace.StatusCode.ERROR, error
        )
        self._processor.on_end(
            self._made(
                name,
                context=context,
                parent=parent,
                resource=self._resource,
                attributes=attributes,
                links=links,
                kind=kind,
                status=status,
                start_time=start_us * 1000,
                end_time=max(start_us, end_us) * 1000,
                instrumentation_scope=self._scope,
            )
        )
