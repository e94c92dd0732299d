"""`metrics.md`: every metric, from its definition."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from docgen import NOTE
from svckit.metrics import definitions
from svckit.metrics.definitions import Definition, Kind

INTRO = """# Metrics

What the services count, and where it comes from. How to collect and look at it:
[metrics](../how-to/metrics.md).

- A **counter** only grows, and begins at 0 with its process: look at `rate()` or `increase()` of it. A **gauge** is
  what is now. A **histogram** is three series: `_bucket` with a label `le`, `_count` and `_sum`.
- Labels have few values, which the configuration or the contract bounds; beyond a thousand series of one metric the
  rest is counted as `other`. Customers, sessions, runs and what anybody said are in none of them.
- What is shown of lanes is that of the scheduler that leads: a standby shows none, so that sums over all are right.
- Beside these each service tells of its process, with the names that Prometheus' own library uses:
  `process_cpu_seconds_total`, `process_resident_memory_bytes`, `process_open_fds`, `process_max_fds`,
  `process_virtual_memory_bytes`, `process_start_time_seconds`.
"""

_KINDS = {Kind.COUNTER: "counter", Kind.GAUGE: "gauge", Kind.HISTOGRAM: "histogram"}


def render() -> str:
    """The document."""
    parts = [INTRO, NOTE.strip()]
    for title, found in sections():
        parts.append(f"## {title}\n\n| Metric | Kind | Labels | What it says |\n|---|---|---|---|")
        parts[-1] += "".join(f"\n{_row(one)}" for one in found)
    parts.append("## Buckets\n\n" + _buckets())
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def sections() -> list[tuple[str, list[Definition]]]:
    """The definitions below the headings of their module, in its order."""
    source = Path(definitions.__file__).read_text(encoding="utf-8")
    headings = {
        number: heading.group(1)
        for number, line in enumerate(source.splitlines(), start=1)
        if (heading := re.fullmatch(r"# -- (.*?) -+", line))
    }
    found: dict[str, list[Definition]] = {title: [] for title in headings.values()}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            continue
        value = getattr(definitions, node.targets[0].id)
        if isinstance(value, Definition):
            above = max(number for number in headings if number < node.lineno)
            found[headings[above]].append(value)
    return list(found.items())


def _row(one: Definition) -> str:
    labels = ", ".join(f"`{label}`" for label in one.labels)
    return f"| `{one.name}` | {_KINDS[one.kind]} | {labels} | {one.help} |"


def _buckets() -> str:
    groups: dict[tuple[float, ...], list[str]] = {}
    for _, found in sections():
        for one in found:
            if one.bounds:
                groups.setdefault(one.bounds, []).append(one.name)
    lines = ["| Upper bounds | Histograms |", "|---|---|"]
    for bounds, names in groups.items():
        shown = ", ".join(f"{bound:g}" for bound in bounds)
        lines.append(f"| {shown} | {', '.join(f'`{name}`' for name in names)} |")
    return "\n".join(lines)
