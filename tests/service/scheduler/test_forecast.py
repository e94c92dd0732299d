"""`Forecast` from the outside: the textbook questions, pages, refusals, and its process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from grpc import aio

from conveyor.scheduler.v1 import forecast_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as pb
from scheduler_svc.forecast import desk as desks
from scheduler_svc.forecast.desk import Desk
from svckit.clock import FakeClock
from svckit.errors import Internal, InvalidField, RateLimited, ShuttingDown
from svckit.grpc.status import from_rpc_error
from svckit.testing import eventually
from tests.service.scheduler.conftest import Driver, driver, settings

FIVE = {"fixed": "5s"}


@pytest.fixture
async def s(tmp_path: Path) -> AsyncIterator[Driver]:
    """One store is enough: a forecast does not touch it."""
    async with driver(settings(tmp_path, "memory")) as found:
        yield found


def load(**said: Any) -> forecast_pb2.ForecastInput:
    said.setdefault("turn_time", FIVE)
    return json_format.ParseDict(said, forecast_pb2.ForecastInput())


async def ask(s: Driver, **said: Any) -> pb.ForecastResponse:
    response: pb.ForecastResponse = await s.scheduler.Forecast(
        pb.ForecastRequest(input=load(**said))
    )
    return response


async def refused(s: Driver, **said: Any) -> tuple[str, str]:
    with pytest.raises(aio.AioRpcError) as caught:
        await ask(s, **said)
    error = from_rpc_error(caught.value)
    return error.reason, error.metadata.get("field", "")


async def test_a_burst_in_a_process_of_its_own(s: Driver) -> None:
    found = await ask(s, burst={"customers": 7}, cost_micros_usd_per_turn=10_000)
    result = found.result
    assert (result.customers, result.turns, result.wave_count) == (7, 7, 2)
    assert result.makespan.ToSeconds() == 10
    assert result.cost_micros_usd == 70_000
    constraint = result.constraint
    assert constraint.kind == forecast_pb2.CONSTRAINT_KIND_LANE
    # The limit that holds at present, because the input names none.
    assert (constraint.lane, constraint.limit, constraint.raised_limit) == ("main", 4, 8)
    assert result.compute_time.ToMicroseconds() > 0
    assert [c.customer_key for c in found.customers] == list("1234567")
    assert [c.start.ToSeconds() for c in found.customers] == [0] * 4 + [5] * 3
    assert [c.wave for c in found.customers] == [1] * 4 + [2] * 3


async def test_limits_are_those_of_the_moment_or_of_the_input(s: Driver) -> None:
    await s.scheduler.UpdateLane(pb.UpdateLaneRequest(name="main", limit=1))
    assert (await ask(s, burst={"customers": 3})).result.makespan.ToSeconds() == 15
    wide = await ask(s, burst={"customers": 3}, lanes=[{"name": "main", "limit": 3}])
    assert wide.result.makespan.ToSeconds() == 5
    assert not wide.result.HasField("constraint")


async def test_customers_come_in_pages_of_one_result(s: Driver) -> None:
    arrivals = [{"at": f"{i % 3}s", "customer_key": f"c{i}"} for i in range(7)]
    said = load(list={"arrivals": arrivals}, seed=3)
    seen: list[str] = []
    token = ""
    while True:
        page = await s.scheduler.Forecast(
            pb.ForecastRequest(input=said, page_size=3, page_token=token)
        )
        assert page.result.customers == 7
        seen += [customer.customer_key for customer in page.customers]
        token = page.next_page_token
        if not token:
            break
    assert seen[:4] == ["c0", "c3", "c6", "c1"]
    assert sorted(seen) == [f"c{i}" for i in range(7)]
    first = await s.scheduler.Forecast(pb.ForecastRequest(input=said, page_size=3))
    said.seed = 4
    with pytest.raises(aio.AioRpcError) as caught:
        await s.scheduler.Forecast(pb.ForecastRequest(input=said, page_token=first.next_page_token))
    assert from_rpc_error(caught.value).metadata["field"] == "page_token"


async def test_the_same_input_gives_the_same_output(s: Driver) -> None:
    said: dict[str, Any] = {
        "rate": {"per_second": 2.0, "duration": "60s"},
        "turn_time": {"percentiles": {"p50": "1s", "p90": "4s"}},
    }
    first, other = await ask(s, **said, seed=1), await ask(s, **said, seed=2)
    assert first.result.makespan != other.result.makespan
    for made in list(s.desk._kept.values()):
        s.desk._forget(made)
    again = await ask(s, **said, seed=1)
    assert again.result.compute_time != first.result.compute_time  # made anew
    again.result.compute_time.CopyFrom(first.result.compute_time)
    assert again == first


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("arrivals", {}),
        ("turn_time", {"turn_time": {}}),
        ("turn_time.fixed", {"turn_time": {"fixed": "0s"}}),
        ("turn_time.fixed", {"turn_time": {"fixed": "31700000s"}}),
        ("turn_time.percentiles.p90", {"turn_time": {"percentiles": {"p50": "1s"}}}),
        (
            "turn_time.percentiles.p99",
            {"turn_time": {"percentiles": {"p50": "1s", "p90": "3s", "p99": "2s"}}},
        ),
        ("turn_time.samples.samples", {"turn_time": {"samples": {}}}),
        ("turn_time.samples.samples[1]", {"turn_time": {"samples": {"samples": ["1s", "-1s"]}}}),
        ("burst.customers", {"burst": {}}),
        ("burst.customers", {"burst": {"customers": 1_000_001}}),
        ("burst.messages_per_customer", {"burst": {"customers": 1, "messages_per_customer": -1}}),
        (
            "burst.messages_per_customer",
            {"burst": {"customers": 1_000_000, "messages_per_customer": 11}},
        ),
        ("rate.per_second", {"rate": {"duration": "1s"}}),
        ("rate.per_second", {"rate": {"per_second": "Infinity", "duration": "1s"}}),
        ("rate.per_second", {"rate": {"per_second": 1e308, "duration": "3600s"}}),
        ("rate.duration", {"rate": {"per_second": 1}}),
        ("rate.duration", {"rate": {"per_second": 1000, "duration": "3600s"}}),
        ("list.arrivals", {"list": {}}),
        ("list.arrivals[0].customer_key", {"list": {"arrivals": [{}]}}),
        ("list.arrivals[0].at", {"list": {"arrivals": [{"customer_key": "a", "at": "-1s"}]}}),
        ("list.arrivals[0].weight", {"list": {"arrivals": [{"customer_key": "a", "weight": 101}]}}),
        (
            "list.arrivals[0].priority",
            {"list": {"arrivals": [{"customer_key": "a", "priority": 3601}]}},
        ),
        (
            "list.arrivals[0].turn_time",
            {"list": {"arrivals": [{"customer_key": "a", "turn_time": "0s"}]}},
        ),
        ("children.per_turn", {"children": {"per_turn": 101, "time": FIVE}}),
        ("children.time", {"children": {"per_turn": 1}}),
        ("children.style", {"children": {"per_turn": 1, "time": FIVE, "style": 7}}),
        ("children.global_lane", {"children": {"per_turn": 1, "time": FIVE, "global_lane": "no"}}),
        (
            "children.per_turn",
            {"burst": {"customers": 1_000_000}, "children": {"per_turn": 10, "time": FIVE}},
        ),
        ("lanes[0].name", {"lanes": [{"name": "no", "limit": 1}]}),
        ("lanes[0].limit", {"lanes": [{"name": "main", "limit": -1}]}),
        ("lanes[1].name", {"lanes": [{"name": "main", "limit": 1}, {"name": "main", "limit": 2}]}),
        ("requests_per_minute", {"requests_per_minute": -1}),
        ("tokens_per_minute", {"tokens_per_minute": -1}),
        ("tokens_per_turn", {"tokens_per_turn": -1}),
        ("cost_micros_usd_per_turn", {"cost_micros_usd_per_turn": 100_000_001}),
    ],
)
async def test_a_refusal_names_the_field(s: Driver, field: str, said: dict[str, Any]) -> None:
    if field != "arrivals" and not said.keys() & {"burst", "rate", "list"}:
        said = {"burst": {"customers": 1}} | said
    assert await refused(s, **said) == ("INVALID_FIELD", f"input.{field}")


async def test_leases_do_not_stall_behind_a_large_forecast(s: Driver) -> None:
    """And who no longer waits takes the process along."""
    big = asyncio.ensure_future(ask(s, burst={"customers": 1_000_000}))
    desk = s.desk
    await eventually(lambda: len(desk._processes) == 1)
    [process] = desk._processes
    slowest = 0.0
    clock = asyncio.get_running_loop().time
    for number in range(30):
        begun = clock()
        await s.send(f"s{number}")
        await s.complete(await s.lease_one())
        slowest = max(slowest, clock() - begun)
    assert process.returncode is None  # still at it
    assert slowest < 5.0
    big.cancel()
    await eventually(lambda: process.returncode is not None)
    assert not desk._processes


async def test_too_many_forecasts_at_a_time_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(FakeClock())
    monkeypatch.setattr(desks, "AT_ONCE", 1)
    monkeypatch.setattr(desks, "MOST_IN_LINE", 0)
    big = load(burst={"customers": 1_000_000}, lanes=[{"name": "main", "limit": 4}])
    first = asyncio.ensure_future(desk.make(big))
    await eventually(lambda: len(desk._processes) == 1)
    with pytest.raises(RateLimited):
        await desk.make(big)
    # Draining ends the process, and whoever waits for it hears why.
    desk.close()
    with pytest.raises(ShuttingDown):
        await first
    with pytest.raises(ShuttingDown):
        await desk.make(big)


async def test_a_forecast_is_kept_for_ten_minutes() -> None:
    clock = FakeClock()
    desk = Desk(clock)
    small = load(burst={"customers": 3}, lanes=[{"name": "main", "limit": 1}])
    made = await desk.make(small)
    clock.advance(599)
    assert await desk.make(small) is made
    assert [c.start.ToSeconds() for c in await desk.page(made, 1, 5)] == [5, 10]
    clock.advance(2)
    assert desk.find(made.key) is None
    assert made.file.closed
    assert await desk.make(small) is not made
    desk.close()


async def test_a_process_that_fails_or_needs_too_much_memory_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    desk = Desk(FakeClock())
    small = load(burst={"customers": 3}, lanes=[{"name": "main", "limit": 1}])
    monkeypatch.setattr(desks, "MODULE", "scheduler_svc.no_such_module")
    with pytest.raises(Internal, match="could not be made"):
        await desk.make(small)
    monkeypatch.undo()
    big = load(burst={"customers": 1_000_000}, lanes=[{"name": "main", "limit": 4}])
    monkeypatch.setattr(desks, "MOST_MEMORY", 200 << 20)
    with pytest.raises(InvalidField, match="memory"):
        await desk.make(big)
    desk.close()
