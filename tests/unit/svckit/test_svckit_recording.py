"""What is recorded of a span, beside what the SDK's own would."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from svckit.recording import MOST_EVENTS, MOST_LINKS, RecordingProvider

RESOURCE = Resource.create({"service.name": "x"})


def spans_of(provider: Any) -> tuple[trace.Tracer, InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider.get_tracer("conveyor"), exporter


def use(tracer: trace.Tracer) -> None:
    """Everything that a span is used for."""
    remote = trace.SpanContext(5, 6, True, trace.TraceFlags(1), trace.TraceState([("a", "b")]))
    above = trace.set_span_in_context(trace.NonRecordingSpan(remote))
    with tracer.start_as_current_span(
        "work",
        context=above,
        kind=trace.SpanKind.SERVER,
        attributes={"s": "x", "i": 1},
        links=[trace.Link(remote, {"why": "so"}), trace.Link(trace.INVALID_SPAN_CONTEXT)],
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        assert trace.get_current_span() is span
        assert span.is_recording()
        span.set_attribute("i", 2)
        span.set_attributes({"f": 0.5, "b": True, "l": ["x", "y"]})
        span.add_event("moment", {"k": "v"}, 7)
        for _ in range(MOST_EVENTS):
            span.add_event("more", timestamp=8)
        for _ in range(MOST_LINKS):
            span.add_link(remote)
        span.add_link(trace.INVALID_SPAN_CONTEXT)
        span.set_status(trace.StatusCode.ERROR, "broke")
        span.set_status(trace.StatusCode.UNSET)
        below = tracer.start_span("below", start_time=3)
        below.update_name("beneath")
        below.set_status(trace.Status(trace.StatusCode.OK))
        below.set_status(trace.StatusCode.ERROR, "too late")
        below.end(4)
    assert not span.is_recording()


def told(spans: Sequence[ReadableSpan]) -> list[object]:
    found: list[object] = []
    for span in spans:
        context, parent = span.context, span.parent
        assert context is not None
        assert parent is not None
        found.append(
            (
                (span.name, span.kind, context.trace_id, context.trace_flags, context.trace_state),
                (parent.trace_id, parent.is_remote, dict(span.attributes or {})),
                [
                    (event.name, event.timestamp, dict(event.attributes or {}))
                    for event in span.events
                ],
                [(link.context, dict(link.attributes or {})) for link in span.links],
                (span.status.status_code, span.status.description),
                (span.dropped_attributes, span.dropped_events, span.dropped_links),
                (span.resource, span.instrumentation_scope and span.instrumentation_scope.name),
            )
        )
    return found


def test_spans_say_what_those_of_the_sdk_say() -> None:
    ours, our_spans = spans_of(RecordingProvider(RESOURCE))
    theirs, their_spans = spans_of(TracerProvider(resource=RESOURCE, shutdown_on_exit=False))
    use(ours)
    use(theirs)
    below, work = our_spans.get_finished_spans()
    assert below.parent == work.context
    assert (below.start_time, below.end_time) == (3, 4)
    assert 3 < (work.start_time or 0) <= (work.end_time or 0)
    assert told([below, work]) == told(their_spans.get_finished_spans())


def test_a_span_that_has_ended_takes_nothing_and_is_sent_once() -> None:
    tracer, exporter = spans_of(RecordingProvider(RESOURCE))
    span = tracer.start_span("s", attributes={"a": 1})
    span.end()
    before = told_of(exporter)
    span.set_attribute("a", 2)
    span.set_attributes({"a": 2})
    span.add_event("late")
    span.add_link(span.get_span_context())
    span.set_status(trace.StatusCode.ERROR)
    span.update_name("late")
    span.end()
    assert told_of(exporter) == before


def told_of(exporter: InMemorySpanExporter) -> str:
    [span] = exporter.get_finished_spans()
    return str(span.to_json())


def test_what_an_exception_says_is_written_down_for_nobody() -> None:
    tracer, exporter = spans_of(RecordingProvider(RESOURCE))
    with pytest.raises(ValueError), tracer.start_as_current_span("s"):
        raise ValueError("a secret")
    with tracer.start_span("s") as span:
        span.record_exception(ValueError("a secret"))
    first, second = (span.to_json() for span in exporter.get_finished_spans())
    assert "ValueError" in second
    assert "secret" not in first + second


def test_what_is_not_recorded_has_ids() -> None:
    tracer, exporter = spans_of(RecordingProvider(RESOURCE, sample_ratio=0))
    span = tracer.start_span("s")
    assert span.get_span_context().is_valid
    assert not span.is_recording()
    span.end()
    assert not exporter.get_finished_spans()


def test_a_forked_process_has_ids_of_its_own() -> None:
    """Spans of two services had the same ids, and one trace lost the half of them."""
    forks = """if 1:
        import os
        from svckit.spanids import SpanIds
        ids = SpanIds()
        first, read, write = ids.generate_span_id(), *os.pipe()
        child = os.fork()
        os.write(write, b"%016x" % ids.generate_span_id())
        if child:
            os.waitpid(child, 0)
            print(os.read(read, 16) != os.read(read, 16))
    """
    found = subprocess.run([sys.executable, "-c", forks], capture_output=True, text=True)
    assert found.stdout == "True\n", found.stderr
