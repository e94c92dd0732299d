"""What telemetry must never do to others: fail their work, or tell what a caller wrote."""

from __future__ import annotations

import errno
import logging
import sqlite3
import threading
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SpanExportResult
from prometheus_client import CollectorRegistry, generate_latest

from conveyor.scheduler.v1 import worker_service_pb2 as ws
from scheduler_svc.counts import Counts
from scheduler_svc.domain.kernel import Changes
from scheduler_svc.spans import Spans
from svckit import captured, otlp, telemetry, tracecontext, wire
from svckit import conventions as c
from svckit.finished import Finisher
from svckit.logging import where
from svckit.metrics import Metrics, definitions
from svckit.metrics.exposition import exposed
from svckit.recording import RecordingProvider
from svckit.settings import load
from svckit.testing import memory_tracer
from svckit.turn import LeasedTurn
from svckit.turnspan import TurnSpans

PARENT = f"00-{1:032x}-{2:016x}-01"


def passed_on(headers: dict[str, str]) -> dict[str, str]:
    """What a service that is called so says to those whom it calls."""
    token = context.attach(tracecontext.caller_of(headers))
    try:
        return tracecontext.headers_of(trace.get_current_span())
    finally:
        context.detach(token)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tracestate", ",".join(f"k{n}={'x' * 250}" for n in range(32))),
        ("tracestate", "+49 151 5550100 said=hello"),
        ("baggage", f"conveyor.run.id={'A' * 4000}"),
        ("baggage", "conveyor.flow.id=call me on +49 151 5550100"),
        ("baggage", "my number+495550100 = x;;,%%%"),
    ],
)
def test_what_a_caller_makes_up_is_neither_passed_on_nor_logged(
    name: str, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Kept, it would stand in every run and every span of the trace: a collector refuses a batch
    of such spans, with those of others."""
    assert passed_on({"traceparent": PARENT, name: value}) == {"traceparent": PARENT}
    assert not caplog.records


def test_what_the_standard_has_passed_on_is_passed_on() -> None:
    said = {"traceparent": PARENT, "tracestate": "a=b,c=d", "baggage": "conveyor.run.id=r-1"}
    assert passed_on(said) == said


@pytest.mark.parametrize(
    "made_up",
    [
        f"00-{'1_' * 15}11-{2:016x}-01",
        f"00-{1:032x}-{2:016x}--1",
        f"00-{1:032x}-{2:016x}-+1",
        f"00-{1:032x}x{2:016x}x01",
        f"00-{0:032x}-{2:016x}-01",
    ],
)
def test_a_traceparent_is_read_strictly(made_up: str) -> None:
    assert tracecontext.parse(made_up) is None
    assert passed_on({"traceparent": made_up}) == {}


def test_brackets_without_end_are_text() -> None:
    """They failed the request or the turn that said them, where contents are captured."""
    endless = "[" * 7000
    assert c.tool_arguments(endless)[c.INPUT_MIME_TYPE] == "text/plain"
    call = captured.tool_call("1", "tool", endless)
    assert call["arguments"] == endless
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    call["arguments"] = deep
    assert captured.LEFT_OUT in captured.dump([captured.message("assistant", [call])])


def test_a_span_that_cannot_be_sent_takes_no_others_along(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracer, exporter = memory_tracer()
    tracer.start_span("good").end()
    tracer.start_span("bad", attributes={"tokens": 10**30}).end()
    tracer.start_span("good too").end()
    made = list(exporter.get_finished_spans())
    request, told = wire.request_of(made, "x")
    sent = ExportTraceServiceRequest.FromString(request).resource_spans[0].scope_spans[0].spans
    assert told == 2
    assert [span.name for span in sent] == ["good", "good too"]
    assert [record.levelname for record in caplog.records] == ["ERROR"]

    monkeypatch.setattr(OTLPSpanExporter, "export", lambda *_: SpanExportResult.SUCCESS)
    sender = otlp.Sender("http://127.0.0.1:1", "x")
    assert sender.span_exporter.export(made) is SpanExportResult.SUCCESS
    assert sender.dropped == 1
    sender.shutdown()  # type: ignore[no-untyped-call]


def test_spans_with_contents_go_in_messages_that_a_collector_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One message above its limit, and the spans of all who were at work then were lost."""
    sizes: list[tuple[int, int]] = []

    def export(exporter: Any, spans: Any) -> SpanExportResult:
        sizes.append((len(spans), len(exporter._translate_data(spans))))
        return SpanExportResult.SUCCESS

    monkeypatch.setattr(OTLPSpanExporter, "export", export)
    monkeypatch.setattr(otlp, "MOST_WAITING_WITH_CONTENTS", 3)
    environ = {"OTLP_ENDPOINT": "http://127.0.0.1:1", "CAPTURE_CONTENT": "true"}
    settings = load(environ={f"CONVEYOR_TELEMETRY__{k}": v for k, v in environ.items()})
    made = telemetry.setup("x", settings)
    assert made.sender is not None
    tracer, exporter = memory_tracer()
    for _ in range(otlp.BATCH):
        tracer.start_span("chat", attributes={c.INPUT_VALUE: "x" * 40_000}).end()
    tracer.start_span("too large by itself", attributes={c.INPUT_VALUE: "x" * 5_000_000}).end()
    made.sender.span_exporter.export(exporter.get_finished_spans())
    assert sum(spans for spans, _ in sizes) == otlp.BATCH + 1
    assert all(size <= otlp.MOST_BYTES for spans, size in sizes if spans > 1)
    # And fewer of them wait for a collector that is away.
    exporter_of_ours: Any = made.sender.span_exporter
    exporter_of_ours.taken = exporter_of_ours.done = 0
    monkeypatch.setattr(exporter_of_ours, "export", lambda _: SpanExportResult.SUCCESS)
    for _ in range(5):
        made.tracer.start_span("chat").end()
    assert made.dropped == 2
    made.shutdown()


def test_a_turn_goes_on_for_a_reason_that_only_a_newer_scheduler_knows() -> None:
    """It failed before anybody was at work, and its lease was extended for ever."""
    tracer, exporter = memory_tracer()
    leased = ws.LeasedRun()
    leased.resumption.reason = 99  # type: ignore[assignment]
    TurnSpans(tracer, "agent", "w").begin(LeasedTurn(leased)).end()
    told = {span.name: dict(span.attributes or {}) for span in exporter.get_finished_spans()}
    assert told[c.run_span("agent")][c.RESUME_REASON] == c.OTHER


def test_a_span_that_fails_fails_no_turn(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spans, turn = TurnSpans(memory_tracer()[0], "agent", "w"), LeasedTurn(ws.LeasedRun())
    whole = spans.begin(turn)
    monkeypatch.setattr(Finisher, "make", Mock(side_effect=ValueError("broken")))
    for begun in (whole, spans.begin(turn)):
        with begun.current():
            begun.ended_with("complete")
        begun.end()
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]


def test_what_fails_after_a_commit_fails_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    """Numbers and spans of what stands already: whoever waits for the answer gets it."""
    broken: Any = Mock(emits=[Mock()], lost=[Mock(counted=True, lane=None, run=None)])
    Counts(Metrics()).committed(Changes(), [broken], 1, 0.1)
    Spans(memory_tracer()[0]).leased(broken)
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]


async def test_a_metric_that_cannot_be_read_hides_no_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = Metrics()

    async def broken() -> None:
        raise ValueError("s3cret")

    def unreadable() -> float:
        raise KeyError("s3cret")

    metrics.before(broken)
    metrics.read(definitions.COMMANDS_WAITING, unreadable)
    metrics.counter(definitions.COMMITS_FAILED).add()
    text, _ = await exposed(metrics)
    assert b"conveyor_commits_failed_total 1.0" in text
    assert b"conveyor_commands_waiting" not in text
    assert [record.levelno for record in caplog.records] == [logging.ERROR, logging.ERROR]


def test_a_log_says_what_the_system_and_a_database_call_a_failure(tmp_path: Path) -> None:
    """Of a full disk nothing was told but `OSError`."""
    texts = []
    with pytest.raises(OSError, match="s3cret") as full:
        raise OSError(errno.ENOSPC, "s3cret", "s3cret.db")
    texts.append(where(full.value))
    with pytest.raises(sqlite3.OperationalError) as away:
        sqlite3.connect(tmp_path / "s3cret" / "data.db")
    texts.append(where(away.value))
    assert [text.splitlines()[-1] for text in texts] == [
        "OSError ENOSPC",
        "OperationalError SQLITE_CANTOPEN",
    ]


def test_two_processes_of_a_service_are_told_apart() -> None:
    """Also in containers, where each is the first process."""
    settings = load(environ={"CONVEYOR_TELEMETRY__OTLP_ENDPOINT": "http://127.0.0.1:1"})
    names = set()
    for _ in range(2):
        made = telemetry.setup("x", settings)
        assert isinstance(made.provider, RecordingProvider)
        names.add(made.provider.resource.attributes[c.SERVICE_INSTANCE_ID])
        made.shutdown()
    assert len(names) == 2


async def test_numbers_are_read_on_the_loop_and_written_down_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With many series the loop stood still for as long as the answer took to write."""
    here, seen = threading.get_ident(), {}

    def write(registry: CollectorRegistry) -> bytes:
        seen["written"] = threading.get_ident()
        return generate_latest(registry)

    def read() -> float:
        seen["read"] = threading.get_ident()
        return 7

    monkeypatch.setattr("prometheus_client.exposition.choose_encoder", lambda _: (write, "text"))
    metrics = Metrics()
    metrics.read(definitions.COMMANDS_WAITING, read)
    text, _ = await exposed(metrics)
    assert b"\nconveyor_commands_waiting 7.0" in text
    assert seen["read"] == here != seen["written"]
