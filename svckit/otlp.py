"""Sends spans to a collector over OTLP/gRPC, cheaply, and puts up with one that is away.

The exporter of OpenTelemetry does the sending: addresses, headers, certificates, compression,
trying again. Three things are ours. Messages are filled in place, which takes half the time. Every
span says in attributes what some UIs do not keep otherwise: its service, kind and links. And a
collector that is away, slow or refuses costs spans and nothing else: no more than `MOST_WAITING`
wait, others are counted and given up, and the log has a line when that begins and one when it is
over.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage
from opentelemetry.proto.trace.v1.trace_pb2 import SpanFlags
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.trace import SpanContext, SpanKind

from svckit import conventions as c
from svckit.logging import get_logger

MOST_WAITING = 16_384
"""Spans that wait to be sent; a few seconds of a busy service, and some tens of megabytes."""
MOST_WAITING_WITH_CONTENTS = 2_048
"""The same where contents are captured: of such spans one may have a hundred kilobytes."""
BATCH = 256
"""Spans sent together: few enough that filling them in does not hold up the event loop."""
MOST_BYTES = 3_000_000
"""Of one message: a collector refuses those above four megabytes, with all the spans in them."""
TIMEOUT_SECONDS = 5.0
PAUSE_MILLISECONDS = 1000.0
"""How long a span waits for others at most: a person who looks at a trace waits as long."""

_log = get_logger("svckit.telemetry")

_KINDS: dict[SpanKind, tuple[Any, str]] = {
    kind: (getattr(SpanMessage, f"SPAN_KIND_{kind.name}"), kind.name) for kind in SpanKind
}
_IS_REMOTE = SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
_HAS_IS_REMOTE = SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK

# They tell of every attempt and every batch; we tell of every outage.
for _library in (
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.sdk._shared_internal",
):
    logging.getLogger(_library).setLevel(logging.CRITICAL)


class Sender(BatchSpanProcessor):
    """Collects ended spans and sends them from a thread of its own. Ending a span never waits."""

    def __init__(self, endpoint: str, service: str, *, contents: bool = False) -> None:
        self._exporter = _Exporter(endpoint, service)
        self._most = MOST_WAITING_WITH_CONTENTS if contents else MOST_WAITING
        super().__init__(
            self._exporter,
            # As the library reads them from the environment, but for the defaults.
            max_queue_size=self._most + BATCH,
            max_export_batch_size=BATCH,
            schedule_delay_millis=_pause(),
        )

    @property
    def dropped(self) -> int:
        """Spans that were given up so far."""
        return self._exporter.dropped

    def on_end(self, span: ReadableSpan) -> None:
        """Take an ended span, or give it up when too many wait."""
        exporter = self._exporter
        if exporter.taken - exporter.done >= self._most:
            exporter.give_up(1)
            return
        exporter.taken += 1
        super().on_end(span)


def _pause() -> float:
    asked = os.environ.get("OTEL_BSP_SCHEDULE_DELAY", "")
    return float(asked) if asked.isdecimal() and int(asked) else PAUSE_MILLISECONDS


class _Exporter(OTLPSpanExporter):
    def __init__(self, endpoint: str, service: str) -> None:
        insecure = not endpoint.startswith("https://")
        super().__init__(endpoint=endpoint, insecure=insecure, timeout=TIMEOUT_SECONDS)
        self._service = service
        self._answers = True
        self._made = ExportTraceServiceRequest()
        # Taken by the processor; taken and sent or given up; given up.
        self.taken = self.done = self.dropped = 0

    def give_up(self, spans: int) -> None:
        """Count spans that are not sent."""
        self.dropped += spans

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch, or give it up. Called from the processor's thread alone."""
        try:
            self._made = made = request_of(spans, self._service)
            if len(spans) > 1 and made.ByteSize() > MOST_BYTES:
                return self._in_halves(spans)
            told = sum(len(of.spans) for each in made.resource_spans for of in each.scope_spans)
            result = super().export(spans)
        except Exception as err:
            _log.error("spans were not sent", exc_info=err)
            result, told = SpanExportResult.FAILURE, 0
        self._made = ExportTraceServiceRequest()
        self.done += len(spans)
        answers = result is SpanExportResult.SUCCESS
        self.give_up(len(spans) - told if answers else len(spans))
        if answers is not self._answers:
            self._answers = answers
            if answers:
                _log.warning("the collector takes spans again", dropped=self.dropped)
            else:
                _log.warning("the collector takes no spans; those of now are given up")
        return result

    def _in_halves(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        half = len(spans) // 2
        results = {self.export(spans[:half]), self.export(spans[half:])}
        answers = results == {SpanExportResult.SUCCESS}
        return SpanExportResult.SUCCESS if answers else SpanExportResult.FAILURE

    def _translate_data(self, data: Sequence[ReadableSpan]) -> ExportTraceServiceRequest:
        # Asked for at every attempt.
        return self._made


def request_of(spans: Sequence[ReadableSpan], service: str) -> ExportTraceServiceRequest:
    """Return the message that tells a collector of spans, all of one provider.

    A span that cannot be put into words is left out: it must not take the others along.
    """
    request = ExportTraceServiceRequest()
    if not spans:
        return request
    of_resource = request.resource_spans.add()
    resource = spans[0].resource
    for key, value in resource.attributes.items():
        _set(of_resource.resource.attributes.add(), key, value)
    of_resource.schema_url = resource.schema_url
    of_scope = of_resource.scope_spans.add()
    of_scope.scope.name = c.TRACER
    for span in spans:
        try:
            _fill(of_scope.spans.add(), span, service)
        except Exception as err:
            del of_scope.spans[-1]
            _log.error("a span could not be put into words", span=span.name, exc_info=err)
    return request


def _fill(message: Any, span: ReadableSpan, service: str) -> None:
    context, parent = span.context, span.parent
    assert context is not None
    message.trace_id = context.trace_id.to_bytes(16, "big")
    message.span_id = context.span_id.to_bytes(8, "big")
    if context.trace_state:
        message.trace_state = context.trace_state.to_header()
    message.flags = _HAS_IS_REMOTE
    if parent is not None:
        message.parent_span_id = parent.span_id.to_bytes(8, "big")
        message.flags = _flags(parent)
    message.name = span.name
    message.kind, kind = _KINDS[span.kind]
    message.start_time_unix_nano = span.start_time or 0
    message.end_time_unix_nano = span.end_time or 0
    attributes = message.attributes
    for key, value in (span.attributes or {}).items():
        _set(attributes.add(), key, value)
    _set(attributes.add(), c.SERVICE_NAME, service)
    _set(attributes.add(), c.SPAN_KIND, kind)
    if not span.attributes or c.OPENINFERENCE_SPAN_KIND not in span.attributes:
        _set(attributes.add(), c.OPENINFERENCE_SPAN_KIND, c.CHAIN)
    for event in span.events:
        told = message.events.add(name=event.name, time_unix_nano=event.timestamp)
        for key, value in (event.attributes or {}).items():
            _set(told.attributes.add(), key, value)
    if span.links:
        names = []
        for link in span.links:
            to = link.context
            linked = message.links.add(
                trace_id=to.trace_id.to_bytes(16, "big"), span_id=to.span_id.to_bytes(8, "big")
            )
            linked.flags = _flags(to)
            for key, value in (link.attributes or {}).items():
                _set(linked.attributes.add(), key, value)
            names.append(f"{to.trace_id:032x}:{to.span_id:016x}")
        _set(attributes.add(), c.LINKS, names)
    status = span.status
    message.status.code = status.status_code.value
    if status.description:
        message.status.message = status.description
    message.dropped_attributes_count = span.dropped_attributes
    message.dropped_events_count = span.dropped_events
    message.dropped_links_count = span.dropped_links


def _flags(context: SpanContext) -> int:
    return _HAS_IS_REMOTE | _IS_REMOTE if context.is_remote else _HAS_IS_REMOTE


def _set(entry: Any, key: str, value: Any) -> None:
    entry.key = key
    _put(entry.value, value)


def _put(into: AnyValue, value: Any) -> None:
    # In the order of how often they come; a truth value is a number too.
    if isinstance(value, str):
        into.string_value = value
    elif isinstance(value, bool):
        into.bool_value = value
    elif isinstance(value, int):
        into.int_value = value
    elif isinstance(value, float):
        into.double_value = value
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        into.array_value.SetInParent()
        for part in value:
            _put(into.array_value.values.add(), part)
    else:
        into.string_value = str(value)
