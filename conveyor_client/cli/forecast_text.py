"""Draws a forecast: its waves over time, waits, lanes, and one sentence about what binds."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from google.protobuf.duration_pb2 import Duration

from conveyor.scheduler.v1 import forecast_pb2 as pb
from conveyor.scheduler.v1 import scheduler_service_pb2 as scheduler_pb
from conveyor_client.cli.output import console, plain, seconds
from svckit.words import span

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 80
MOST_ROWS = 16
# `textwrap` breaks no line here.
_JOINED = "\N{NO-BREAK SPACE}"
_LEFT = 38
"""Places that the columns beside the bars take."""


def show(answer: scheduler_pb.ForecastResponse, *, each: bool = False) -> None:
    """Print the forecast in at most `WIDTH` columns, with every customer of the page if asked."""
    target = console()
    result = answer.result
    target.print(f"[bold]{_headline(result)}[/]")
    if result.waves:
        target.print()
        target.print(_waves(result))
        hidden = result.wave_count - len(result.waves)
        if hidden > 0:
            target.print(
                f"[dim]… and {hidden:,} more waves, until {span(seconds(result.makespan))}[/]"
            )
    times = _times(answer)
    if times.row_count:
        target.print()
        target.print(times)
    target.print()
    target.print(_lanes(result))
    if each:
        target.print()
        target.print(_customers(answer))
    target.print()
    for line in textwrap.wrap(conclusion(result), WIDTH - 1):
        target.print(line.replace(_JOINED, " "), soft_wrap=True)
    if seconds(result.compute_time) >= 1:
        target.print(f"[dim]Played in {span(seconds(result.compute_time))}.[/]")


def conclusion(result: pb.ForecastResult) -> str:
    """Say which limit binds, and what twice as much would give."""
    if result.stuck_runs and not result.HasField("constraint"):
        return f"{_count(result.stuck_runs, 'run')} can never end."
    found = result.constraint
    match found.kind:
        case pb.CONSTRAINT_KIND_LANE:
            what = f"The limit of lane {plain(found.lane)} binds: {_count(found.limit, 'slot')}"
        case pb.CONSTRAINT_KIND_REQUESTS_PER_MINUTE:
            what = f"The provider's {found.limit:,} requests/min bind, not the gateway"
        case pb.CONSTRAINT_KIND_TOKENS_PER_MINUTE:
            what = f"The provider's {found.limit:,} tokens/min bind, not the gateway"
        case pb.CONSTRAINT_KIND_SESSION_ORDER:
            return (
                "Messages wait for earlier ones of their own session; no limit would help them, "
                "only shorter turns."
            )
        case _:
            return "Nobody waits: no limit binds."
    if not found.limit:
        stuck, slots = _count(result.stuck_runs, "run"), _count(found.raised_limit, "slot")
        return (
            f"Lane {plain(found.lane)} is paused: {stuck} can never end. With {slots} all would be "
            f"done after {_at(found.raised_makespan)}."
        )
    # Children that end sooner may take slots that first turns would have got.
    longer = seconds(found.raised_wait.max) > seconds(result.wait.max)
    waits = f"{_at(found.raised_wait.max)} instead of {_at(result.wait.max)}"
    return (
        f"{what}. With {found.raised_limit:,}, all would be done after "
        f"{_at(found.raised_makespan)} instead of {_at(result.makespan)}, "
        f"{'but' if longer else 'and'} the longest wait would be {waits}."
    )


def _headline(result: pb.ForecastResult) -> str:
    parts = [
        _count(result.customers, "customer"),
        _count(result.runs, "run"),
        _count(result.turns, "turn"),
        f"done after {span(seconds(result.makespan))}",
    ]
    if result.stuck_runs:
        parts.append(f"{result.stuck_runs:,} can never end")
    if result.tokens:
        parts.append(f"{result.tokens:,} tokens")
    if result.cost_micros_usd:
        parts.append(f"${result.cost_micros_usd / 1_000_000:,.2f}")
    return " · ".join(parts)


def _waves(result: pb.ForecastResult) -> Table:
    from rich.bar import Bar

    table = _table("WAVE", ">CUSTOMERS", ">START", ">END", "")
    whole = max(seconds(result.waves[-1].end), max(seconds(w.end) for w in result.waves))
    for first, last, customers, start, end in _rows(list(result.waves)):
        numbers = str(first) if first == last else f"{first}-{last}"
        bar = Bar(whole, start, end, width=WIDTH - _LEFT, color="cyan")
        table.add_row(numbers, f"{customers:,}", span(start), span(end), bar)
    return table


def _rows(waves: list[pb.Wave]) -> Iterator[tuple[int, int, int, float, float]]:
    """The waves, several in one row where there are too many: numbers, customers, start, end."""
    size = -(-len(waves) // MOST_ROWS)
    for index in range(0, len(waves), size):
        some = waves[index : index + size]
        yield (
            some[0].number,
            some[-1].number,
            sum(wave.customers for wave in some),
            min(seconds(wave.start) for wave in some),
            max(seconds(wave.end) for wave in some),
        )


def _times(answer: scheduler_pb.ForecastResponse) -> Table:
    table = _table("", ">HALF", ">90 %", ">99 %", ">ALL")

    def row(name: str, found: pb.TimePercentiles) -> None:
        if found.HasField("p50"):
            times = (found.p50, found.p90, found.p99, found.max)
            table.add_row(name, *(span(seconds(time)) for time in times))

    row("wait at most", answer.result.wait)
    replies = sorted(
        seconds(customer.reply) - seconds(customer.arrival)
        for customer in answer.customers
        if customer.HasField("reply")
    )
    # Only where it says something else than the last row, and everybody is known.
    if any(c.reply != c.end for c in answer.customers) and not answer.next_page_token:
        ranks = (-(-len(replies) * percent // 100) - 1 for percent in (50, 90, 99, 100))
        table.add_row("first answer within", *(span(replies[rank]) for rank in ranks))
    row("done within", answer.result.completion)
    return table


def _lanes(result: pb.ForecastResult) -> Table:
    table = _table("LIMIT OF", ">SLOTS", ">IN USE", ">MOST RUNNING", ">MOST WAITING")
    for lane in result.lanes:
        table.add_row(
            f"lane {plain(lane.name)}",
            f"{lane.limit:,}" if lane.limit else "paused",
            f"{lane.utilisation:.0%}",
            f"{lane.peak_running:,}",
            f"{lane.peak_waiting:,}",
        )
    if result.provider_utilisation:
        table.add_row("the provider", "", f"{result.provider_utilisation:.0%}", "", "")
    return table


def _customers(answer: scheduler_pb.ForecastResponse) -> Table:
    table = _table("CUSTOMER", ">WAVE", ">ARRIVES", ">STARTS", ">ANSWER", ">DONE")
    for found in answer.customers:
        table.add_row(
            plain(found.customer_key),
            str(found.wave or "never"),
            span(seconds(found.arrival)),
            *(
                span(seconds(getattr(found, name))) if found.HasField(name) else "never"
                for name in ("start", "reply", "end")
            ),
        )
    return table


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        table.add_column(
            column.removeprefix(">"), justify="right" if right else "left", no_wrap=True
        )
    return table


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _at(time: Duration) -> str:
    return span(seconds(time)).replace(" ", _JOINED)
