"""Who starts when: seven customers on four slots, one customer's messages, a tree on one slot."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path

from conveyor_client import ConveyorClient
from svckit.testing import eventually
from tests.system.harness import (
    SUCCEEDED,
    TERMINAL,
    Suite,
    chat,
    flow_where,
    nothing_unfinished,
    payloads,
    replies,
    run_where,
    running,
    span,
)

TURN = 1.0
"""Seconds of a turn in these tests."""


async def test_seven_customers_on_four_slots(
    suite: Suite, client: ConveyorClient, session: str
) -> None:
    """1 to 4 start at once, 5 to 7 as soon as one of the first ends: two waves."""
    (main,) = [lane for lane in (await client.lanes()).lanes if lane.name == "main"]
    assert main.limit == 4
    sent = await asyncio.gather(
        *(client.send(f"[[sleep: {TURN}s]]", session_key=f"{session}-{n}") for n in range(7))
    )
    ids = [answer.accepted.run.run_id for answer in sent]
    ended = [await run_where(client, run_id, SUCCEEDED) for run_id in ids]
    spans = sorted(span(run) for run in ended)
    starts, ends = [start for start, _ in spans], sorted(end for _, end in spans)
    assert starts[3] < ends[0], "the first four overlap"
    assert starts[3] - starts[0] < TURN / 2
    for late, freed in zip(starts[4:], ends, strict=False):
        assert late >= freed, "never more than four"
        assert late - freed < TURN / 2, "at once when a slot is free"
    assert ends[-1] - starts[0] < 3 * TURN, "two waves, not three"
    customers = {run.spec.customer_key for run in ended}
    assert len(customers) == 7


async def test_two_messages_of_one_customer_never_overlap(
    suite: Suite, client: ConveyorClient, session: str
) -> None:
    first, second = await asyncio.gather(
        chat(client, "[[sleep: 400ms]] [[reply: first]]", session_key=session),
        _after_the_first(client, session),
    )
    assert span(second)[0] >= span(first.ended)[1]
    assert replies(await suite.events(session)) == ["first", "second"]


async def _after_the_first(client: ConveyorClient, session: str) -> object:
    async def first_is_in() -> bool:
        return any(s.session_key == session for s in (await client.sessions()).sessions)

    await eventually(first_is_in)
    return (await chat(client, "[[reply: second]]", session_key=session)).ended


async def test_a_lane_is_paused_and_goes_on(
    suite: Suite, client: ConveyorClient, session: str
) -> None:
    await client.update_lane("main", 0)
    try:
        sent = await client.send("hello", session_key=session)
        run_id = sent.accepted.run.run_id
        (main,) = [lane for lane in (await client.lanes()).lanes if lane.name == "main"]
        assert (main.limit, main.waiting) == (0, 1)
        assert (await client.run(run_id)).run.state not in TERMINAL
    finally:
        await client.update_lane("main", None)
    await run_where(client, run_id, SUCCEEDED)


def nested(fan_out: int, depth: int) -> str:
    """Return a request for a tree: each run spawns `fan_out` children, down to `depth`."""
    if depth == 0:
        return "[[reply: leaf]]"
    return " ".join(f"[[spawn: {nested(fan_out, depth - 1)}]]" for _ in range(fan_out))


async def test_a_deep_tree_completes_on_one_slot_per_lane(tmp_path: Path) -> None:
    """Nobody who waits holds a slot, so 39 children of three levels pass through one slot."""
    toml = """
[lanes.main]
limit = 1
[lanes.subagent]
limit = 1
[agents.defaults.subagents]
max_spawn_depth = 3
"""
    with running(tmp_path, toml) as suite:
        async with suite.client() as client:
            told = await chat(client, nested(3, 3), session_key="tree")
            assert told.ended.state == SUCCEEDED
            flow = await flow_where(client, told.run_id, succeeded=40)
            depths = [node.spawn.depth for node in flow.nodes]
            assert [depths.count(depth) for depth in range(4)] == [1, 3, 9, 27]
            # One slot: what executes below the root never overlaps.
            leaves = sorted(span(node) for node in flow.nodes if node.spawn.depth == 3)
            assert all(later[0] >= earlier[1] for earlier, later in pairwise(leaves))
            assert told.answer.count("All 3 sub-agents are done.") >= 1
            for node in flow.nodes:
                log = await suite.events(node.spec.session_key)
                if node.spawn.depth < 3:
                    assert len(payloads(log, "child_announced")) == 3
                assert len(replies(log)) == 1
            await nothing_unfinished(client)
