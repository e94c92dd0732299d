"""Promises of the contract that are easy to break: one test for each that was broken once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from grpc import aio

from conveyor.common.v1 import content_pb2
from conveyor.events.v1 import event_log_service_pb2 as events
from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import lane_pb2, run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as pb
from conveyor.scheduler.v1 import worker_service_pb2 as ws
from svckit.errors import RunCancelled
from svckit.grpc.status import from_proto, from_rpc_error, to_proto
from svckit.testing import eventually

from .conftest import Driver, driver, message, settings


async def wait_for_a_limit(s: Driver, leased: Any, seconds: float) -> Any:
    span = Duration()
    span.FromMicroseconds(round(seconds * 1e6))
    response = await s.worker.SuspendRun(
        ws.SuspendRunRequest(
            lease_id=leased.lease.lease_id,
            condition=run_pb2.WaitCondition(limit=run_pb2.LimitWait(retry_after=span, name="x")),
            hold_session_lane=True,
        )
    )
    return response.run


def tool(event_id: str) -> event_pb2.Event:
    return event_pb2.Event(
        event_id=event_id,
        tool_call_started=event_pb2.ToolCallStarted(tool_call_id="1.1.0", tool_name="x"),
    )


async def test_a_message_steered_to_a_run_that_waits_for_a_limit_is_kept_for_its_next_turn(
    s: Driver,
) -> None:
    await s.send("a", "one")
    await wait_for_a_limit(s, await s.lease_one(), 0.3)
    steered = await s.send("a", "two", mode=lane_pb2.QUEUE_MODE_STEER)
    assert steered.outcome == lane_pb2.ENQUEUE_OUTCOME_STEERED
    assert steered.run.state == run_pb2.RUN_STATE_SUSPENDED  # the limit does not come earlier
    resumed = await s.lease_one()
    assert [i.message.parts[0].text for i in resumed.steered] == ["two"]


async def test_a_wait_for_a_limit_that_is_over_at_once_ends(s: Driver) -> None:
    await s.send("a")
    await wait_for_a_limit(s, await s.lease_one(), 0)
    assert (await s.lease_one()).lease.turn == 2


async def test_what_a_cancelled_turn_took_is_not_missed(s: Driver) -> None:
    accepted = await s.send("a", "one")
    leased = await s.lease_one()
    await s.send("a", "two", mode=lane_pb2.QUEUE_MODE_STEER, request_id="two")
    await s.scheduler.CancelRun(pb.CancelRunRequest(run_id=accepted.run.run_id))
    await s.worker.FailRun(
        ws.FailRunRequest(
            lease_id=leased.lease.lease_id,
            error=to_proto(RunCancelled("stopped", metadata={"cause": "request"})),
            taken_request_ids=["two"],
        )
    )
    assert await s.state(accepted.run.run_id) == "CANCELLED"
    kinds = await s.kinds("a")
    assert "steer_accepted" in kinds
    assert "steer_missed" not in kinds
    assert await s.lease(1) == []


async def test_steering_cannot_overfill_a_session_lane(s: Driver) -> None:
    await s.send("a", "one")
    await s.lease_one()
    for n in range(2):
        item = s.item("a", f"steer {n}", mode=lane_pb2.QUEUE_MODE_STEER)
        item.queue_policy.cap = 2
        result = (await s.scheduler.EnqueueRuns(pb.EnqueueRunsRequest(items=[item]))).results[0]
        assert result.HasField("accepted")
    for mode in (lane_pb2.QUEUE_MODE_STEER, lane_pb2.QUEUE_MODE_FOLLOWUP):
        item = s.item("a", "too much", mode=mode)
        item.queue_policy.cap = 2
        error = from_proto(await s.refused(item))
        assert error.reason == "LANE_FULL"
        assert error.metadata == {"sessionKey": "a", "waiting": "2", "cap": "2"}


async def test_a_childs_last_sequence_is_of_its_own_session(s: Driver) -> None:
    await s.send("a")
    parent = await s.lease_one()
    response = await s.scheduler.EnqueueRuns(
        pb.EnqueueRunsRequest(items=[s.child(parent, "x", "1.1.0")])
    )
    accepted = response.results[0].accepted
    assert accepted.last_sequence == 0
    first = (await s.log(accepted.run.spec.session_key))[0]
    assert first.sequence == 1


async def test_a_replaced_worker_learns_it_from_extending(s: Driver) -> None:
    await s.send("a")
    old = await s.lease_one()
    newer = ws.Worker(name=s.me.name, incarnation=s.me.incarnation + 1)
    await s.worker.LeaseRuns(ws.LeaseRunsRequest(worker=newer, queue="agent", max_runs=1))
    with pytest.raises(aio.AioRpcError) as caught:
        await s.extend(old)
    error = from_rpc_error(caught.value)
    assert error.reason == "WORKER_REPLACED"
    assert error.metadata == {"worker": s.me.name, "incarnation": str(newer.incarnation)}


async def test_leases_that_got_lost_on_their_way_go_back_with_the_next_poll(s: Driver) -> None:
    async def poll(*held: Any) -> list[Any]:
        request = ws.LeaseRunsRequest(
            worker=s.me,
            queue="agent",
            max_runs=4,
            held=ws.HeldLeases(lease_ids=[item.lease.lease_id for item in held]),
        )
        return list((await s.worker.LeaseRuns(request)).leased_runs)

    await s.send("a")
    await s.send("b")
    kept, lost = await poll()
    [again] = await poll(kept)
    assert again.lease.run_id == lost.lease.run_id
    assert (again.lease.turn, again.lease.attempt) == (1, 1)
    assert [status.lost for status in await s.extend(kept, lost, again)] == [False, True, False]
    assert await poll(kept, again) == []


async def test_a_cancelled_run_whose_lease_got_lost_ends(s: Driver) -> None:
    accepted = await s.send("a")
    await s.lease_one()
    await s.scheduler.CancelRun(pb.CancelRunRequest(run_id=accepted.run.run_id))
    await s.worker.LeaseRuns(
        ws.LeaseRunsRequest(worker=s.me, queue="agent", max_runs=1, held=ws.HeldLeases())
    )
    assert await s.state(accepted.run.run_id) == "CANCELLED"


async def test_appending_again_names_the_sequence_of_the_stored_event(s: Driver) -> None:
    await s.send("a")
    leased = await s.lease_one()

    async def append(*ids: str) -> int:
        response = await s.events.AppendEvents(
            events.AppendEventsRequest(
                lease_id=leased.lease.lease_id, events=[tool(event_id) for event_id in ids]
            )
        )
        return int(response.last_sequence)

    first = await append("e1", "e2")
    later = await append("e3")
    assert later == first + 1
    assert await append("e1", "e2") == first
    assert await append("e2", "e1") == first - 1


async def test_a_run_that_waits_for_children_has_no_position(s: Driver) -> None:
    await s.send("a", "one", request_id="one")
    parent = await s.lease_one()
    [child] = await s.spawn(parent, "x")
    await s.wait_for_children(parent, child)
    again = await s.send("a", "one", request_id="one")
    assert again.deduplicated
    assert again.estimate.position == 0
    behind = await s.send("a", "two")
    assert behind.estimate.session_lane_ahead == 1


async def test_a_limit_of_a_lane_that_left_the_configuration_survives_a_restart(
    tmp_path: Path,
) -> None:
    lanes = {"CONVEYOR_LANES__EXTRA__LIMIT": "1"}
    async with driver(settings(tmp_path, **lanes)) as s:
        await s.send("a", global_lane="extra")
    async with driver(settings(tmp_path)) as s:
        assert await s.lease(1) == []
        await s.scheduler.UpdateLane(pb.UpdateLaneRequest(name="extra", limit=1))
    async with driver(settings(tmp_path)) as s:
        assert (await s.lease_one()).run.spec.global_lane == "extra"


async def test_a_childs_text_is_cut_to_32_kib_not_characters(s: Driver) -> None:
    await s.send("a")
    parent = await s.lease_one()
    [child] = await s.spawn(parent, "x")
    await s.wait_for_children(parent, child)
    await s.complete(await s.lease_one(), "я" * 30_000)
    [result] = (await s.lease_one()).resumption.children
    assert result.text_truncated
    assert result.text == "я" * (16 * 1024)


async def test_many_long_steered_messages_do_not_make_a_lease_too_large_to_receive(
    store: str, tmp_path: Path
) -> None:
    async with driver(settings(tmp_path, store)) as s:  # with leases that last
        await s.send("a", "one")
        leased = await s.lease_one()
        texts = [str(n) + "x" * 250_000 for n in range(24)]
        for n, text in enumerate(texts):
            item = s.item("a", "x", mode=lane_pb2.QUEUE_MODE_STEER)
            item.message.CopyFrom(message(text, f"m{n}"))
            result = (await s.scheduler.EnqueueRuns(pb.EnqueueRunsRequest(items=[item]))).results[0]
            assert result.HasField("accepted")
        [status] = await s.extend(leased)
        offered = [entry.message.parts[0].text for entry in status.steered]
        assert offered == texts[: len(offered)]
        assert offered
        await s.worker.ReleaseRun(ws.ReleaseRunRequest(lease_id=leased.lease.lease_id))
        assert [e.message.parts[0].text for e in (await s.lease_one()).steered] == offered


async def test_what_does_not_fit_into_one_answer_comes_with_the_next(s: Driver) -> None:
    for n in range(4):
        item = s.item(f"session-{n}", "x")
        part = content_pb2.ContentPart(text="x" * 250_000)
        item.message.ClearField("parts")
        item.message.parts.extend([part] * 4)
        result = (await s.scheduler.EnqueueRuns(pb.EnqueueRunsRequest(items=[item]))).results[0]
        assert result.HasField("accepted")
    first = await s.lease(4)
    second = await s.lease(4)
    assert (len(first), len(second)) == (3, 1)
    assert {item.lease.attempt for item in (*first, *second)} == {1}


async def test_an_announcement_names_the_childs_trace_after_a_restart(tmp_path: Path) -> None:
    async with driver(settings(tmp_path)) as s:
        await s.send("a")
        parent = await s.lease_one()
        item = s.child(parent, "x", "1.1.0")
        item.trace.traceparent = f"00-{'a' * 32}-{'b' * 16}-01"
        await s.scheduler.EnqueueRuns(pb.EnqueueRunsRequest(items=[item]))
        child = await s.lease_one()
    async with driver(settings(tmp_path)) as s:
        await s.complete(child, text=None)
        announced = [e for e in await s.log("a") if e.HasField("child_announced")]
        assert announced[0].child_announced.announcement.result.trace_id == "a" * 32


async def test_a_repeated_steered_message_is_still_steered(s: Driver) -> None:
    await s.send("a", "one")
    leased = await s.lease_one()
    for seen in (False, True):
        again = await s.send("a", "two", mode=lane_pb2.QUEUE_MODE_STEER, request_id="two")
        assert again.deduplicated is seen
        assert again.outcome == lane_pb2.ENQUEUE_OUTCOME_STEERED
    await s.complete(leased, taken_request_ids=["two"])
    ended = await s.send("a", "two", mode=lane_pb2.QUEUE_MODE_STEER, request_id="two")
    assert ended.outcome == lane_pb2.ENQUEUE_OUTCOME_STEERED

    async def idle() -> bool:
        return not s.engine._kernel.runs

    await eventually(idle)


async def test_what_was_steered_to_a_run_that_stops_slowly_is_not_overtaken(s: Driver) -> None:
    """Found by the simulation, seed 514: the run's lane was free before its children had ended."""
    first = await s.send("a", "one")
    leased = await s.lease_one()
    await s.spawn(leased, "child")
    child = await s.lease_one()
    steered = await s.send("a", "two", mode=lane_pb2.QUEUE_MODE_STEER)
    assert steered.outcome == lane_pb2.ENQUEUE_OUTCOME_STEERED
    third = await s.send("a", "three")
    await s.scheduler.CancelRun(pb.CancelRunRequest(run_id=first.run.run_id))
    await s.complete(leased)  # its child still executes
    second = await s.lease_one()
    assert [i.message.parts[0].text for i in second.run.inputs] == ["two"]
    await s.complete(second)
    assert (await s.lease_one()).run.run_id == third.run.run_id
    await s.complete(child)
    assert await s.state(first.run.run_id) == "CANCELLED"
