"""What is exposed, what is defined, and what queries ask for: their names side by side."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families

from svckit.metrics import Metrics, definitions
from svckit.metrics.definitions import Definition, Kind
from svckit.metrics.exposition import exposed

DEPLOY = Path(__file__).parents[1] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "conveyor.json"
ALERTS = DEPLOY / "alerts.yml"

FUNCTIONS = frozenset({"sum", "max", "min", "count", "rate", "increase", "histogram_quantile"})
WORDS = FUNCTIONS | {"absent", "vector", "or", "and", "unless", "by"}
ADDED = frozenset({"job", "instance"})
"""Labels that Prometheus adds to everything that it collects."""


def all_definitions() -> list[Definition]:
    """Return every metric there is."""
    return [value for value in vars(definitions).values() if isinstance(value, Definition)]


def defined() -> dict[str, frozenset[str]]:
    """Return the series of all definitions, with their labels."""
    found = {}
    for one in all_definitions():
        for series in one.series:
            bucket = one.kind is Kind.HISTOGRAM and series.endswith("_bucket")
            found[series] = frozenset(one.labels) | ({"le"} if bucket else frozenset())
    return found


async def figures(metrics: Metrics) -> dict[str, float]:
    """Return what is exposed, by series as Prometheus writes it."""
    text, _ = await exposed(metrics)
    found = {}
    for line in text.decode().splitlines():
        if not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            found[series] = float(value)
    return found


def series_in(text: str) -> dict[str, frozenset[str]]:
    """Return the series that a service exposes, with their labels."""
    found: dict[str, frozenset[str]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, frozenset()) | frozenset(sample.labels)
    return found


def families_in(text: str) -> set[str]:
    """Return the metrics that a service says it has, also those without a series yet."""
    return {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE ")}


def dashboard_queries() -> Iterator[tuple[str, str]]:
    """Yield title and query of every panel, and those of the variables."""
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(
                r"label_values\((\w+), (\w+)\)", variable["definition"]
            ).groups()  # type: ignore[union-attr]
            yield variable["name"], f"count by ({label}) ({metric})"


def alert_queries() -> Iterator[tuple[str, str]]:
    """Yield name and query of every alert."""
    rules: Any = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))
    for group in rules["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def problems(query: str, known: Mapping[str, frozenset[str]]) -> list[str]:
    """Return what a query names that is not there: series, their labels, functions."""
    found: list[str] = []
    labels: set[str] = set()
    for group in re.findall(r"\bby \(([^)]*)\)", query):
        labels |= {label.strip() for label in group.split(",")}
    rest = re.sub(r"\bby \([^)]*\)", " ", query)
    series: set[str] = set()
    for name, selector in re.findall(r"([a-zA-Z_:][\w:]*)\s*(?:\{([^}]*)\})?", rest):
        # What is in braces is looked at with the series before them.
        if selector:
            asked = set(re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"', selector))
            wrong = asked - known.get(name, frozenset()) - ADDED
            found += [f"{name} has no label {label}" for label in sorted(wrong)]
    for name in re.findall(r"[a-zA-Z_:][\w:]*", re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", rest)):
        if name in known:
            series.add(name)
        elif name not in WORDS:
            found.append(f"{name} is neither a series nor a function")
    if not series:
        found.append("no series at all")
    everywhere = frozenset[str]().union(*(known[name] for name in series)) | ADDED
    found += [f"no label {label} to group by" for label in sorted(labels - everywhere)]
    for name in series:
        if name.endswith("_bucket") and "le" not in labels:
            found.append(f"{name} needs le to be grouped by")
    return found
