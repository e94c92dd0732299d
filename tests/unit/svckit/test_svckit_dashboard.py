"""The dashboard and the alerts, as files: what they ask for exists, and people can read them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.metric_names import (
    ALERTS,
    DASHBOARD,
    DEPLOY,
    alert_queries,
    dashboard_queries,
    defined,
    problems,
)

OUTSIDE = {
    "up": frozenset({"job", "instance"}),
    "process_resident_memory_bytes": frozenset[str](),
    "process_cpu_seconds_total": frozenset[str](),
}
"""Of Prometheus itself, and of its library."""


@pytest.fixture
def board() -> Any:
    return json.loads(DASHBOARD.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("where", "query"), [*dashboard_queries(), *alert_queries()])
def test_every_query_asks_for_what_is_defined(where: str, query: str) -> None:
    assert problems(query, defined() | OUTSIDE) == []


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("sum(rate(conveyor_runs_total[5m]))", "neither a series nor a function"),
        ("sum(rate(conveyor_turn_seconds[5m]))", "neither a series nor a function"),
        ('sum(conveyor_lane_waiting{queue="a"})', "has no label queue"),
        ("sum by (queue) (conveyor_lane_waiting)", "no label queue to group by"),
        ("average(conveyor_lane_waiting)", "average is neither"),
        ("histogram_quantile(0.9, rate(conveyor_turn_seconds_bucket[5m]))", "needs le"),
        ("vector(0)", "no series at all"),
    ],
)
def test_a_query_for_what_is_not_there_would_be_noticed(query: str, problem: str) -> None:
    assert any(problem in found for found in problems(query, defined()))


def test_every_metric_that_is_of_use_to_an_operator_is_on_the_dashboard() -> None:
    asked = " ".join(query for _, query in dashboard_queries())
    missing = {name.removesuffix("_bucket") for name in defined() if name.endswith("_bucket")}
    missing |= {name for name in defined() if not name.endswith(("_bucket", "_count", "_sum"))}
    assert {name for name in missing if name not in asked} == {"conveyor_delivery_log_position"} | {
        "conveyor_scheduler_leaderships_total"
    }


def test_panels_have_units_and_places_of_their_own(board: Any) -> None:
    taken: set[tuple[int, int]] = set()
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert panel["datasource"]["uid"] == "${source}"
            for target in panel["targets"]:
                seconds = "_seconds" in target["expr"] and "quantile" in target["expr"]
                mixed = "seconds" in target["legendFormat"]
                assert not seconds or mixed or panel["fieldConfig"]["defaults"]["unit"] == "s"


def test_the_first_row_says_whether_it_is_well_and_why_it_waits(board: Any) -> None:
    rows = [panel["title"] for panel in board["panels"] if panel["type"] == "row"]
    assert rows[0] == "Is it well, and why does it wait?"
    first = board["panels"][1:9]
    assert {panel["type"] for panel in first} == {"stat", "timeseries"}
    assert "conveyor_lane_waiting" in json.dumps(first)


def test_every_alert_says_how_bad_it_is_and_where_to_look() -> None:
    rules = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))["groups"][0]["rules"]
    assert len(rules) > 8
    for rule in rules:
        assert rule["labels"]["severity"] in ("critical", "warning"), rule["alert"]
        assert rule["annotations"]["summary"].endswith("."), rule["alert"]
        assert rule["annotations"]["look"], rule["alert"]


def test_provisioning_points_to_what_is_there() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    [source] = yaml.safe_load(
        (provisioning / "datasources" / "conveyor.yaml").read_text(encoding="utf-8")
    )["datasources"]
    scrape = yaml.safe_load((DEPLOY / "prometheus.yml").read_text(encoding="utf-8"))
    assert source["jsonData"]["timeInterval"] == scrape["global"]["scrape_interval"]
    assert scrape["rule_files"] == [ALERTS.name]
    jobs = {job["job_name"] for job in scrape["scrape_configs"]}
    assert jobs == {f"conveyor-{name}" for name in ("gateway", "scheduler", "agent", "acp")}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool")
@pytest.mark.parametrize("what", [("config", "prometheus.yml"), ("rules", "alerts.yml")])
def test_prometheus_takes_the_files(what: tuple[str, str]) -> None:
    kind, name = what
    promtool("check", kind, str(DEPLOY / name))


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool")
def test_prometheus_understands_every_query_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"q{number}", "expr": query.replace("$__rate_interval", "1m")}
        for number, (_, query) in enumerate(dashboard_queries())
    ]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", str(path))


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool")
def test_alerts_fire_when_they_should_and_only_then() -> None:
    promtool("test", "rules", str(Path(__file__).with_name("alerts_fire.yml")))


def promtool(*words: str) -> None:
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr
