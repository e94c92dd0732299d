"""Counts what the gateway does, and writes it in the Prometheus text format."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counters and gauges of one process."""

    def __init__(self) -> None:
        self._values: dict[str, dict[Labels, float]] = defaultdict(lambda: defaultdict(float))
        self._kinds: dict[str, tuple[str, str]] = {}

    def describe(self, name: str, kind: str, text: str) -> None:
        """Say what a metric means; `kind` is `counter` or `gauge`."""
        self._kinds[name] = (kind, text)

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter or a gauge."""
        self._values[name][tuple(sorted(labels.items()))] += amount

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._values[name][tuple(sorted(labels.items()))] = value

    def text(self) -> str:
        """Return everything in the Prometheus text format."""
        lines: list[str] = []
        for name, (kind, text) in self._kinds.items():
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            values: Mapping[Labels, float] = self._values[name] or {(): 0.0}
            lines += [f"{name}{_labels(labels)} {value:g}" for labels, value in values.items()]
        return "\n".join(lines) + "\n"


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in labels) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
