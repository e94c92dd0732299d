"""A load as people type it: times, rates, distributions, lists, and the textbook questions."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration

from conveyor.scheduler.v1 import forecast_pb2 as pb
from conveyor_client.cli.context import CannotRun
from conveyor_client.cli.preset import Preset

N = TypeVar("N", int, float)

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|min|s|m|h|d)?")
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*/\s*(s|min|m|h|d)")
# What the scheduler takes; far less than what its fields hold.
MOST_PER_TURN = 100_000_000
MOST_TOKENS_PER_MINUTE = 10**15
MOST_COST = 100
MOST_WHOLE = 1_000_000
MOST_SEED = 2**63 - 1
COLUMNS = ("at", "customer", "session", "weight", "priority", "turn")


@dataclass(frozen=True, slots=True)
class Typed:
    """The options of `conveyor forecast`. `None` and empty mean not given."""

    customers: int | None = None
    messages: int | None = None
    rate: str = ""
    during: str = ""
    even: bool = False
    arrivals: Path | None = None
    turn: str = ""
    children: int | None = None
    child_turn: str = ""
    closing_turn: str = ""
    background: bool | None = None
    child_lane: str = ""
    limit: int | None = None
    lanes: Sequence[str] = ()
    rpm: int | None = None
    tpm: int | None = None
    tokens_per_turn: int | None = None
    cost_per_turn: float | None = None
    seed: int = 0


PRESETS = {
    Preset.SEVEN: Typed(customers=7, limit=4, turn="5s", cost_per_turn=0.01),
    Preset.BLAST: Typed(
        customers=20, limit=4, turn="5s", children=1, background=False, child_turn="5s",
        closing_turn="2s", cost_per_turn=0.01,
    ),
    Preset.BLAST_BACKGROUND: Typed(
        customers=20, limit=4, turn="5s", children=1, background=True, child_turn="5s",
        closing_turn="2s", cost_per_turn=0.01,
    ),
    Preset.PEAK: Typed(rate="55/h", during="1h", limit=4, turn="5min", cost_per_turn=0.01),
    Preset.PROVIDER: Typed(customers=20, limit=4, turn="5s", rpm=15, cost_per_turn=0.01),
}  # fmt: skip


def over(preset: Preset | None, typed: Typed) -> Typed:
    """The preset, with what was given in place of its own."""
    if preset is None:
        return typed
    empty = Typed()
    given = {
        name: value
        for name in Typed.__slots__
        if (value := getattr(typed, name)) != getattr(empty, name)
    }
    whole: dict[str, Any] = given
    if given.keys() & {"customers", "rate", "arrivals"}:  # one way of arriving replaces another
        whole = {"customers": None, "rate": "", "during": ""} | given
    return replace(PRESETS[preset], **whole)


def as_input(typed: Typed) -> pb.ForecastInput:
    """The input of the contract. Raises `CannotRun`, which names the option and the fix."""
    load = pb.ForecastInput(
        turn_time=_distribution(typed.turn or "5s", "--turn"),
        requests_per_minute=_within(typed.rpm, "--rpm", MOST_PER_TURN),
        tokens_per_minute=_within(typed.tpm, "--tpm", MOST_TOKENS_PER_MINUTE),
        tokens_per_turn=_within(typed.tokens_per_turn, "--tokens-per-turn", MOST_PER_TURN),
        cost_micros_usd_per_turn=round(
            _within(typed.cost_per_turn, "--cost-per-turn", MOST_COST) * 1_000_000
        ),
        seed=_within(typed.seed, "--seed", MOST_SEED, least=-MOST_SEED),
    )
    _arrivals(load, typed)
    _children(load, typed)
    if typed.limit is not None:
        load.lanes.add(name="main", limit=typed.limit)
    for text in typed.lanes:
        name, equals, limit = text.partition("=")
        if not equals or not limit.isdecimal():
            raise CannotRun(f"--lane {text}: must be NAME=LIMIT, for example subagent=8", 2)
        load.lanes.add(name=name, limit=_whole(limit, f"--lane {text}"))
    return load


def _arrivals(load: pb.ForecastInput, typed: Typed) -> None:
    ways = [typed.customers is not None, bool(typed.rate), typed.arrivals is not None]
    if sum(ways) != 1:
        raise CannotRun(
            "say who arrives by one of --customers N, --rate 55/h and --arrivals FILE", 2
        )
    if typed.messages is not None and typed.customers is None:
        raise CannotRun("--messages belongs to --customers", 2)
    if (typed.during or typed.even) and not typed.rate:
        raise CannotRun("--for and --even belong to --rate", 2)
    if typed.customers is not None:
        load.burst.customers = typed.customers
        load.burst.messages_per_customer = typed.messages or 0
    elif typed.arrivals is not None:
        load.list.CopyFrom(_listed(typed.arrivals))
    else:
        found = _RATE.fullmatch(typed.rate.strip())
        if not found:
            raise CannotRun(f"--rate {typed.rate}: must be like 2/s, 10/min or 55/h", 2)
        load.rate.per_second = float(found[1]) / _UNITS[found[2]]
        load.rate.duration.CopyFrom(_time(typed.during or "1h", "--for"))
        load.rate.even = typed.even


def _children(load: pb.ForecastInput, typed: Typed) -> None:
    if not typed.children:
        if typed.child_turn or typed.closing_turn or typed.child_lane or typed.background:
            raise CannotRun("options about children need --children N", 2)
        return
    load.children.per_turn = typed.children
    load.children.time.CopyFrom(_distribution(typed.child_turn or "5s", "--child-turn"))
    load.children.style = pb.SPAWN_STYLE_BACKGROUND if typed.background else pb.SPAWN_STYLE_WAIT
    load.children.global_lane = typed.child_lane
    if typed.closing_turn:
        load.children.closing_turn_time.CopyFrom(
            _distribution(typed.closing_turn, "--closing-turn")
        )


def _listed(path: Path) -> pb.ArrivalList:
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CannotRun(f"--arrivals {path}: cannot be read: {error}", 2) from None
    if not rows or "customer" not in rows[0]:
        raise CannotRun(
            f"--arrivals {path}: must be CSV with a first line of column names: customer, and any "
            f"of {', '.join(c for c in COLUMNS if c != 'customer')}",
            2,
        )
    listed = pb.ArrivalList()
    for number, row in enumerate(rows, start=2):
        where = f"--arrivals {path}, line {number}"
        unknown = [name for name in row if name not in COLUMNS]
        if unknown:
            raise CannotRun(f"{where}: no column is named {unknown[0]!r}", 2)
        cells = {name: (value or "").strip() for name, value in row.items()}
        arrival = listed.arrivals.add(
            customer_key=cells["customer"],
            session_key=cells.get("session", ""),
            weight=_whole(cells.get("weight", ""), f"{where}, weight"),
            priority=_whole(cells.get("priority", ""), f"{where}, priority"),
        )
        if cells.get("at"):
            arrival.at.CopyFrom(_time(cells["at"], f"{where}, at"))
        if cells.get("turn"):
            arrival.turn_time.CopyFrom(_time(cells["turn"], f"{where}, turn"))
    return listed


def _whole(text: str, where: str) -> int:
    try:
        number = int(text or 0)
    except ValueError:
        raise CannotRun(f"{where}: {text[:32]!r} is no whole number", 2) from None
    return _within(number, where, MOST_WHOLE, least=-MOST_WHOLE)


def _within(value: N | None, where: str, most: int, *, least: int = 0) -> N | int:
    """The number, or 0: what does not fit into the contract's field is told here."""
    if value is None:
        return 0
    if not least <= value <= most:
        raise CannotRun(f"{where}: must be {least:,} to {most:,}", 2)
    return value


def _distribution(text: str, where: str) -> pb.TimeDistribution:
    """`5s`, or `p50=2s,p90=8s,p99=20s,max=60s`, or measured times: `2s,3s,8s`."""
    parts = [part.strip() for part in text.split(",")]
    if "=" in text:
        percentiles = pb.TimePercentiles()
        for part in parts:
            name, _, time = part.partition("=")
            if name not in ("p50", "p90", "p99", "max"):
                raise CannotRun(f"{where} {text}: must be like p50=2s,p90=8s,p99=20s,max=60s", 2)
            getattr(percentiles, name).CopyFrom(_time(time, where))
        return pb.TimeDistribution(percentiles=percentiles)
    times = [_time(part, where) for part in parts]
    if len(times) == 1:
        return pb.TimeDistribution(fixed=times[0])
    return pb.TimeDistribution(samples=pb.TimeSamples(samples=times))


def _time(text: str, where: str) -> Duration:
    found = _TIME.fullmatch(text.strip())
    if not found:
        raise CannotRun(f"{where}: {text!r} is no time; write 300ms, 5s, 2min or 1h", 2)
    length = float(found[1]) * _UNITS[found[2] or "s"]
    if not math.isfinite(length) or length > 366 * 86400:
        raise CannotRun(f"{where}: {text!r} is longer than 366 days", 2)
    time = Duration()
    time.FromMicroseconds(round(length * 1_000_000))
    return time
