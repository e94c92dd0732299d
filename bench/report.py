"""Figures and how they are shown."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0 to 1) of the values do not pass."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass(frozen=True)
class Row:
    """One line of a table: a rate, latencies in milliseconds, and a word about them."""

    name: str
    rate: float | None = None
    milliseconds: Sequence[float] = ()
    note: str = ""


def number(value: float) -> str:
    """With three digits that matter."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value < 10 else f"{value:.1f}"


def latencies(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        [
            row.name,
            number(row.rate) if row.rate else "",
            number(percentile(row.milliseconds, 0.5)) if row.milliseconds else "",
            number(percentile(row.milliseconds, 0.99)) if row.milliseconds else "",
            row.note,
        ]
        for row in rows
    ]
    return grid([["", "per second", "p50 ms", "p99 ms", ""], *lines], words=(0, 4))


def grid(lines: Sequence[Sequence[str]], words: Sequence[int] = (0,)) -> str:
    """A Markdown table with its head first. Columns are numbers but for `words`."""
    columns = range(len(lines[0]))
    widths = [max(3, *(len(line[i]) for line in lines)) for i in columns]

    def line_of(cells: Sequence[str]) -> str:
        padded = [
            cells[i].ljust(widths[i]) if i in words else cells[i].rjust(widths[i]) for i in columns
        ]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * widths[i] if i in words else "-" * (widths[i] - 1) + ":" for i in columns]
    return "\n".join([line_of(lines[0]), line_of(rule), *map(line_of, lines[1:])]) + "\n"


def machine() -> str:
    """What the figures depend on most. Ask before measuring: the load is that of others."""
    system = f"{platform.system()} {platform.machine()}"
    load = os.getloadavg()[0]
    return (
        f"{system}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"load average {load:.1f} before the start"
    )
