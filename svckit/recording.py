"""Spans that are recorded, cheaply: ours in the place of the SDK's, which cost several times more.

One plain object takes what happens and is what the exporters get. There are no locks (a span is
written by one event loop), attributes are not looked at (they come from `svckit.conventions`, which
is typed), and processors hear of spans that have ended, never of their start. What an exception
says is never written down, whoever asks for it: it may hold anything.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import (
    Event,
    ReadableSpan,
    SpanProcessor,
    SynchronousMultiSpanProcessor,
)
from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from svckit import conventions as c
from svckit.idtracing import begin

MOST_EVENTS = MOST_LINKS = 128
"""Of one span, as the SDK has it; of more, the last are kept and the others counted."""

_UNSET = trace.Status()


class RecordingProvider(trace.TracerProvider):
    """Makes tracers whose spans are recorded, if their trace is, and handed to `processors`.

    `sample_ratio`: the part of the traces that begin here which are recorded.
    """

    def __init__(self, resource: Resource | None = None, sample_ratio: float = 1.0) -> None:
        self.resource = resource if resource is not None else Resource.create({})
        self._processors: Any = SynchronousMultiSpanProcessor()  # type: ignore[no-untyped-call]
        self._bound = TraceIdRatioBased.get_bound_for_rate(sample_ratio)

    def add_span_processor(self, processor: SpanProcessor) -> None:
        """From now on `processor` hears of every span that has ended."""
        self._processors.add_span_processor(processor)

    def get_tracer(
        self, instrumenting_module_name: str = c.TRACER, *_: Any, **__: Any
    ) -> trace.Tracer:
        """See OpenTelemetry."""
        scope = InstrumentationScope(instrumenting_module_name)
        return _Tracer(self._processors, self.resource, scope, self._bound)

    def force_flush(self) -> bool:
        """Send what has ended."""
        return bool(self._processors.force_flush())

    def shutdown(self) -> None:
        """Send what has ended, and stop."""
        self._processors.shutdown()


class _Tracer(trace.Tracer):
    def __init__(
        self,
        processor: SpanProcessor,
        resource: Resource,
        scope: InstrumentationScope,
        bound: int,
    ) -> None:
        # Named as those of the SDK's tracers: `svckit.finished` takes them from either.
        self.span_processor = processor
        self.resource = resource
        self.scope = scope
        self._bound = bound

    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: trace.SpanKind = trace.SpanKind.INTERNAL,
        attributes: Any = None,
        links: Sequence[trace.Link] | None = (),
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> trace.Span:
        parent = trace.get_current_span(context).get_span_context()
        own = begin(parent, self._bound)
        if not own.trace_flags & trace.TraceFlags.SAMPLED:
            return trace.NonRecordingSpan(own)
        return _Span(
            self,
            name,
            own,
            parent if parent.is_valid else None,
            kind,
            attributes,
            links,
            start_time,
        )

    def start_as_current_span(
        self, name: str, context: Context | None = None, *values: Any, **named: Any
    ) -> Any:
        end_on_exit = named.pop("end_on_exit", True)
        return trace.use_span(
            self.start_span(name, context, *values, **named),
            end_on_exit,
            record_exception=False,
            set_status_on_exception=False,
        )


class _Span(ReadableSpan, trace.Span):
    # Most spans have none of these, and make none.
    _events: tuple[Event, ...] = ()
    _links: tuple[trace.Link, ...] = ()
    _status = _UNSET
    _end_time: int | None = None
    _instrumentation_info = None
    _more_events = _more_links = 0

    def __init__(
        self,
        tracer: _Tracer,
        name: str,
        context: trace.SpanContext,
        parent: trace.SpanContext | None,
        kind: trace.SpanKind,
        attributes: Mapping[str, c.Value] | None,
        links: Sequence[trace.Link] | None,
        start_time: int | None,
    ) -> None:
        # Not the constructor of the SDK, which sets whatever there is.
        self._processor = tracer.span_processor
        self._resource = tracer.resource
        self._instrumentation_scope = tracer.scope
        self._name = name
        self._context: trace.SpanContext = context
        self._parent = parent
        self._kind = kind
        self._attributes: dict[str, Any] = dict(attributes) if attributes else {}
        self._start_time = time.time_ns() if start_time is None else start_time
        for link in links or ():
            self.add_link(link.context, link.attributes)

    # -- What OpenTelemetry asks of a span; after its end, nothing is taken any more -------------

    def get_span_context(self) -> trace.SpanContext:
        return self._context

    def is_recording(self) -> bool:
        return self._end_time is None

    def set_attribute(self, key: str, value: Any) -> None:
        if self._end_time is None:
            self._attributes[key] = value

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        if self._end_time is None:
            self._attributes.update(attributes)

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        if self._end_time is not None:
            return
        happened = Event(name, dict(attributes or {}), timestamp or time.time_ns())
        self._more_events += len(self._events) >= MOST_EVENTS
        self._events = (*self._events[-MOST_EVENTS + 1 :], happened)

    def add_link(self, context: trace.SpanContext, attributes: Any = None) -> None:
        if self._end_time is not None or not context.is_valid:
            return
        self._more_links += len(self._links) >= MOST_LINKS
        self._links = (*self._links[-MOST_LINKS + 1 :], trace.Link(context, attributes))

    def update_name(self, name: str) -> None:
        if self._end_time is None:
            self._name = name

    def set_status(
        self, status: trace.Status | trace.StatusCode, description: str | None = None
    ) -> None:
        if isinstance(status, trace.StatusCode):
            status = trace.Status(status, description)
        # A good end is final, and nobody takes a status back.
        final = self._status.status_code is trace.StatusCode.OK
        if self._end_time is None and not final and not status.is_unset:
            self._status = status

    def record_exception(
        self,
        exception: BaseException,
        attributes: Any = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        named = {c.EXCEPTION_TYPE: type(exception).__qualname__, **(attributes or {})}
        self.add_event(c.EXCEPTION, named, timestamp)

    def end(self, end_time: int | None = None) -> None:
        if self._end_time is not None:
            return
        self._end_time = time.time_ns() if end_time is None else end_time
        # It is read later, in another thread: what it was given must not change until then.
        for key, value in self._attributes.items():
            if type(value) is list:
                self._attributes[key] = tuple(value)
        self._processor.on_end(self)

    # -- What exporters ask besides ---------------------------------------------------------------

    @property
    def dropped_events(self) -> int:
        return self._more_events

    @property
    def dropped_links(self) -> int:
        return self._more_links
