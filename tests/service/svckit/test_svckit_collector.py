"""A collector that is away, slow, refuses or never answers costs spans, and nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from svckit import otlp, telemetry
from svckit.settings import load
from svckit.testing import eventually
from tests.otlp import Receiver, receiver

MOST = 300
SPANS = 2000


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """A receiver; services send soon, and keep few spans for one that is away."""
    monkeypatch.setattr(otlp, "MOST_WAITING", MOST)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    with receiver() as made:
        yield made


def tracing(collector: Receiver) -> telemetry.Telemetry:
    return telemetry.setup(
        "example", load(environ={"CONVEYOR_TELEMETRY__OTLP_ENDPOINT": collector.endpoint})
    )


def work(made: telemetry.Telemetry, spans: int) -> float:
    """End so many spans; returns the seconds that it took."""
    began = time.perf_counter()
    for _ in range(spans):
        made.tracer.start_span("work").end()
    return time.perf_counter() - began


def test_a_collector_that_answers_gets_everything(collector: Receiver) -> None:
    made = tracing(collector)
    work(made, MOST // 2)
    made.shutdown()
    assert len(collector.spans) == MOST // 2
    assert made.dropped == 0


@pytest.mark.parametrize("how", ["hangs", "refuses", "is slow", "is away"])
def test_work_never_waits_for_the_collector_and_neither_does_the_end(
    collector: Receiver, how: str
) -> None:
    collector.hanging, collector.refusing = how == "hangs", how == "refuses"
    collector.delay = 0.3 if how == "is slow" else 0.0
    if how == "is away":
        collector.down()
    made = tracing(collector)
    took = work(made, SPANS)
    assert took < otlp.TIMEOUT_SECONDS, "less than one answer that does not come"
    began = time.monotonic()
    made.shutdown()
    assert time.monotonic() - began < telemetry.FLUSH_SECONDS + 2
    # What waited has its limit, and what was given up is known.
    assert made.dropped + len(collector.spans) <= SPANS
    if how == "is slow":
        assert collector.spans
    else:
        assert collector.spans == []
        assert made.dropped >= SPANS - MOST


async def test_an_outage_is_two_lines_in_the_log_and_then_all_is_well(
    collector: Receiver, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for thread in threading.enumerate():
        if thread.name == "telemetry":  # of an earlier test, whose last words are not of this one
            thread.join(30)
    caplog.clear()
    monkeypatch.setattr(otlp, "TIMEOUT_SECONDS", 0.4)
    made = tracing(collector)
    collector.refusing = True

    def told() -> list[str]:
        return [r.getMessage() for r in caplog.records if "collector" in r.getMessage()]

    for _ in range(3):
        before = made.dropped
        work(made, 10)
        await eventually(lambda before=before: made.dropped >= before + 10)
    assert len(told()) == 1, told()
    assert "takes no spans" in told()[0]
    collector.refusing = False
    work(made, 10)
    await eventually(lambda: len(collector.spans) == 10)
    await eventually(lambda: len(told()) == 2)
    assert "'dropped': 30" in told()[1]
    made.shutdown()
    assert made.dropped == 30
    assert not [r for r in caplog.records if r.name.startswith("opentelemetry")], caplog.text
