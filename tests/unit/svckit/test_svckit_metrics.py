"""Instruments, and the text that Prometheus reads."""

from __future__ import annotations

import asyncio
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from svckit.grpc import methods
from svckit.metrics import NOBODY, Metrics
from svckit.metrics.definitions import Definition, Kind
from svckit.metrics.exposition import exposed
from svckit.metrics.instruments import MOST_SERIES
from tests.metric_names import all_definitions

A = Definition("conveyor_a_total", Kind.COUNTER, "As.", ("route",))
B = Definition("conveyor_b", Kind.GAUGE, "Bs.")
C = Definition("conveyor_c_seconds", Kind.HISTOGRAM, "Cs.", ("lane",), "seconds", (0.1, 1.0))


async def text(metrics: Metrics) -> str:
    found, content_type = await exposed(metrics)
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    return found.decode()


async def test_metrics_are_prometheus_text() -> None:
    metrics = Metrics()
    metrics.counter(A).add('x"\n\\')
    metrics.counter(A).add("y", by=2)
    metrics.gauge(B).set(3)
    metrics.gauge(B).add(by=-1)
    for value in (0.05, 0.1, 0.5, 7):
        metrics.histogram(C).observe(value, "main")
    own = [line for line in (await text(metrics)).splitlines() if "conveyor_" in line]
    assert own == [
        "# HELP conveyor_a_total As.",
        "# TYPE conveyor_a_total counter",
        'conveyor_a_total{route="x\\"\\n\\\\"} 1.0',
        'conveyor_a_total{route="y"} 2.0',
        "# HELP conveyor_b Bs.",
        "# TYPE conveyor_b gauge",
        "conveyor_b 2.0",
        "# HELP conveyor_c_seconds Cs.",
        "# TYPE conveyor_c_seconds histogram",
        'conveyor_c_seconds_bucket{lane="main",le="0.1"} 2.0',
        'conveyor_c_seconds_bucket{lane="main",le="1"} 3.0',
        'conveyor_c_seconds_bucket{lane="main",le="+Inf"} 4.0',
        'conveyor_c_seconds_count{lane="main"} 4.0',
        'conveyor_c_seconds_sum{lane="main"} 7.65',
    ]


async def test_what_can_happen_is_there_before_it_does() -> None:
    metrics = Metrics()
    metrics.counter(A).start("x")
    metrics.histogram(C).start("main")
    metrics.gauge(B)
    found = await text(metrics)
    assert 'conveyor_a_total{route="x"} 0.0' in found
    assert 'conveyor_c_seconds_count{lane="main"} 0.0' in found
    assert "\nconveyor_b 0.0" in found


async def test_what_is_looked_up_is_looked_up_when_asked() -> None:
    metrics, asked = Metrics(), []

    async def refresh() -> None:
        asked.append("database")

    metrics.before(refresh)
    metrics.read(A, lambda: {("x",): float(len(asked))})
    metrics.read(B, lambda: 5)
    assert not asked
    found = await text(metrics)
    assert 'conveyor_a_total{route="x"} 1.0' in found
    assert "\nconveyor_b 5" in found


async def test_a_database_that_hangs_holds_no_answer_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("svckit.metrics.instruments.REFRESH_SECONDS", 0.01)
    metrics = Metrics()
    metrics.before(asyncio.Event().wait)  # type: ignore[arg-type]
    metrics.gauge(B).set(1)
    async with asyncio.timeout(5):
        assert "\nconveyor_b 1.0" in await text(metrics)


async def test_a_label_that_takes_every_value_fills_nothing() -> None:
    metrics = Metrics()
    for number in range(2 * MOST_SERIES):
        metrics.counter(A).add(str(number))
        metrics.histogram(C).observe(1, str(number))
    assert len(metrics.counter(A).values) == len(metrics.histogram(C).series) == MOST_SERIES + 1
    assert metrics.counter(A).values["other",] == MOST_SERIES
    assert sum(metrics.histogram(C).series["other",][0]) == MOST_SERIES
    metrics.counter(A).add("0")
    assert metrics.counter(A).values["0",] == 2


def test_labels_are_those_of_the_definition() -> None:
    with pytest.raises(ValueError, match="conveyor_a_total has labels"):
        Metrics().counter(A).add()
    with pytest.raises(ValueError, match="is no gauge"):
        Metrics().gauge(A)


async def test_nothing_is_kept_where_nobody_listens() -> None:
    counter, gauge, histogram = NOBODY.counter(A), NOBODY.gauge(B), NOBODY.histogram(C)
    counter.add("x")
    counter.start("y")
    gauge.set(1)
    gauge.add()
    histogram.start("x")
    histogram.observe(1, "x")
    NOBODY.read(B, lambda: 1 / 0)
    assert counter.values == {}
    assert gauge.values == {(): 0}
    assert histogram.series == {}
    assert NOBODY.instruments() == []


async def test_prometheus_gets_the_form_that_it_asks_for() -> None:
    metrics = Metrics()
    metrics.counter(A).add("x")
    found, content_type = await exposed(metrics, "application/openmetrics-text;version=1.0.0")
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert found.endswith(b"# EOF\n")
    assert b'conveyor_a_total{route="x"} 1.0' in found


async def test_the_process_itself_is_told() -> None:
    found = {family.name for family in text_string_to_metric_families(await text(Metrics()))}
    assert {"process_cpu_seconds", "process_resident_memory_bytes", "process_open_fds"} <= found


def test_every_definition_follows_the_conventions_of_prometheus() -> None:
    found = all_definitions()
    assert len({one.name for one in found}) == len(found)
    for one in found:
        assert re.fullmatch(r"conveyor_[a-z0-9_]+", one.name), one
        assert one.help.endswith("."), one
        assert one.name.endswith("_total") == (one.kind is Kind.COUNTER), one
        assert bool(one.bounds) == (one.kind is Kind.HISTOGRAM), one
        assert list(one.bounds) == sorted(set(one.bounds)), one
        stem = one.name.removesuffix("_total")
        assert not one.unit or stem.endswith(f"_{one.unit}"), one
        for label in one.labels:
            assert re.fullmatch(r"[a-z_]+", label), one
            # What there are many of, and what tells of people.
            assert not {"customer", "session", "run", "flow", "peer", "user", "id"} & {
                *label.split("_")
            }, one


@pytest.mark.parametrize(
    ("method", "shown"),
    [
        ("/conveyor.scheduler.v1.WorkerService/LeaseRuns", "WorkerService/LeaseRuns"),
        ("/grpc.health.v1.Health/Watch", "Health/Watch"),
        ("/conveyor.scheduler.v1.WorkerService/Invented", "other"),
        ("/conveyor.scheduler.v1.Invented/LeaseRuns", "other"),
        ("", "other"),
    ],
)
def test_methods_that_a_caller_makes_up_become_no_series(method: str, shown: str) -> None:
    from conveyor.scheduler.v1 import worker_service_pb2

    assert worker_service_pb2.DESCRIPTOR.name
    assert methods.short_name(method) == shown
