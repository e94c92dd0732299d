"""From the contract's input to a load. Every refusal names the field and the fix."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import timedelta

from google.protobuf.duration_pb2 import Duration

from conveyor.scheduler.v1 import forecast_pb2 as pb
from scheduler_svc.domain.arrivals import Arrivals, Burst, Listed, Message, Rate
from scheduler_svc.domain.distributions import Fixed, Percentiles, Samples, Times
from scheduler_svc.domain.forecasting import ROOT_LANE, Children, Load
from scheduler_svc.domain.records import SECOND
from svckit.errors import InvalidField, invalid_field

CHILD_LANE = "subagent"
MOST_CUSTOMERS = 1_000_000
MOST_RUNS = 10_000_000
MOST_LISTED = 20_000
MOST_SAMPLES = 10_000
MOST_LIMIT = 1_000_000
# What one turn may use, so that the sums fit into their fields.
MOST_PER_TURN = 100_000_000
MOST_TOKENS_PER_MINUTE = 10**15
# All customers in a microsecond: no clock tells them apart any more.
MOST_PER_SECOND = MOST_CUSTOMERS * SECOND
YEAR = 366 * 86400


def resolved(given: pb.ForecastInput, present: Mapping[str, int]) -> pb.ForecastInput:
    """The input with the limits of all lanes it uses, those left out as they are at present.

    Raises `InvalidField` for a lane that does not exist.
    """
    limits: dict[str, int] = {}
    for index, lane in enumerate(given.lanes):
        where = f"lanes[{index}]"
        if lane.name in limits:
            raise _invalid(f"{where}.name", f"{lane.name[:64]!r} is there twice; keep one")
        if not 0 <= lane.limit <= MOST_LIMIT:
            raise _invalid(f"{where}.limit", "must be 0 to 1,000,000; 0 pauses the lane")
        limits[lane.name] = lane.limit
    used = [ROOT_LANE]
    if given.children.per_turn:
        child_lane = given.children.global_lane or CHILD_LANE
        if child_lane not in present and child_lane not in limits:
            raise _invalid(
                "children.global_lane",
                f"no global lane is named {child_lane[:64]!r}; configured are: "
                f"{', '.join(sorted(present))}",
            )
        used.append(child_lane)
    for index, lane in enumerate(given.lanes):
        if lane.name not in used and lane.name not in present:
            raise _invalid(
                f"lanes[{index}].name",
                f"no run of this load uses a lane {lane.name[:64]!r}; used are: {', '.join(used)}",
            )
    whole = pb.ForecastInput()
    whole.CopyFrom(given)
    del whole.lanes[:]
    # In the order of the configuration, in which lanes take turns.
    for name in dict.fromkeys((*present, *used)):
        if name in used:
            whole.lanes.add(name=name, limit=limits.get(name, present.get(name, 0)))
    return whole


def load(given: pb.ForecastInput) -> Load:
    """The load of a resolved input. Raises `InvalidField`."""
    arrivals = _arrivals(given)
    turn_time = _times(given.turn_time, "turn_time")
    children = _children(given.children)
    _within(given.requests_per_minute, "requests_per_minute", 0, MOST_PER_TURN)
    _within(given.tokens_per_minute, "tokens_per_minute", 0, MOST_TOKENS_PER_MINUTE)
    _within(given.tokens_per_turn, "tokens_per_turn", 0, MOST_PER_TURN)
    _within(given.cost_micros_usd_per_turn, "cost_micros_usd_per_turn", 0, MOST_PER_TURN)
    if children is not None:
        runs = _messages(arrivals) * (1 + children.per_turn)
        if runs > MOST_RUNS:
            raise _invalid(
                "children.per_turn",
                f"makes {runs:,} runs with the arrivals; at most {MOST_RUNS:,} can be played",
            )
    return Load(
        arrivals=arrivals,
        turn_time=turn_time,
        lanes={lane.name: lane.limit for lane in given.lanes},
        children=children,
        requests_per_minute=given.requests_per_minute,
        tokens_per_minute=given.tokens_per_minute,
        tokens_per_turn=given.tokens_per_turn,
        cost_per_turn=given.cost_micros_usd_per_turn,
    )


def _arrivals(given: pb.ForecastInput) -> Arrivals:
    match given.WhichOneof("arrivals"):
        case "burst":
            return _burst(given.burst)
        case "rate":
            return _rate(given.rate)
        case "list":
            return _list(given.list)
    raise _invalid("arrivals", "is required: give burst, rate or list")


def _burst(given: pb.Burst) -> Burst:
    _within(given.customers, "burst.customers", 1, MOST_CUSTOMERS)
    _within(given.messages_per_customer, "burst.messages_per_customer", 0, 1000)
    burst = Burst(given.customers, given.messages_per_customer or 1)
    if burst.ordered > MOST_RUNS:
        raise _invalid(
            "burst.messages_per_customer",
            f"makes {burst.ordered:,} messages; at most {MOST_RUNS:,} can be played",
        )
    return burst


def _rate(given: pb.Rate) -> Rate:
    if not 0 < given.per_second <= MOST_PER_SECOND:
        raise _invalid("rate.per_second", f"must be above 0, at most {MOST_PER_SECOND:,}")
    if not given.HasField("duration"):
        raise _invalid("rate.duration", "is required")
    rate = Rate(given.per_second, _time(given.duration, "rate.duration"), given.even)
    if _messages(rate) > MOST_CUSTOMERS:
        raise _invalid(
            "rate.duration",
            f"makes about {_messages(rate):,} arrivals; at most {MOST_CUSTOMERS:,} can be played",
        )
    return rate


def _list(given: pb.ArrivalList) -> Listed:
    if not 1 <= len(given.arrivals) <= MOST_LISTED:
        raise _invalid("list.arrivals", f"must hold 1 to {MOST_LISTED:,} arrivals")
    messages = []
    for index, arrival in enumerate(given.arrivals):
        where = f"list.arrivals[{index}]"
        customer = _key(arrival.customer_key, f"{where}.customer_key", 128)
        session = arrival.session_key
        _within(arrival.weight, f"{where}.weight", 0, 100)
        _within(arrival.priority, f"{where}.priority", -3600, 3600)
        messages.append(
            Message(
                at=_time(arrival.at, f"{where}.at", least=0) if arrival.HasField("at") else 0,
                customer_key=customer,
                session_key=_key(session, f"{where}.session_key", 256) if session else customer,
                weight=arrival.weight or 1,
                priority=arrival.priority,
                turn_time=_time(arrival.turn_time, f"{where}.turn_time")
                if arrival.HasField("turn_time")
                else 0,
            )
        )
    return Listed(messages)


def _messages(arrivals: Arrivals) -> int:
    match arrivals:
        case Burst():
            return arrivals.ordered
        case Rate():
            return math.ceil(arrivals.per_second * arrivals.duration / SECOND)
        case Listed():
            return len(arrivals.messages)


def _children(given: pb.ForecastChildren) -> Children | None:
    _within(given.per_turn, "children.per_turn", 0, 100)
    if given.style not in pb.SpawnStyle.values():
        raise _invalid("children.style", "must be SPAWN_STYLE_WAIT or SPAWN_STYLE_BACKGROUND")
    closing = (
        _times(given.closing_turn_time, "children.closing_turn_time")
        if given.HasField("closing_turn_time")
        else None
    )
    if not given.per_turn:
        return None
    return Children(
        per_turn=given.per_turn,
        time=_times(given.time, "children.time"),
        background=given.style == pb.SPAWN_STYLE_BACKGROUND,
        closing_time=closing,
        lane=given.global_lane or CHILD_LANE,
    )


def _times(given: pb.TimeDistribution, where: str) -> Times:
    match given.WhichOneof("form"):
        case "fixed":
            return Fixed(_time(given.fixed, f"{where}.fixed"))
        case "percentiles":
            return _percentiles(given.percentiles, f"{where}.percentiles")
        case "samples":
            samples = given.samples.samples
            if not 1 <= len(samples) <= MOST_SAMPLES:
                raise _invalid(f"{where}.samples.samples", f"must hold 1 to {MOST_SAMPLES:,} times")
            return Samples(
                sorted(_time(s, f"{where}.samples.samples[{i}]") for i, s in enumerate(samples))
            )
    raise _invalid(where, "is required: give fixed, percentiles or samples")


def _percentiles(given: pb.TimePercentiles, where: str) -> Percentiles:
    found: list[int] = []
    for name, time in (
        ("p50", given.p50 if given.HasField("p50") else None),
        ("p90", given.p90 if given.HasField("p90") else None),
        ("p99", given.p99 if given.HasField("p99") else None),
        ("max", given.max if given.HasField("max") else None),
    ):
        if time is not None:
            found.append(_time(time, f"{where}.{name}"))
        elif name in ("p50", "p90"):
            raise _invalid(f"{where}.{name}", "is required")
        else:
            found.append(found[-1])
        if found[-1] < max(found):
            raise _invalid(f"{where}.{name}", "must not be below the percentile before it")
    return Percentiles(*found)


def _time(given: Duration, where: str, *, least: int = 1) -> int:
    """Microseconds, at least `least` and at most a year."""
    try:
        span: timedelta = given.ToTimedelta()
    except (ValueError, OverflowError):
        raise _invalid(where, "is no valid duration") from None
    micros = given.ToMicroseconds()
    if micros < least or span.total_seconds() > YEAR:
        raise _invalid(where, f"must be {'above' if least else 'at least'} 0, at most 366 days")
    return micros


def _within(value: int, where: str, least: int, most: int) -> None:
    if not least <= value <= most:
        raise _invalid(where, f"must be {least:,} to {most:,}")


def _key(value: str, where: str, most: int) -> str:
    if not 1 <= len(value) <= most or not value.isprintable() or " " in value:
        raise _invalid(where, f"must be 1 to {most} printable characters without spaces")
    return value


def _invalid(where: str, problem: str) -> InvalidField:
    return invalid_field(f"input.{where}", problem)
