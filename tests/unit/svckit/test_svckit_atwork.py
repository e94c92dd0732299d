"""The span of somebody at work on a turn: how it ends, whatever happens, and what it never says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from conveyor.scheduler.v1 import worker_service_pb2 as ws
from svckit import conventions as c
from svckit.atwork import AtWork
from svckit.errors import InvalidField, LeaseLost, RunCancelled
from svckit.spanning import step
from svckit.testing import memory_tracer
from svckit.turn import Fail, LeasedTurn, Release


def nothing(_: LeasedTurn) -> None: ...


def cancelled(turn: LeasedTurn) -> None:
    turn.cancelled.set()


def lost(turn: LeasedTurn) -> None:
    turn.lost.set()


def at_work(turn: LeasedTurn) -> tuple[AtWork, InMemorySpanExporter]:
    tracer, exporter = memory_tracer()
    return AtWork(tracer, turn, "invoke_agent x", {}), exporter


def facts(exporter: InMemorySpanExporter) -> Mapping[str, Any]:
    return dict(exporter.get_finished_spans()[-1].attributes or {})


@pytest.mark.parametrize(
    ("before", "error", "outcome", "reason"),
    [
        (nothing, ValueError("s3cret"), "fail", "unexpected"),
        (nothing, InvalidField("s3cret"), "fail", "INVALID_FIELD"),
        (nothing, LeaseLost("s3cret"), "lost", ""),
        (lost, asyncio.CancelledError("s3cret"), "lost", ""),
        (cancelled, asyncio.CancelledError("s3cret"), "cancelled", ""),
        (nothing, asyncio.CancelledError("s3cret"), "release", ""),
    ],
)
def test_a_turn_that_breaks_off_says_how_and_never_in_words(
    before: Callable[[LeasedTurn], None], error: BaseException, outcome: str, reason: str
) -> None:
    turn = LeasedTurn(ws.LeasedRun())
    work, exporter = at_work(turn)
    before(turn)
    with pytest.raises(type(error)), work:
        raise error
    [span] = exporter.get_finished_spans()
    assert facts(exporter)[c.OUTCOME] == outcome
    assert facts(exporter).get(c.ERROR_TYPE, "") == reason
    assert (span.status.status_code is trace.StatusCode.ERROR) == bool(reason)
    assert "s3cret" not in span.to_json()


def test_what_comes_after_the_end_changes_nothing() -> None:
    work, exporter = at_work(LeasedTurn(ws.LeasedRun()))

    def work_on() -> None:
        with work:
            work.ended(Release("draining"))
            raise ValueError("afterwards")

    with pytest.raises(ValueError, match="afterwards"):
        work_on()
    assert facts(exporter)[c.OUTCOME] == "release"
    assert c.ERROR_TYPE not in facts(exporter)


def test_a_run_that_was_cancelled_is_no_error() -> None:
    turn = LeasedTurn(ws.LeasedRun())
    turn.cancelled.set()
    work, exporter = at_work(turn)
    with work:
        work.ended(Fail(RunCancelled("enough"), retryable=False))
    assert facts(exporter)[c.ERROR_TYPE] == "RUN_CANCELLED"
    assert exporter.get_finished_spans()[0].status.status_code is trace.StatusCode.UNSET


def test_a_kept_turn_has_a_span_before_and_one_after_the_wait(
    caplog: pytest.LogCaptureFixture,
) -> None:
    work, exporter = at_work(LeasedTurn(ws.LeasedRun()))
    next_run = work.tracer.start_span("run acp")
    outside = trace.get_current_span()
    with work:
        first = work.span
        work.waits("approval")
        # It is there at once, and what comes during the wait still belongs to it.
        assert [span.name for span in exporter.get_finished_spans()] == ["invoke_agent x"]
        work.tracer.start_span("wait permission", context=work.within).end()
        work.event("too late")
        work.note({"too": "late"})
        work.next_turn(next_run)
        assert trace.get_current_span() is work.span is not first
        work.ended(Release())
    assert trace.get_current_span() is outside
    before, during, after = exporter.get_finished_spans()
    assert (before.context, during.parent) == (during.parent, before.context)
    assert after.parent == next_run.get_span_context()
    assert [link.context for link in after.links] == [before.context]
    assert (before.attributes or {})[c.WAITS_FOR] == "approval"
    # The SDK says so when somebody touches a span that has ended.
    assert not caplog.records


@pytest.mark.parametrize(
    ("error", "is_error"),
    [(InvalidField("s3cret"), False), (ValueError("s3cret"), True)],
)
def test_an_answer_to_whoever_asked_is_no_error_of_a_step(error: Exception, is_error: bool) -> None:
    tracer, exporter = memory_tracer()
    with pytest.raises(type(error)), step(tracer, "command why", {}, answers=InvalidField):
        raise error
    [span] = exporter.get_finished_spans()
    assert (span.status.status_code is trace.StatusCode.ERROR) == is_error
    assert facts(exporter)[c.ERROR_TYPE] == c.error_type(error)
    assert "s3cret" not in span.to_json()
