"""From a played load to the contract's result, and to rows of customers on disk.

A million customers are rows of seven numbers, which a page is read from without the others.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence
from typing import BinaryIO

from google.protobuf.duration_pb2 import Duration

from conveyor.scheduler.v1 import forecast_pb2 as pb
from scheduler_svc.domain.arrivals import Listed
from scheduler_svc.domain.forecast_tally import UNSET, Tally
from scheduler_svc.domain.forecasting import Load
from scheduler_svc.domain.foresight import (
    Constraint,
    Forecast,
    Spread,
    provider_utilisation,
    utilisation,
)
from scheduler_svc.domain.limits import REQUESTS, TOKENS

# Bytes of the result, bytes of the customers' keys, customers.
HEAD = struct.Struct("<qqq")
# Exit code of a process whose load needs more memory than it may take.
OUT_OF_MEMORY = 3
# Number of the customer, arrival, start, reply, end, wave.
COLUMNS = 6
ROW_BYTES = 8 * COLUMNS
_ROWS_AT_ONCE = 10_000


def result(load: Load, forecast: Forecast) -> pb.ForecastResult:
    """The figures over all customers; the time it took is not among them yet."""
    tally = forecast.tally
    waves = tally.waves
    return pb.ForecastResult(
        customers=len(tally.arrival),
        runs=tally.messages + tally.children,
        turns=tally.turns,
        stuck_runs=tally.unfinished,
        wait=_percentiles(forecast.wait),
        completion=_percentiles(forecast.completion),
        makespan=duration(tally.makespan),
        waves=[
            pb.Wave(number=index + 1, customers=customers, start=duration(start), end=duration(end))
            for index, (customers, start, end) in enumerate(
                zip(waves.customers, waves.starts, waves.ends, strict=True)
            )
        ],
        wave_count=waves.count,
        lanes=[
            pb.LaneForecast(
                name=use.lane.name,
                limit=use.lane.limit,
                utilisation=utilisation(use.busy, use.lane.limit, tally.makespan),
                peak_running=use.peak_running,
                peak_waiting=use.peak_waiting,
            )
            for use in tally.lanes
        ],
        provider_utilisation=provider_utilisation(load, tally),
        tokens=tally.turns * load.tokens_per_turn,
        cost_micros_usd=tally.turns * load.cost_per_turn,
        constraint=_constraint(forecast.constraint) if forecast.constraint else None,
    )


def keys(load: Load) -> list[str]:
    """Keys of the customers by number; none when the numbers, from 1, are the keys."""
    return load.arrivals.keys() if isinstance(load.arrivals, Listed) else []


def write_rows(tally: Tally, to: BinaryIO) -> None:
    """Writes a row for each customer, in order of first start."""
    order = tally.by_start()
    for first in range(0, len(order), _ROWS_AT_ONCE):
        rows = array("q")
        for number in order[first : first + _ROWS_AT_ONCE]:
            rows.extend(
                (
                    number,
                    tally.arrival[number],
                    tally.start[number],
                    tally.reply[number],
                    tally.end[number],
                    tally.wave[number],
                )
            )
        to.write(rows.tobytes())


def customers(rows: bytes, names: Sequence[str]) -> list[pb.CustomerForecast]:
    """The customers of some rows."""
    cells = array("q")
    cells.frombytes(rows)
    found = []
    for first in range(0, len(cells), COLUMNS):
        number, arrival, start, reply, end, wave = cells[first : first + COLUMNS]
        found.append(
            pb.CustomerForecast(
                customer_key=names[number] if names else str(number + 1),
                arrival=duration(arrival),
                start=duration(start),
                reply=duration(reply),
                end=duration(end),
                wave=wave,
            )
        )
    return found


def duration(micros: int) -> Duration | None:
    """The contract's form of a time; nothing for one that is not set."""
    if micros == UNSET:
        return None
    return Duration(seconds=micros // 1_000_000, nanos=micros % 1_000_000 * 1000)


def _percentiles(found: Spread | None) -> pb.TimePercentiles | None:
    if found is None:
        return None
    return pb.TimePercentiles(
        p50=duration(found.p50),
        p90=duration(found.p90),
        p99=duration(found.p99),
        max=duration(found.most),
    )


def _constraint(found: Constraint) -> pb.ForecastConstraint:
    kinds = {
        REQUESTS: pb.CONSTRAINT_KIND_REQUESTS_PER_MINUTE,
        TOKENS: pb.CONSTRAINT_KIND_TOKENS_PER_MINUTE,
        None: pb.CONSTRAINT_KIND_SESSION_ORDER,
    }
    return pb.ForecastConstraint(
        kind=kinds.get(found.limit, pb.CONSTRAINT_KIND_LANE),
        lane=found.lane or "",
        limit=found.value,
        raised_limit=found.raised,
        raised_wait=_percentiles(found.raised_wait),
        raised_makespan=duration(found.raised_makespan) if found.limit else None,
    )
