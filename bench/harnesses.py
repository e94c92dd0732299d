"""What the suite adds to a coding agent: the same prompts to it alone, and through the suite.

`python -m bench.harnesses [--prompts 100] [--sessions 5]` prints a table of

- a prompt to its answer, of a scripted harness alone (driven with the SDK, nothing between);
- the same through the suite, over gRPC: two lanes, a lease, events, a store;
- a question of the harness: from its prompt until people see it, and from the answer to the end;
- a cancelled turn: from the call until the run has ended;
- a session: from the spawn until it is ready, and a close until its process is gone.

The harness answers at once, so the times are those of the suite and of a Python process's start.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from acp import PROTOCOL_VERSION, spawn_agent_process, text_block

from bench.processes import ROOT, up, workspace
from bench.report import Row, latencies, machine
from conveyor.acp.v1 import session_pb2
from conveyor.common.v1 import question_pb2
from conveyor.gateway.v1 import gateway_service_pb2 as gateway_pb
from conveyor.scheduler.v1 import run_pb2
from conveyor_client import ConveyorClient

SCRIPTED = ROOT / "tests" / "harnesses" / "scripted.py"
CONFIG = """
[acp]
default_harness = "scripted"
workspace_roots = ["{roots}"]
[acp.harness.scripted]
command = ["{python}", "{program}"]
asks = ["ask"]
"""


async def measure(prompts: int, sessions: int) -> str:
    """The table."""
    return latencies(await rows_of(prompts, sessions))


async def rows_of(prompts: int, sessions: int) -> list[Row]:
    """Every figure. Times are in milliseconds."""
    async with _suite() as (client, directory):
        alone = await _alone(prompts, directory)
        ready, closed = await _sessions(client, sessions)
        session = (await client.acp_spawn(_spec("ask"))).session.acp_session_id
        through = [await _prompt(client, session, "say:done") for _ in range(prompts)]
        asked = [await _question(client, session, directory, n) for n in range(prompts // 2)]
        cancelled = [await _cancel(client, session) for _ in range(prompts // 5)]
        await client.acp_close(session)
    return [
        Row("prompt to answer, the harness alone", None, alone, "the SDK, nothing between"),
        Row("the same through the suite", None, through, "gRPC, two lanes, a lease, a store"),
        Row("prompt to its question at the client", None, [q[0] for q in asked], "mode ask"),
        Row("answer to the end of the turn", None, [q[1] for q in asked], "a file is written"),
        Row("cancel to the end of the run", None, cancelled, "the harness stops when told"),
        Row("spawn to ready", None, ready, "a Python process starts"),
        Row("close to no process left", None, closed, ""),
    ]


@contextlib.asynccontextmanager
async def _suite() -> AsyncIterator[tuple[ConveyorClient, Path]]:
    with workspace() as place:
        roots = place.directory / "work"
        roots.mkdir()
        with place.config.open("a") as config:
            config.write(CONFIG.format(roots=roots, python=sys.executable, program=SCRIPTED))
        async with up(place), ConveyorClient(place.gateway) as client:
            yield client, roots


def _spec(mode: str) -> session_pb2.AcpSessionSpec:
    number = session_pb2.PermissionMode.Value(f"PERMISSION_MODE_{mode.upper()}")
    return session_pb2.AcpSessionSpec(permission_mode=number)


class _Silent:
    """A client that looks at nothing."""

    async def session_update(self, session_id: str, update: Any, **_: Any) -> None:
        """Drop it."""


async def _alone(prompts: int, directory: Path) -> list[float]:
    took = []
    client: Any = _Silent()
    async with spawn_agent_process(client, sys.executable, str(SCRIPTED)) as (agent, _):
        await agent.initialize(protocol_version=PROTOCOL_VERSION)
        session = await agent.new_session(cwd=str(directory), mcp_servers=[])
        for _number in range(prompts):
            begin = time.perf_counter()
            await agent.prompt(session_id=session.session_id, prompt=[text_block("say:done")])
            took.append((time.perf_counter() - begin) * 1000)
    return took


async def _sessions(client: ConveyorClient, count: int) -> tuple[list[float], list[float]]:
    ready, closed = [], []
    for _ in range(count):
        begin = time.perf_counter()
        spawned = await client.acp_spawn(_spec("deny_all"))
        ready.append((time.perf_counter() - begin) * 1000)
        begin = time.perf_counter()
        await client.acp_close(spawned.session.acp_session_id)
        closed.append((time.perf_counter() - begin) * 1000)
    return ready, closed


async def _prompt(client: ConveyorClient, session: str, text: str) -> float:
    begin = time.perf_counter()
    async with contextlib.aclosing(client.acp_work(session, text)) as items:
        async for item in items:
            if item.HasField("ended"):
                _check(item.ended, run_pb2.RUN_STATE_SUCCEEDED)
    return (time.perf_counter() - begin) * 1000


async def _question(
    client: ConveyorClient, session: str, directory: Path, number: int
) -> tuple[float, float]:
    begin = answered = time.perf_counter()
    shown = 0.0
    path = directory / f"{number}.txt"
    async with contextlib.aclosing(client.acp_work(session, f"write {path} x")) as items:
        async for item in items:
            if _kind(item) == "question_asked":
                shown = time.perf_counter() - begin
                asked = item.event.question_asked.question
                answered = time.perf_counter()
                await client.answer(asked.question_id, _allowing(asked))
            elif item.HasField("ended"):
                _check(item.ended, run_pb2.RUN_STATE_SUCCEEDED)
    if not path.exists():
        raise RuntimeError("nothing was written")
    return shown * 1000, (time.perf_counter() - answered) * 1000


async def _cancel(client: ConveyorClient, session: str) -> float:
    begin = 0.0
    async with contextlib.aclosing(client.acp_work(session, "say:begun\nhang")) as items:
        async for item in items:
            if item.HasField("delta") and not begin:
                begin = time.perf_counter()
                await client.acp_cancel(session)
            elif item.HasField("ended"):
                _check(item.ended, run_pb2.RUN_STATE_CANCELLED)
    return (time.perf_counter() - begin) * 1000


def _kind(item: gateway_pb.ChatResponse) -> str | None:
    return item.event.WhichOneof("payload") if item.HasField("event") else None


def _allowing(question: question_pb2.Question) -> str:
    once = question_pb2.QUESTION_OPTION_KIND_ALLOW_ONCE
    return next(option.option_id for option in question.options if option.kind == once)


def _check(run: run_pb2.Run, state: run_pb2.RunState.ValueType) -> None:
    if run.state != state:
        raise RuntimeError(f"{run_pb2.RunState.Name(run.state)}: {run.error.message}")


def main() -> None:
    """Entry point; see the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m bench.harnesses")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--sessions", type=int, default=5)
    options = parser.parse_args()
    here = machine()
    table = asyncio.run(measure(options.prompts, options.sessions))
    sys.stdout.write(f"{table}\nMeasured on {here}.\n")


if __name__ == "__main__":
    main()
