"""A burst of customers on the running suite: when they start, what they were told and forecast.

`python -m bench.burst [--customers 20] [--limit 4] [--turn 5] [--children 1] [--warm-up 20]`
starts the suite with `conveyor up` and the `demo` model, serves `--warm-up` messages so that turn
times are measured, then sends one message of each customer at once. Every message takes `--turn`
seconds; with `--children` it then spawns so many sub-agents of the same length and waits for them.
Printed are the waves, the makespan, every start as told on acceptance and as it was, and the same
load as the scheduler forecasts it. Exits with 1 when a start was told wrong by more than `--within`
seconds, or when the makespan is more than 3 % over the ideal one (with children: more than 10 % off
the forecast, or half of it without an answer).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import sys
from collections.abc import AsyncIterator

from bench.processes import up, workspace
from bench.report import machine
from conveyor.gateway.v1 import gateway_service_pb2 as gateway_pb
from conveyor.scheduler.v1 import forecast_pb2, run_pb2
from conveyor_client import ConveyorClient
from conveyor_client.cli.output import TERMINAL


@contextlib.asynccontextmanager
async def suite(limit: int) -> AsyncIterator[ConveyorClient]:
    """The suite under `conveyor up`, and a client of it."""
    with workspace(main_limit=limit) as place:
        async with up(place), ConveyorClient(place.gateway) as client:
            yield client


async def burst(
    client: ConveyorClient, text: str, customers: int, name: str
) -> tuple[list[gateway_pb.SendMessageResponse], list[run_pb2.Run]]:
    """One message of each customer at once; what each was told, and how its run ended."""
    told = await asyncio.gather(
        *(
            client.send(text, session_key=f"{name}-{n}", customer_key=f"{name}-{n}")
            for n in range(customers)
        )
    )
    ended = []
    for answer in told:
        while True:
            run = (await client.run(answer.accepted.run.run_id)).run
            if run.state in TERMINAL:
                break
            await asyncio.sleep(0.2)
        if run.state != run_pb2.RUN_STATE_SUCCEEDED:
            raise RuntimeError(f"a run ended as {run_pb2.RunState.Name(run.state)}")
        ended.append(run)
    return list(told), ended


async def forecast(
    client: ConveyorClient, options: argparse.Namespace
) -> forecast_pb2.ForecastResult:
    """The same load on the scheduler's virtual clock."""
    load = forecast_pb2.ForecastInput(burst=forecast_pb2.Burst(customers=options.customers))
    load.turn_time.fixed.FromMilliseconds(round(options.turn * 1000))
    if options.children:
        load.children.per_turn = options.children
        load.children.time.fixed.FromMilliseconds(round(options.turn * 1000))
    return (await client.forecast(load)).result


def seconds(stamp: object) -> float:
    """A timestamp or a duration as seconds."""
    return float(stamp.seconds) + float(stamp.nanos) / 1e9  # type: ignore[attr-defined]


async def measure(options: argparse.Namespace) -> bool:
    """Runs the burst and prints what came of it; true when it was as promised."""
    work = f"[[sleep: {options.turn}s]]"
    text = work + f" [[spawn: {work} [[reply: done]]]]" * options.children
    async with suite(options.limit) as client:
        if options.warm_up:
            await burst(client, text, options.warm_up, "warm-up")
        told, ended = await burst(client, text, options.customers, "customer")
        foreseen = await forecast(client, options)
    begin = min(seconds(run.timing.create_time) for run in ended)
    rows = sorted(
        (
            seconds(run.timing.start_time) - begin,
            seconds(answer.accepted.estimate.start_time) - begin,
            seconds(answer.accepted.estimate.start_time_p90) - begin,
            answer.accepted.estimate.position,
            seconds(run.timing.end_time) - begin,
        )
        for answer, run in zip(told, ended, strict=True)
    )
    basis = told[-1].accepted.estimate.basis
    print(machine())
    print(
        f"{options.customers} customers at limit {options.limit}, turns of {options.turn:g} s, "
        f"sub-agents of each: {options.children}, after {options.warm_up} warm-up messages"
    )
    print(
        f"estimates rest on {basis.samples} turns: p50 {seconds(basis.turn_time_p50):.3f} s, "
        f"p90 {seconds(basis.turn_time_p90):.3f} s"
    )
    print(" wave  position  told start  nine in ten  real start     off     end")
    for index, (start, said, late, position, end) in enumerate(rows):
        print(
            f"{index // options.limit + 1:5}  {position:8}  {said:8.2f} s  {late:9.2f} s  "
            f"{start:8.2f} s  {start - said:+5.2f} s  {end:5.2f} s"
        )
    worst = max(abs(start - said) for start, said, *_ in rows)
    in_time = sum(start <= late + 0.05 for start, _, late, *_ in rows)
    makespan, first = max(row[4] for row in rows), min(row[4] for row in rows)
    waves = math.ceil(options.customers / options.limit)
    print(f"largest error of a told start: {worst:.2f} s; {in_time} of {len(rows)} by the p90")
    print(f"waves {waves}, makespan {makespan:.2f} s, first answer after {first:.2f} s")
    expected = seconds(foreseen.makespan)
    print(
        f"forecast: {foreseen.wave_count} waves, makespan {expected:.2f} s; "
        f"the real one is {100 * (makespan / expected - 1):+.1f} %"
    )
    if options.children:
        good = abs(makespan / expected - 1) <= 0.10 and first < makespan / 2
    else:
        good = makespan <= 1.03 * waves * options.turn
    return good and worst <= options.within


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m bench.burst")
    parser.add_argument("--customers", type=int, default=20)
    parser.add_argument("--limit", type=int, default=4)
    parser.add_argument("--turn", type=float, default=5.0, help="seconds")
    parser.add_argument("--children", type=int, default=0, help="sub-agents of each message")
    parser.add_argument("--warm-up", type=int, default=20, help="messages before the burst")
    parser.add_argument("--within", type=float, default=1.0, help="error of a told start, seconds")
    good = asyncio.run(measure(parser.parse_args()))
    print("as promised" if good else "NOT as promised")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
