"""Which traces are recorded, what a span is sent as, and what a collector that is away costs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult

from conveyor.common.v1 import trace_pb2
from svckit import conventions as c
from svckit import otlp, telemetry, tracecontext, wire
from svckit.finished import Finisher
from svckit.idtracing import IdTracerProvider
from svckit.recording import RecordingProvider
from svckit.settings import Settings, load
from svckit.testing import memory_tracer, span_tree

NOWHERE = "http://127.0.0.1:1"


def settings(**env: str) -> Settings:
    return load(environ={f"CONVEYOR_TELEMETRY__{key}": value for key, value in env.items()})


def decisions(tracer: trace.Tracer, traces: int = 400) -> list[bool]:
    """Of traces that begin here: whether they are recorded, by everybody."""
    found = []
    for _ in range(traces):
        root = tracer.start_span("root").get_span_context()
        below = tracer.start_span(
            "below", context=trace.set_span_in_context(trace.NonRecordingSpan(root))
        )
        assert below.get_span_context().trace_flags == root.trace_flags
        found.append(root.trace_flags.sampled)
    return found


@pytest.mark.parametrize("collects", [True, False])
def test_whether_a_trace_is_recorded_is_decided_where_it_begins(collects: bool) -> None:
    """Also by who records nothing: others further on do."""
    endpoint = {"OTLP_ENDPOINT": NOWHERE} if collects else {}
    for ratio, least, most in (("0", 0, 0), ("1", 400, 400), ("0.5", 100, 300)):
        made = telemetry.setup("x", settings(SAMPLE_RATIO=ratio, **endpoint))
        assert isinstance(made.provider, RecordingProvider if collects else IdTracerProvider)
        assert least <= sum(decisions(made.tracer)) <= most


@pytest.mark.parametrize("collects", [True, False])
@pytest.mark.parametrize("sampled", [True, False])
def test_a_decision_is_followed_whatever_the_ratio(collects: bool, sampled: bool) -> None:
    endpoint = {"OTLP_ENDPOINT": NOWHERE} if collects else {}
    made = telemetry.setup("x", settings(SAMPLE_RATIO="0" if sampled else "1", **endpoint))
    stored = trace_pb2.TraceContext(traceparent=f"00-{1:032x}-{2:016x}-{int(sampled):02x}")
    span = made.tracer.start_span("s", context=tracecontext.parent_of(stored))
    assert span.get_span_context().trace_id == 1
    assert span.get_span_context().trace_flags.sampled is sampled
    assert tracecontext.is_recorded(stored) is sampled


def test_stored_contexts_are_read_as_the_library_reads_them() -> None:
    tracer, _ = memory_tracer()
    with tracer.start_as_current_span("s") as span:
        stored = tracecontext.current()
    assert tracecontext.parse(stored.traceparent) == trace.SpanContext(
        span.get_span_context().trace_id,
        span.get_span_context().span_id,
        is_remote=True,
        trace_flags=span.get_span_context().trace_flags,
    )
    for wrong in ("", "x" * 55, f"00-{0:032x}-{1:016x}-01", f"00-{1:032x}-{0:016x}-01"):
        assert tracecontext.parse(wrong) is None
    other = tracecontext.parse(tracecontext.with_span(stored.traceparent, 7))
    assert other is not None
    assert (other.trace_id, other.span_id) == (span.get_span_context().trace_id, 7)
    assert tracecontext.with_span("", 7) == ""
    assert tracecontext.turn_span_id("r", 1) == tracecontext.turn_span_id("r", 1)
    assert tracecontext.turn_span_id("r", 1) != tracecontext.turn_span_id("r", 2)


def test_a_span_may_have_an_id_that_was_worked_out() -> None:
    tracer, exporter = memory_tracer()
    given = tracer.start_span("given")
    finisher = Finisher(tracer)
    parent = given.get_span_context()
    finisher.make("finished", finisher.context(parent, 8), parent, 1, 2, error="GONE")
    [made] = exporter.get_finished_spans()
    assert made.context is not None
    assert (made.context.trace_id, made.context.span_id) == (parent.trace_id, 8)
    off = trace.SpanContext(1, 2, is_remote=False, trace_flags=trace.TraceFlags(0))
    finisher.make("not sampled", off, None, 1, 2)
    given.end()
    assert span_tree(exporter) == "INTERNAL given\n  INTERNAL finished ERROR"
    assert not Finisher(IdTracerProvider().get_tracer()).records


def spans() -> list[Any]:
    """One span with everything, a plain one, and one that was made finished."""
    tracer, exporter = memory_tracer()
    state = trace.TraceState([("a", "b")])
    remote = trace.SpanContext(5, 6, True, trace.TraceFlags(1), state)
    full = tracer.start_span(
        "full",
        context=trace.set_span_in_context(trace.NonRecordingSpan(remote)),
        kind=trace.SpanKind.CLIENT,
        attributes={"s": "x", "i": 3, "f": 0.5, "b": True, "l": ["x", "y"], "n": []},
        links=[trace.Link(remote, {"why": "so"})],
    )
    full.add_event("moment", {"k": "v"})
    full.set_status(trace.StatusCode.ERROR, "broke")
    full.end()
    tracer.start_span("plain", attributes={c.OPENINFERENCE_SPAN_KIND: c.LLM}).end()
    finisher = Finisher(tracer)
    finisher.make("finished", finisher.context(remote), remote, 1, 2)
    return list(exporter.get_finished_spans())


def sent_as(made: Sequence[ReadableSpan], service: str) -> ExportTraceServiceRequest:
    return ExportTraceServiceRequest.FromString(wire.request_of(made, service)[0])


def test_a_span_is_sent_as_the_library_would_and_says_what_some_pages_do_not_keep() -> None:
    made = spans()
    ours, theirs = sent_as(made, "agent_svc"), encode_spans(made)
    [sent] = ours.resource_spans
    of_ours = sent.scope_spans[0].spans
    of_theirs = [span for scope in theirs.resource_spans[0].scope_spans for span in scope.spans]
    assert [span.name for span in of_ours] == ["full", "plain", "finished"]
    stamps = {c.SERVICE_NAME, c.SPAN_KIND, c.OPENINFERENCE_SPAN_KIND, c.LINKS}
    said = []
    for our, their in zip(of_ours, of_theirs, strict=True):
        said.append({a.key: a.value.string_value for a in our.attributes if a.key in stamps})
        kept = [a for a in our.attributes if a.key not in stamps]
        del our.attributes[:]
        our.attributes.extend(kept)
        own = [a for a in their.attributes if a.key not in stamps]
        del their.attributes[:]
        their.attributes.extend(own)
        assert our == their
    assert [entry[c.SPAN_KIND] for entry in said] == ["CLIENT", "INTERNAL", "INTERNAL"]
    assert [entry[c.OPENINFERENCE_SPAN_KIND] for entry in said] == ["CHAIN", "LLM", "CHAIN"]
    assert {entry[c.SERVICE_NAME] for entry in said} == {"agent_svc"}
    again = sent_as(made, "x").resource_spans[0].scope_spans[0].spans[0]
    [links] = [a for a in again.attributes if a.key == c.LINKS]
    assert [v.string_value for v in links.value.array_value.values] == [f"{5:032x}:{6:016x}"]
    assert wire.request_of([], "x") == (b"", 0)


@pytest.mark.parametrize("length", [0, 1, 99, 100, 127, 128, 20_000])
@pytest.mark.parametrize("letter", ["a", "\u00e4", "\U0001f600"])
def test_values_of_any_length_are_sent_as_the_library_would(length: int, letter: str) -> None:
    told: dict[str, Any] = {
        "text": letter * length,
        letter * (length or 1): "key",
        "plus": 1 << length % 63,
        "minus": -(1 << length % 63),
        "most": 2**63 - 1,
        "least": -(2**63),
        "no": False,
        "half": 0.5 - length,
        "words": [letter * length, "x"],
    }
    tracer, exporter = memory_tracer()
    tracer.start_span(letter * (length or 1), attributes=told).end()
    made = exporter.get_finished_spans()
    ours, theirs = (
        request.resource_spans[0].scope_spans[0].spans[0].attributes
        for request in (sent_as(made, "x"), encode_spans(made))
    )
    given = {entry.key: entry.value for entry in ours if entry.key in told}
    assert given == {entry.key: entry.value for entry in theirs}


def test_half_of_a_pair_does_not_cost_a_batch() -> None:
    tracer, exporter = memory_tracer()
    tracer.start_span("s", attributes={"half": "a\ud800", "halves": ["\ud800b"]}).end()
    [told] = sent_as(exporter.get_finished_spans(), "x").resource_spans[0].scope_spans[0].spans
    found = {entry.key: entry.value for entry in told.attributes}
    assert found["half"].string_value == "a?"
    assert found["halves"].array_value.values[0].string_value == "?b"


def test_an_outage_costs_the_spans_and_two_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    answers = SpanExportResult.FAILURE
    monkeypatch.setattr(OTLPSpanExporter, "export", lambda self, batch: answers)
    monkeypatch.setattr(otlp, "MOST_WAITING", 2 * otlp.BATCH)
    made = telemetry.setup("x", settings(OTLP_ENDPOINT=NOWHERE))
    assert made.sender is not None
    exporter: Any = made.sender.span_exporter
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            exporter.taken += 5
            exporter.export(spans() * 2)
        answers = SpanExportResult.SUCCESS
        exporter.export([])
    assert made.dropped == 18
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    # Nobody takes any away now: no more wait than may.
    exporter.taken = exporter.done = 0
    monkeypatch.setattr(exporter, "export", lambda batch: answers)
    for _ in range(otlp.MOST_WAITING + 3):
        made.tracer.start_span("s").end()
    assert made.dropped == 21
    made.shutdown()
