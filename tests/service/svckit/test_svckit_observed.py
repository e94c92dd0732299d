"""Logs and traces of a process, and services inside a test."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from conveyor.events.v1 import event_log_service_pb2 as log_pb2
from conveyor.events.v1 import event_log_service_pb2_grpc as log_grpc
from svckit import telemetry
from svckit.errors import LaneFull
from svckit.grpc.client import call
from svckit.service import App, Context, Registered
from svckit.settings import load
from svckit.testing import ScriptedServicer, eventually, in_process, memory_tracer, span_tree

NAME = "conveyor.events.v1.EventLogService"

LOGGING = """
import logging, sys
from opentelemetry import trace
from svckit import logging as ours, telemetry
from svckit.settings import load
settings = load(
    environ={"CONVEYOR_LOG__FORMAT": sys.argv[1], "CONVEYOR_LOG__LEVEL": sys.argv[2]}
)
ours.setup("example", settings)
tracer = telemetry.setup("example", settings).tracer
log = ours.get_logger("a.module")
log.debug("too quiet")
with tracer.start_as_current_span("s") as span, ours.bind(run_id="r1"):
    log.info("something happened", number=1)
    print(trace.format_trace_id(span.get_span_context().trace_id))
logging.getLogger("library").warning("theirs %s", "too")
def breaks(private):
    try:
        try:
            int(private)
        except ValueError as err:
            raise ExceptionGroup(private, [KeyError(private)]) from err
    except ExceptionGroup:
        log.exception("it broke")
    logging.getLogger("asyncio").error("a task failed\\nfuture: " + private)
breaks("a private text")
"""


def logged(form: str, level: str = "info") -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", LOGGING, form, level], capture_output=True, text=True, check=True
    )
    return done.stdout.strip(), done.stderr


def test_logs_are_json_with_trace_and_run() -> None:
    trace_id, err = logged("json")
    first, theirs, broke, task = (json.loads(line) for line in err.splitlines())
    assert {k: first[k] for k in ("event", "number", "run_id", "trace_id", "service", "level")} == {
        "event": "something happened",
        "number": 1,
        "run_id": "r1",
        "trace_id": trace_id,
        "service": "example",
        "level": "info",
    }
    assert (theirs["event"], theirs["logger"], theirs["service"]) == (
        "theirs too",
        "library",
        "example",
    )
    assert "run_id" not in theirs
    for told in ("in breaks\n", "ValueError", "which led to:", "ExceptionGroup", "KeyError"):
        assert told in broke["exception"]
    assert task["event"] == "a task failed"
    assert "a private text" not in err
    _, everything = logged("json", "debug")
    assert everything.count("a private text") == 4


def test_logs_are_readable_for_people() -> None:
    _, err = logged("console")
    assert "something happened" in err
    assert "{" not in err.splitlines()[0]
    assert "in breaks\n" in err
    assert "a private text" not in err


def test_spans_are_made_without_an_exporter_and_the_exporter_does_not_hold_the_end() -> None:
    made = telemetry.setup("example", load(environ={}))
    with made.tracer.start_as_current_span("s") as span:
        assert span.get_span_context().is_valid
    made.shutdown()
    # Nobody listens there: stopping still takes no longer than it may.
    settings = load(environ={"CONVEYOR_TELEMETRY__OTLP_ENDPOINT": "http://127.0.0.1:1"})
    made = telemetry.setup("example", settings)
    made.tracer.start_span("s").end()
    made.shutdown()


def test_tracers_of_libraries_record_nothing() -> None:
    """FastAPI, and the SDKs of MCP and ACP, put paths, queries and arguments into their spans."""
    found = InMemorySpanExporter()
    made = telemetry.setup("example", load(environ={}), processors=(SimpleSpanProcessor(found),))
    with made.tracer.start_as_current_span("ours") as ours:
        theirs = trace.get_tracer("a library").start_span("theirs", attributes={"path": "/secret"})
        # What they pass on to others still belongs to the trace.
        assert theirs.get_span_context().trace_id == ours.get_span_context().trace_id
        theirs.end()
    made.shutdown()
    assert [span.name for span in found.get_finished_spans()] == ["ours"]


def building(script: ScriptedServicer, *, dies: bool = False) -> Any:
    @contextlib.asynccontextmanager
    async def build(_: Context) -> AsyncIterator[App]:
        async def work() -> None:
            if not dies:
                await asyncio.Event().wait()

        yield App([Registered(NAME, script.add_to)], tasks=[("engine", work)])

    return build


async def test_a_service_inside_a_test_has_its_boundary_and_traces() -> None:
    script = ScriptedServicer(NAME)
    script.queue("ListEvents", LaneFull("full"))
    tracer, exporter = memory_tracer()
    async with in_process(building(script), load(environ={}), tracer=tracer) as service:
        assert not service.address.endswith(":0")
        log = log_grpc.EventLogServiceStub(service.channel)
        with pytest.raises(LaneFull):
            await call(log.ListEvents(log_pb2.ListEventsRequest()))
        await eventually(lambda: len(exporter.get_finished_spans()) == 2)
        assert not service.context.draining.is_set()
    assert service.context.draining.is_set()
    assert span_tree(exporter, attributes=["error.type"]) == (
        "CLIENT EventLogService/ListEvents ERROR\n"
        "  SERVER EventLogService/ListEvents error.type=LANE_FULL"
    )


async def test_a_service_inside_a_test_whose_task_ends_fails_it() -> None:
    script = ScriptedServicer(NAME)
    with pytest.raises(AssertionError, match="background task 'engine' died"):
        async with in_process(building(script, dies=True), load(environ={})):
            await asyncio.sleep(0)


async def test_a_service_inside_a_test_knows_no_suite_that_runs_on_this_machine() -> None:
    config = load(environ={"CONVEYOR_SERVICES__AGENT": "127.0.0.1:7"})
    async with in_process(building(ScriptedServicer(NAME)), config) as service:
        services = service.context.settings.services
    assert services.agent == "127.0.0.1:7"
    assert services.scheduler == services.acp == "127.0.0.1:1"
