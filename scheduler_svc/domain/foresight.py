"""What a forecast says: the figures of a played load, and which limit binds."""

from __future__ import annotations

from array import array

import msgspec

from scheduler_svc.domain.arrivals import Chance
from scheduler_svc.domain.forecast_tally import Tally
from scheduler_svc.domain.forecasting import Load, simulate
from scheduler_svc.domain.limits import REQUESTS, TOKENS


class Spread(msgspec.Struct, frozen=True):
    """Percentiles of a time in microseconds: the time that so many do not exceed."""

    p50: int
    p90: int
    p99: int
    most: int


class Constraint(msgspec.Struct, frozen=True):
    """The limit on which runs waited longest in all, and the same load with a higher one."""

    # `REQUESTS`, `TOKENS`, the name of a lane, or nothing: the order within sessions.
    limit: str | None
    lane: str | None
    value: int = 0
    raised: int = 0
    raised_wait: Spread | None = None
    raised_makespan: int = 0


class Forecast(msgspec.Struct, frozen=True):
    """A played load."""

    tally: Tally
    wait: Spread | None
    completion: Spread | None
    constraint: Constraint | None


def foresee(load: Load, chance: Chance) -> Forecast:
    """Plays the load, finds the limit that binds, and plays it again with that limit raised."""
    tally = simulate(load, chance)
    binding = _binding(load, tally)
    wait, completion = spread(tally.waits), spread(tally.completions)
    # Columns that nothing reads any more: a second play needs the room.
    tally.waits, tally.completions = array("q"), array("q")
    if binding is None or binding.limit is None:
        return Forecast(tally, wait, completion, binding)
    again = simulate(_with(load, binding), chance, brief=True)
    raised = msgspec.structs.replace(
        binding, raised_wait=spread(again.waits), raised_makespan=again.makespan
    )
    return Forecast(tally, wait, completion, raised)


def spread(times: array[int]) -> Spread | None:
    """Percentiles by nearest rank; none of nothing."""
    if not times:
        return None
    ordered = sorted(times)
    last = len(ordered) - 1

    def at(percent: int) -> int:
        return ordered[min(last, -(-len(ordered) * percent // 100) - 1)]

    return Spread(at(50), at(90), at(99), ordered[last])


def utilisation(busy: int, limit: int, makespan: int) -> float:
    """Mean share of slots in use."""
    return busy / (limit * makespan) if limit and makespan else 0.0


def provider_utilisation(load: Load, tally: Tally) -> float:
    """The higher one of the shares of requests and of tokens in use, 0 to 1."""
    minutes = tally.makespan / 60_000_000
    shares = [
        used / (limit * minutes)
        for used, limit in (
            (tally.turns, load.requests_per_minute),
            (tally.turns * load.tokens_per_turn, load.tokens_per_minute),
        )
        if limit and minutes
    ]
    return min(1.0, max(shares, default=0.0))


def _binding(load: Load, tally: Tally) -> Constraint | None:
    for use in tally.lanes:
        if use.waiting and not use.lane.limit:  # they wait for ever
            return Constraint("lane", use.lane.name, 0, 1)
    found = [
        (use.waited, Constraint("lane", use.lane.name, use.lane.limit, 2 * use.lane.limit))
        for use in tally.lanes
    ]
    for name, value in (
        (REQUESTS, load.requests_per_minute),
        (TOKENS, load.tokens_per_minute),
    ):
        found.append((tally.provider_wait[name], Constraint(name, None, value, 2 * value)))
    found.append((tally.session_wait, Constraint(None, None)))
    waited, constraint = max(found, key=lambda pair: pair[0])
    return constraint if waited else None


def _with(load: Load, raised: Constraint) -> Load:
    if raised.lane is not None:
        return msgspec.structs.replace(load, lanes={**load.lanes, raised.lane: raised.raised})
    assert raised.limit is not None
    return msgspec.structs.replace(load, **{raised.limit: raised.raised})
