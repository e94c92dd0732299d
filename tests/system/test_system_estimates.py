"""What customers are told in a burst, and what then happens. The full one is `bench/burst.py`."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

from conveyor.gateway.v1 import gateway_service_pb2 as gateway_pb
from conveyor.scheduler.v1 import lane_pb2, run_pb2
from conveyor_client import ConveyorClient
from tests.system.harness import SUCCEEDED, run_where, running, seconds, span

TURN = 0.5
OFF = 0.6
"""Seconds that a told start may be off here, where much else goes on."""


async def burst(
    client: ConveyorClient, customers: int, text: str
) -> list[tuple[gateway_pb.SendMessageResponse, run_pb2.Run]]:
    """One message of each customer at once: what each was told, and its run at its end."""
    told = await asyncio.gather(
        *(client.send(text, session_key=f"{text}-{n}".replace(" ", "")) for n in range(customers))
    )
    return [(t, await run_where(client, t.accepted.run.run_id, SUCCEEDED)) for t in told]


async def test_every_customer_of_a_burst_is_told_when_it_starts(tmp_path: Path) -> None:
    with running(tmp_path, "[lanes.main]\nlimit = 4\n") as suite:
        async with suite.client() as client:
            await burst(client, 8, f"[[sleep: {TURN}s]] [[reply: warm]]")
            served = await burst(client, 12, f"[[sleep: {TURN}s]] [[reply: burst]]")
            for answer, run in served:
                told = answer.accepted.estimate
                assert told.basis.source == lane_pb2.ESTIMATE_SOURCE_MEASURED
                assert told.basis.samples >= 5
                off = span(run)[0] - seconds(told.start_time)
                assert abs(off) < OFF, f"position {told.position} was told {off:+.2f} s wrong"
            positions = sorted(answer.accepted.estimate.position for answer, _ in served)
            # Four start at once, the fifth is next; on a slow machine some of them end meanwhile.
            assert positions[:5] == [1] * 5
            assert 2 <= positions[-1] <= 8

            # Whoever waits is told why, and again when that changes.
            # The turn in front lasts until everything was looked at, however slow that is.
            long = await client.send("[[sleep: 60s]]", session_key="long")
            behind = await client.send("hello", session_key="long")
            shown = suite.cli("why", behind.accepted.run.run_id).stdout.splitlines()
            assert shown[0].startswith(f"{behind.accepted.run.run_id} ○ queued")
            assert shown[1] == "• An earlier message of the session is being worked on."
            assert shown[2].strip() == f"{long.accepted.run.run_id} running long"
            async with aclosing(client.watch_session("long")) as stream:
                async for item in stream:
                    if item.HasField("lane_position"):
                        break
            moved = item.lane_position
            assert moved.run_id == behind.accepted.run.run_id
            assert (moved.estimate.position, moved.estimate.session_lane_ahead) == (1, 1)
            await client.cancel(long.accepted.run.run_id)
            await run_where(client, behind.accepted.run.run_id, SUCCEEDED)
            ended = suite.cli_json("why", behind.accepted.run.run_id)["explanation"]
            assert ended["reasons"] == [{"ended": {}, "text": "It succeeded."}]
