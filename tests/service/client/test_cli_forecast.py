"""`conveyor forecast`: what people type, and what is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from conveyor.scheduler.v1 import forecast_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as scheduler_pb
from conveyor_client.cli.context import CannotRun
from conveyor_client.cli.forecast_text import conclusion
from conveyor_client.cli.loads import Typed, as_input, over
from conveyor_client.cli.preset import Preset

from .conftest import Gateway
from .test_cli import conveyor


def spread(*times: str) -> dict[str, str]:
    return dict(zip(("p50", "p90", "p99", "max"), times, strict=True))


PROVIDER: dict[str, Any] = {
    "customers": 20,
    "runs": 20,
    "turns": 20,
    "wait": spread("36.72s", "69.36s", "77.52s", "77.52s"),
    "completion": spread("41.72s", "74.36s", "82.52s", "82.52s"),
    "makespan": "82.52s",
    "waves": [
        {"number": 1, "customers": 4, "start": "0s", "end": "17.24s"},
        {"number": 2, "customers": 16, "start": "16.32s", "end": "82.52s"},
    ],
    "wave_count": 2,
    "lanes": [
        {"name": "main", "limit": 4, "utilisation": 0.3, "peak_running": 2, "peak_waiting": 0}
    ],
    "provider_utilisation": 0.97,
    "cost_micros_usd": 200_000,
    "constraint": {
        "kind": "CONSTRAINT_KIND_REQUESTS_PER_MINUTE",
        "limit": 15,
        "raised_limit": 30,
        "raised_wait": spread("18.36s", "34.68s", "38.76s", "38.76s"),
        "raised_makespan": "43.76s",
    },
}


def answer(**changes: Any) -> scheduler_pb.ForecastResponse:
    return json_format.ParseDict(
        {"result": PROVIDER | changes}, scheduler_pb.ForecastResponse(), ignore_unknown_fields=False
    )


async def test_what_is_typed_reaches_the_gateway_and_the_answer_is_drawn(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.script.always("Forecast", answer())
    typed = ["--customers", "20", "--limit", "4", "--turn", "5s", "--rpm", "15"]
    typed += ["--cost-per-turn", "0.01", "--seed", "7", "--lane", "subagent=8"]
    assert await conveyor("--address", gateway.address, "forecast", *typed) == 0
    (request,) = gateway.script.calls["Forecast"]
    assert json_format.MessageToDict(request.input, preserving_proto_field_name=True) == {
        "burst": {"customers": 20},
        "turn_time": {"fixed": "5s"},
        "lanes": [{"name": "main", "limit": 4}, {"name": "subagent", "limit": 8}],
        "requests_per_minute": 15,
        "cost_micros_usd_per_turn": "10000",
        "seed": "7",
    }
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0] == "20 customers · 20 runs · 20 turns · done after 1 min 23 s · $0.20"
    assert all(len(line) <= 80 for line in lines), out
    assert any("1" in line and "█" in line and "17.2 s" in line for line in lines)
    assert " ".join(lines[-3:]) == (
        "The provider's 15 requests/min bind, not the gateway. With 30, all would be done after "
        "43.8 s instead of 1 min 23 s, and the longest wait would be 38.8 s instead of 1 min 18 s."
    )


async def test_json_is_the_answer_as_it_came(
    gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway.script.always("Forecast", answer())
    assert (
        await conveyor("--address", gateway.address, "forecast", "--preset", "seven", "--json") == 0
    )
    assert json_format.Parse(capsys.readouterr().out, scheduler_pb.ForecastResponse()) == answer()


async def test_many_waves_share_rows(gateway: Gateway, capsys: pytest.CaptureFixture[str]) -> None:
    waves = [
        {"number": n + 1, "customers": 4, "start": f"{n}s", "end": f"{n + 1}s"} for n in range(1000)
    ]
    gateway.script.always("Forecast", answer(waves=waves, wave_count=250_000))
    assert await conveyor("--address", gateway.address, "forecast", "--preset", "seven") == 0
    out = capsys.readouterr().out
    assert "1-63" in out
    assert "… and 249,000 more waves" in out
    assert len(out.splitlines()) < 40


async def test_a_suite_that_does_not_run_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert await conveyor("--address", "127.0.0.1:1", "forecast", "--preset", "seven") == 1
    assert "is the suite running?" in capsys.readouterr().err


def test_every_preset_is_a_load_and_options_change_it() -> None:
    for preset in Preset:
        assert as_input(over(preset, Typed())).cost_micros_usd_per_turn == 10_000
    load = as_input(over(Preset.PROVIDER, Typed(rate="2/s", during="1min", even=True, rpm=60)))
    assert load.WhichOneof("arrivals") == "rate"
    assert (load.rate.per_second, load.rate.duration.ToSeconds()) == (2.0, 60)
    assert load.requests_per_minute == 60
    blast = as_input(over(Preset.BLAST, Typed(background=True)))
    assert blast.children.style == forecast_pb2.SPAWN_STYLE_BACKGROUND
    assert blast.children.closing_turn_time.fixed.ToSeconds() == 2


def test_times_are_fixed_percentiles_or_samples() -> None:
    def turn(text: str) -> forecast_pb2.TimeDistribution:
        return as_input(Typed(customers=1, turn=text)).turn_time

    assert turn("300ms").fixed.ToMilliseconds() == 300
    assert turn("1.5min").fixed.ToSeconds() == 90
    assert turn("7").fixed.ToSeconds() == 7
    percentiles = turn("p50=2s, p90=8s").percentiles
    assert (percentiles.p50.ToSeconds(), percentiles.p90.ToSeconds()) == (2, 8)
    assert not percentiles.HasField("p99")
    assert [t.ToSeconds() for t in turn("2s,3s,8s").samples.samples] == [2, 3, 8]


def test_a_list_is_a_table_of_commas(tmp_path: Path) -> None:
    path = tmp_path / "peak.csv"
    path.write_text("at,customer,session,weight,priority,turn\n0,a,,,,\n1min,b,b1,3,-5,2s\n")
    [first, second] = as_input(Typed(arrivals=path)).list.arrivals
    assert first == forecast_pb2.Arrival(customer_key="a", at=first.at)
    assert (second.customer_key, second.session_key, second.weight) == ("b", "b1", 3)
    assert (second.priority, second.at.ToSeconds(), second.turn_time.ToSeconds()) == (-5, 60, 2)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (Typed(), "--customers N"),
        (Typed(customers=1, rate="1/s"), "--customers N"),
        (Typed(rate="fast"), "--rate fast"),
        (Typed(customers=1, even=True), "--even"),
        (Typed(rate="1/s", messages=2), "--messages"),
        (Typed(customers=1, turn="soon"), "--turn"),
        (Typed(customers=1, turn="p51=2s"), "--turn"),
        (Typed(customers=1, turn="400d"), "366 days"),
        (Typed(customers=1, closing_turn="2s"), "--children N"),
        (Typed(customers=1, lanes=("main",)), "NAME=LIMIT"),
        (Typed(arrivals=Path("nowhere.csv")), "nowhere.csv"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_the_option(typed: Typed, said: str) -> None:
    with pytest.raises(CannotRun, match=said):
        as_input(typed)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("who\na\n", "customer"),
        ("customer,when\na,1\n", "line 2: no column is named 'when'"),
        ("customer,weight\na,heavy\n", "line 2, weight"),
        ("customer,at\na,later\n", "line 2, at"),
    ],
)
def test_a_bad_list_names_the_line(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "list.csv"
    path.write_text(content)
    with pytest.raises(CannotRun, match=said):
        as_input(Typed(arrivals=path))


@pytest.mark.parametrize(
    ("constraint", "said"),
    [
        ({}, "Nobody waits: no limit binds."),
        ({"kind": "CONSTRAINT_KIND_SESSION_ORDER"}, "no limit would help"),
        (
            {"kind": "CONSTRAINT_KIND_LANE", "lane": "main", "limit": 4, "raised_limit": 8},
            "The limit of lane main binds: 4 slots. With 8,",
        ),
        (
            {"kind": "CONSTRAINT_KIND_LANE", "lane": "main", "raised_limit": 1},
            "Lane main is paused: 1 run can never end. With 1 slot",
        ),
        (
            {"kind": "CONSTRAINT_KIND_TOKENS_PER_MINUTE", "limit": 10_000, "raised_limit": 20_000},
            "The provider's 10,000 tokens/min bind, not the gateway. With 20,000,",
        ),
    ],
)
def test_one_sentence_names_what_binds(constraint: dict[str, Any], said: str) -> None:
    stuck = 1 if constraint.get("lane") and not constraint.get("limit") else 0
    result = answer(constraint=constraint, stuck_runs=stuck).result
    if not constraint:
        result.ClearField("constraint")
    assert said in conclusion(result)


@pytest.mark.parametrize(
    ("option", "typed"),
    [
        ("--lane", Typed(customers=1, lanes=("subagent=²",))),
        ("--lane", Typed(customers=1, lanes=("subagent=99999999999999999999",))),
        ("--rpm", Typed(customers=1, rpm=10**12)),
        ("--tpm", Typed(customers=1, tpm=10**30)),
        ("--tokens-per-turn", Typed(customers=1, tokens_per_turn=10**30)),
        ("--cost-per-turn", Typed(customers=1, cost_per_turn=float("nan"))),
        ("--cost-per-turn", Typed(customers=1, cost_per_turn=1e300)),
        ("--seed", Typed(customers=1, seed=10**30)),
    ],
)
def test_a_number_too_large_for_the_contract_names_its_option(option: str, typed: Typed) -> None:
    with pytest.raises(CannotRun, match=option):
        as_input(typed)


def test_a_number_too_large_in_a_list_names_its_line(tmp_path: Path) -> None:
    listed = tmp_path / "arrivals.csv"
    listed.write_text("customer,weight\na,99999999999\n")
    with pytest.raises(CannotRun, match="line 2, weight"):
        as_input(Typed(arrivals=listed))
