"""Stopping work half-way, and what the customer has afterwards."""

from __future__ import annotations

import asyncio
import time

from conveyor.scheduler.v1 import run_pb2
from conveyor_client import ConveyorClient
from svckit.grpc.status import from_proto
from svckit.testing import eventually
from tests.system.harness import (
    SUCCEEDED,
    Suite,
    chat,
    flow_where,
    payloads,
    replies,
    run_where,
)

CANCELLED = run_pb2.RUN_STATE_CANCELLED


async def test_cancelling_a_flow_ends_every_run_and_the_next_message_is_answered(
    suite: Suite, client: ConveyorClient, session: str
) -> None:
    text = " ".join("[[spawn: [[sleep: 60s]]]]" for _ in range(3))
    chatting = asyncio.create_task(chat(client, text, session_key=session))
    run_id = await _newest(client, session)
    await flow_where(client, run_id, suspended=1, running=3)
    waiting = await client.send("[[reply: kept]]", session_key=session)

    began = time.monotonic()
    suite.cli("flow", "cancel", run_id)
    told = await chatting
    assert told.ended.state == CANCELLED
    assert time.monotonic() - began < 10, "workers learn of it within two seconds"
    assert from_proto(told.ended.error).reason == "RUN_CANCELLED"
    flow = await flow_where(client, run_id, cancelled=4)
    assert flow.flow.state == CANCELLED
    for child in flow.nodes[1:]:
        log = await suite.events(child.spec.session_key)
        assert payloads(log, "run_state_changed")[-1].state == CANCELLED
        assert replies(log) == []
    assert len(payloads(told.events, "child_announced")) == 3

    await run_where(client, waiting.accepted.run.run_id, SUCCEEDED)
    assert (await chat(client, "[[reply: next]]", session_key=session)).answer == "next"
    assert replies(await suite.events(session)) == ["kept", "next"]
    (subagent,) = [lane for lane in (await client.lanes()).lanes if lane.name == "subagent"]
    assert subagent.running == 0


async def test_cancelling_one_child_leaves_the_others_and_the_answer(
    suite: Suite, client: ConveyorClient, session: str
) -> None:
    text = "[[spawn: [[sleep: 60s]]]] [[spawn: [[reply: one]]]] [[spawn: [[reply: two]]]]"
    chatting = asyncio.create_task(chat(client, text, session_key=session))
    run_id = await _newest(client, session)
    flow = await flow_where(client, run_id, suspended=1, running=1, succeeded=2)
    (long,) = [node for node in flow.nodes if node.state == run_pb2.RUN_STATE_RUNNING]
    await client.cancel(long.run_id, reason="takes too long")
    told = await chatting
    assert told.ended.state == SUCCEEDED
    assert told.answer.startswith("2 of 3 sub-agents succeeded.")
    assert (await client.run(long.run_id)).run.cancel_reason == "takes too long"


async def test_cancelling_what_waits_in_line_ends_it_at_once(
    suite: Suite, client: ConveyorClient, session: str
) -> None:
    first = await client.send("[[sleep: 500ms]]", session_key=session)
    second = await client.send("never asked", session_key=session)
    answer = await client.cancel(second.accepted.run.run_id)
    assert answer.run.state == CANCELLED
    await run_where(client, first.accepted.run.run_id, SUCCEEDED)
    assert replies(await suite.events(session)) == ["Waited 500ms."]


async def _newest(client: ConveyorClient, session: str) -> str:
    async def look() -> str:
        runs = (await client.runs(run_pb2.RunFilter(session_key=session))).runs
        return runs[0].run_id if runs else ""

    return await eventually(look, timeout=60)
