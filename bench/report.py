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
    """One line of the table: a rate, latencies in milliseconds, and what they are compared with."""

    name: str
    rate: float | None = None
    milliseconds: Sequence[float] = ()
    note: str = ""
    # False where a ratio to an echo would say nothing.
    compare: bool = True


def _cells(row: Row, baseline: Row) -> list[str]:
    def number(value: float) -> str:
        return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value < 10 else f"{value:.1f}"

    rate = number(row.rate) if row.rate else ""
    share = (
        f"1 : {baseline.rate / row.rate:.1f}" if row.rate and baseline.rate and row.compare else ""
    )
    p50 = p99 = times = ""
    if row.milliseconds:
        p50 = number(percentile(row.milliseconds, 0.5))
        p99 = number(percentile(row.milliseconds, 0.99))
        if baseline.milliseconds and row.compare:
            ratio = percentile(row.milliseconds, 0.5) / percentile(baseline.milliseconds, 0.5)
            times = f"{ratio:.1f} x"
    return [row.name, rate, share, p50, p99, times, row.note]


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, compared with the first one."""
    head = ["", "per second", "rate to echo", "p50 ms", "p99 ms", "p50 to echo", ""]
    lines = [head, *(_cells(row, rows[0]) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]

    def line_of(cells: Sequence[str]) -> str:
        padded = [
            text.ljust(width) if i in (0, 6) else text.rjust(width)
            for i, (text, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(padded) + " |"

    rule = [
        "-" * width if i in (0, 6) else "-" * (width - 1) + ":" for i, width in enumerate(widths)
    ]
    return "\n".join([line_of(head), line_of(rule), *(line_of(line) for line in lines[1:])]) + "\n"


def machine() -> str:
    """What the figures depend on most. Ask before measuring: the load is that of others."""
    system = f"{platform.system()} {platform.machine()}"
    load = os.getloadavg()[0]
    return (
        f"{system}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"load average {load:.1f} before the start"
    )
