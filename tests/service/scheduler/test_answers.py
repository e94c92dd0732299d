"""What senders are told on acceptance, and why runs are where they are, over the wire."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import grpc
import pytest

from conveyor.events.v1 import event_log_service_pb2 as events
from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import explain_pb2, lane_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as pb
from svckit.errors import ModelUnavailable
from tests.service.scheduler.conftest import Driver, driver, settings


async def why(s: Driver, run_id: str) -> explain_pb2.RunExplanation:
    answer = await s.scheduler.ExplainRun(pb.ExplainRunRequest(run_id=run_id))
    found: explain_pb2.RunExplanation = answer.explanation
    assert found.run.run_id == run_id
    assert not found.run.inputs
    assert not found.run.HasField("result")
    assert all(reason.text for reason in found.reasons)
    return found


def kinds(told: explain_pb2.RunExplanation) -> list[str]:
    return [str(reason.WhichOneof("reason")) for reason in told.reasons]


async def test_estimates_become_measured_and_outlive_a_restart(tmp_path: Path) -> None:
    config = settings(
        tmp_path,
        CONVEYOR_LANES__MAIN__LIMIT="1",
        CONVEYOR_LANES__MAIN__EXPECTED_TURN_SECONDS="7",
    )

    ids = (f"q{n}" for n in itertools.count())

    async def behind_one() -> lane_pb2.QueueEstimate:
        await s.lease(1)  # a worker is there
        first = await s.send("a", request_id=next(ids), estimate_key="main/demo")
        assert first.estimate.position == 1
        assert first.estimate.start_time == first.estimate.as_of_time, "at once"
        leased = await s.lease_one()
        found = (await s.send("b", request_id=next(ids), estimate_key="main/demo")).estimate
        await s.complete(leased)
        await s.complete(await s.lease_one())
        return found

    async with driver(config) as s:
        told = await behind_one()
        assert (told.position, told.global_lane_ahead) == (1, 0)
        assert told.basis.source == lane_pb2.ESTIMATE_SOURCE_CONFIGURED
        assert told.basis.samples == 0
        assert told.basis.turn_time_p50.seconds == 7
        left = told.start_time.ToMicroseconds() - told.as_of_time.ToMicroseconds()
        assert 0 < left <= 7_000_000
        assert told.start_time_p90.ToMicroseconds() > told.start_time.ToMicroseconds()
        for _ in range(3):  # 8 turns: what was measured is stored
            told = await behind_one()
        assert told.basis.source == lane_pb2.ESTIMATE_SOURCE_MEASURED
    async with driver(config) as s:
        told = await behind_one()
        assert told.basis.source == lane_pb2.ESTIMATE_SOURCE_MEASURED
        assert told.basis.samples == 8
        assert told.basis.turn_time_p90.ToMicroseconds() < 5_000_000


async def test_a_paused_lane_has_no_estimate(s: Driver) -> None:
    await s.scheduler.UpdateLane(pb.UpdateLaneRequest(name="main", limit=0))
    await s.send("a")
    accepted = await s.send("b")
    told = accepted.estimate
    assert (told.position, told.global_lane_ahead) == (2, 1)
    assert not told.HasField("start_time")
    assert not told.HasField("start_time_p90")
    assert not told.HasField("basis")
    explained = await why(s, accepted.run.run_id)
    assert kinds(explained) == ["lane_busy"]
    assert explained.reasons[0].lane_busy.limit == 0
    assert explained.estimate.position == 2


async def test_the_life_of_a_run_explained(s: Driver) -> None:
    run_id = (await s.send("a")).run.run_id
    told = await why(s, run_id)
    assert kinds(told) == ["no_worker"]
    assert told.estimate.position == 1
    assert not told.estimate.HasField("start_time"), "who knows when a worker comes"
    assert told.reasons[0].no_worker.queue == "agent"
    assert not told.reasons[0].no_worker.HasField("last_poll_time")
    leased = await s.lease_one()
    told = await why(s, run_id)
    assert kinds(told) == ["executing"]
    executing = told.reasons[0].executing
    assert executing.worker == "agent-0"
    assert executing.lease_time.ToMicroseconds() < executing.expire_time.ToMicroseconds()
    assert not told.HasField("estimate")

    behind = await why(s, (await s.send("a", "two")).run.run_id)
    assert kinds(behind)[0] == "behind_run"
    assert behind.reasons[0].behind_run.run.run_id == run_id
    assert behind.reasons[0].behind_run.run.session_key == "a"

    [child] = await s.spawn(leased, "x")
    await s.wait_for_children(leased, child)
    told = await why(s, run_id)
    assert kinds(told) == ["waiting_for_children"]
    waiting = told.reasons[0].waiting_for_children
    assert [ref.run_id for ref in waiting.live] == [child]
    assert (waiting.live_count, waiting.settled_count, waiting.holds_session_lane) == (1, 0, True)
    behind = await why(s, behind.run.run_id)
    assert list(behind.reasons[0].behind_run.condition.children.run_ids) == [child]
    assert behind.estimate.session_lane_wait.children.run_ids == [child]

    working = await s.lease_one()
    assert working.run.run_id == child
    await s.scheduler.CancelRun(pb.CancelRunRequest(run_id=run_id, reason="enough"))
    told = await why(s, run_id)
    assert kinds(told) == ["stopping"]
    assert told.reasons[0].stopping.cancel_reason == "enough"
    assert [ref.run_id for ref in told.reasons[0].stopping.unconfirmed] == [child]
    await s.complete(working)
    told = await why(s, run_id)
    assert kinds(told) == ["ended"]
    assert told.reasons[0].text == "It was cancelled: enough."
    assert told.reasons[0].ended.error.message == "enough"


async def test_a_pause_between_attempts_keeps_what_the_worker_said(tmp_path: Path) -> None:
    config = settings(tmp_path, CONVEYOR_RUNS__BACKOFF__INITIAL_SECONDS="30")
    async with driver(config) as s:
        run_id = (await s.send("a")).run.run_id
        await s.fail(await s.lease_one(), ModelUnavailable("overloaded"), retryable=True)
        told = await why(s, run_id)
        assert kinds(told) == ["backing_off"]
        pause = told.reasons[0].backing_off
        assert (pause.attempts, pause.max_attempts) == (1, 3)
        assert pause.last_error.message == "overloaded"
        # It holds its place: the estimate is the end of the pause.
        assert told.estimate.position == 1
        assert told.estimate.start_time == pause.until
    async with driver(config) as s:
        again = await why(s, run_id)
        assert again.reasons[0].backing_off.last_error.message == "overloaded"


async def test_only_runs_that_exist_are_explained(s: Driver) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await why(s, "nobody")
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_watchers_are_told_when_a_message_moves_up_and_nothing_is_stored(s: Driver) -> None:
    await s.scheduler.UpdateLane(pb.UpdateLaneRequest(name="main", limit=1))
    await s.send("first")
    leased = await s.lease_one()
    await s.send("second")
    run_id = (await s.send("third")).run.run_id
    call = s.events.WatchEvents(events.WatchEventsRequest(session_key="third"))

    async def position() -> event_pb2.LanePositionUpdated:
        async for response in call:
            if response.HasField("lane_position"):
                found: event_pb2.LanePositionUpdated = response.lane_position
                assert (found.run_id, found.session_key) == (run_id, "third")
                return found
        raise AssertionError("the stream ended")

    async def busy(until: asyncio.Future[Any]) -> Any:
        while not until.done():
            await s.extend(leased)
            await asyncio.wait([until], timeout=0.2)
        return until.result()

    told = await busy(asyncio.ensure_future(position()))
    assert told.estimate.position == 2
    late = s.events.WatchEvents(
        events.WatchEventsRequest(session_key="third", payloads=["lane_position"])
    )
    async for response in late:
        if response.HasField("lane_position"):
            assert response.lane_position.estimate.position == 2, "the newest, at once"
            break
    late.cancel()
    await s.complete(leased)
    leased = await s.lease_one()
    again = await busy(asyncio.ensure_future(position()))
    assert again.estimate.position == 1
    apart = again.estimate.as_of_time.ToMicroseconds() - told.estimate.as_of_time.ToMicroseconds()
    assert apart >= 2_000_000, "at most every 2 s"
    call.cancel()
    assert await s.kinds("third") == ["message_completed", "run_state_changed"]
