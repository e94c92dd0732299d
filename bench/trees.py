"""Spawn trees on the running suite: the interim message, a tree of 156 runs, and its end.

`python -m bench.trees [--yields 20] [--trees 3]` prints a table of

- the time from a message to the interim message of its yield, over gRPC and over SSE;
- the time that a tree of depth 3 and fan-out 5 takes in lanes of two;
- the time from cancelling such a tree, half of it ended and both slots busy for a minute, until
  every run has ended and every lane is free.

Everything is the `demo` model's, so the times are those of the suite.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import sys
import time
from collections.abc import AsyncIterator, Iterator

import httpx

from bench.processes import Workspace, up, workspace
from bench.report import Row, latencies, machine
from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import run_pb2
from conveyor_client import ConveyorClient
from conveyor_client.cli.output import TERMINAL

DEPTH, FAN_OUT = 3, 5
RUNS = sum(FAN_OUT**depth for depth in range(DEPTH + 1))
WIDTH = 2
LONG = "60s"
CONFIG = f"""
[lanes.subagent]
limit = {WIDTH}
[agents.list.main]
[agents.list.wide.subagents]
max_spawn_depth = {DEPTH}
max_children_per_agent = {FAN_OUT}
max_descendants = 200
"""


def nested(leaves: Iterator[str], depth: int = DEPTH) -> str:
    """A message that asks for a tree with these leaves."""
    if depth == 0:
        return next(leaves)
    return " ".join(f"[[spawn: {nested(leaves, depth - 1)}]]" for _ in range(FAN_OUT))


async def measure(yields: int, trees: int) -> str:
    """The table."""
    rows = await rows_of(yields, trees)
    return latencies(rows)


async def rows_of(yields: int, trees: int) -> list[Row]:
    """Every figure. Times are in milliseconds."""
    async with _suite() as (place, client):
        over_grpc = [await _interim(client, number) for number in range(yields)]
        over_sse = [await _interim_over_sse(client, place.http, n) for n in range(yields)]
        whole = [await _tree(client, number) for number in range(trees)]
        ends = [await _cancelled(client, number) for number in range(trees)]
    return [
        Row("message to interim message, gRPC", None, over_grpc, "the model yields; mark 1,000"),
        Row("message to interim message, SSE", None, over_sse, "sent and read over HTTP"),
        Row(f"tree of {RUNS} runs, lanes of {WIDTH}", None, whole, "depth 3, fan-out 5; 187 turns"),
        Row(
            "cancelled half-way, all ended, lanes free",
            None,
            ends,
            "two leaves at work for a minute; mark 5,000",
        ),
    ]


@contextlib.asynccontextmanager
async def _suite() -> AsyncIterator[tuple[Workspace, ConveyorClient]]:
    with workspace(main_limit=WIDTH) as place:
        with place.config.open("a") as config:
            config.write(CONFIG)
        async with up(place), ConveyorClient(place.gateway) as client:
            yield place, client


YIELDING = "[[spawn: [[sleep: 300ms]]]] [[yield: I'll get back to you.]]"


async def _interim(client: ConveyorClient, number: int) -> float:
    begin, took = time.perf_counter(), 0.0
    stream = client.chat(YIELDING, session_key=f"agent:main:grpc:direct:yield-{number}")
    async with contextlib.aclosing(stream) as items:
        async for item in items:
            said = item.event.message_completed
            if said.kind == event_pb2.MESSAGE_KIND_INTERIM and not took:
                took = (time.perf_counter() - begin) * 1000
    if not took:
        raise RuntimeError("there was no interim message")
    return took


async def _interim_over_sse(client: ConveyorClient, address: str, number: int) -> float:
    path = f"/v1/sessions/agent:main:http:direct:sse-{number}"
    async with httpx.AsyncClient(base_url=f"http://{address}", timeout=30) as http:
        sent = await http.post(f"{path}/messages", json={"text": "hello"})
        await _ended(client, sent.raise_for_status().json()["accepted"]["run"]["run_id"])
        async with http.stream("GET", f"{path}/events") as response:
            lines = response.aiter_lines()
            await anext(lines)  # it is open
            begin = time.perf_counter()
            sent = await http.post(f"{path}/messages", json={"text": YIELDING})
            async for line in lines:
                if "MESSAGE_KIND_INTERIM" in line:
                    took = (time.perf_counter() - begin) * 1000
                    break
        await _ended(client, sent.json()["accepted"]["run"]["run_id"])
    return took


async def _tree(client: ConveyorClient, number: int) -> float:
    begin = time.perf_counter()
    text = nested(itertools.repeat("[[reply: leaf]]"))
    sent = await client.send(text, session_key=f"agent:wide:grpc:direct:tree-{number}")
    state = await _ended(client, sent.accepted.run.run_id)
    took = (time.perf_counter() - begin) * 1000
    nodes = (await client.flow(sent.accepted.run.run_id)).nodes
    if state != run_pb2.RUN_STATE_SUCCEEDED or len(nodes) != RUNS:
        raise RuntimeError(f"{len(nodes)} runs, {run_pb2.RunState.Name(state)}")
    return took


async def _cancelled(client: ConveyorClient, number: int) -> float:
    middle = FAN_OUT**DEPTH // 2
    text = nested(
        f"[[sleep: {LONG}]]" if leaf in (middle, middle + 1) else "[[reply: leaf]]"
        for leaf in itertools.count()
    )
    sent = await client.send(text, session_key=f"agent:wide:grpc:direct:gone-{number}")
    flow_id = sent.accepted.run.run_id
    while True:
        nodes = (await client.flow(flow_id)).nodes
        busy = [n.spec.label for n in nodes if n.state == run_pb2.RUN_STATE_RUNNING]
        if busy == [LONG] * WIDTH:
            break
        await asyncio.sleep(0.05)
    begin = time.perf_counter()
    await client.cancel_flow(flow_id)
    while True:
        nodes = (await client.flow(flow_id)).nodes
        lanes = (await client.lanes()).lanes
        if all(node.state in TERMINAL for node in nodes) and not any(
            lane.running or lane.waiting or lane.suspended for lane in lanes
        ):
            return (time.perf_counter() - begin) * 1000
        await asyncio.sleep(0.02)


async def _ended(client: ConveyorClient, run_id: str) -> run_pb2.RunState.ValueType:
    while True:
        state = (await client.run(run_id)).run.state
        if state in TERMINAL:
            return state
        await asyncio.sleep(0.02)


def main() -> None:
    """Entry point; see the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m bench.trees")
    parser.add_argument("--yields", type=int, default=20)
    parser.add_argument("--trees", type=int, default=3)
    options = parser.parse_args()
    here = machine()
    table = asyncio.run(measure(options.yields, options.trees))
    sys.stdout.write(f"{table}\nMeasured on {here}.\n")


if __name__ == "__main__":
    main()
