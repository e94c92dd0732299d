"""Turns, leases and spawn trees over real gRPC, on every store."""

from __future__ import annotations

import asyncio

import pytest

from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import announcement_pb2, lane_pb2, run_pb2
from conveyor.scheduler.v1 import flow_service_pb2 as flow
from conveyor.scheduler.v1 import scheduler_service_pb2 as pb
from conveyor.scheduler.v1 import worker_service_pb2 as ws
from svckit.errors import BY_REASON, TurnFailed
from svckit.grpc.status import from_proto, from_rpc_error
from svckit.testing import eventually

from .conftest import Driver, message


async def test_a_message_is_leased_answered_and_told(s: Driver) -> None:
    accepted = await s.send("a", "hi", request_id="r1")
    assert accepted.outcome == lane_pb2.ENQUEUE_OUTCOME_QUEUED
    leased = await s.lease_one()
    assert leased.run.inputs[0].message.parts[0].text == "hi"
    assert (leased.lease.turn, leased.lease.attempt) == (1, 1)
    run = await s.complete(leased, "hello")
    assert run.state == run_pb2.RUN_STATE_SUCCEEDED
    assert await s.kinds("a") == [
        "message_completed",
        "run_state_changed",
        "run_state_changed",
        "message_completed",
        "run_state_changed",
    ]


async def test_two_messages_of_a_session_never_overlap(s: Driver) -> None:
    await s.send("a", "one")
    await s.send("a", "two")
    [first] = await s.lease(10)
    assert first.run.inputs[0].message.parts[0].text == "one"
    assert await s.lease(10) == []
    await s.complete(first)
    second = await s.lease_one()
    assert second.run.inputs[0].message.parts[0].text == "two"
    assert [p.run_id for p in second.previous_runs] == [first.run.run_id]


async def test_a_long_poll_returns_when_a_run_becomes_ready(s: Driver) -> None:
    poll = asyncio.create_task(s.lease(1, 10))
    await s.send("a")
    [leased] = await poll
    assert leased.run.spec.session_key == "a"


async def test_a_repeated_request_is_the_same_run_and_another_body_is_refused(s: Driver) -> None:
    item = s.item("a", "hi", request_id="r1")
    first = (await s.scheduler.EnqueueRuns(pb.EnqueueRunsRequest(items=[item]))).results[0].accepted
    again = (await s.scheduler.EnqueueRuns(pb.EnqueueRunsRequest(items=[item]))).results[0].accepted
    assert again.deduplicated
    assert again.run.run_id == first.run.run_id
    error = from_proto(await s.refused(s.item("a", "other", request_id="r1")))
    assert error.reason == "REQUEST_ID_REUSED"
    leased = await s.lease_one()
    await s.complete(leased)
    ended = (await s.scheduler.EnqueueRuns(pb.EnqueueRunsRequest(items=[item]))).results[0].accepted
    assert ended.deduplicated
    assert ended.run.state == run_pb2.RUN_STATE_SUCCEEDED


async def test_waiting_children_join_into_one_turn(s: Driver) -> None:
    await s.send("a", "three things")
    parent = await s.lease_one()
    children = await s.spawn(parent, "x", "y", "z")
    run = await s.wait_for_children(parent, *children)
    assert run.state == run_pb2.RUN_STATE_SUSPENDED
    assert run.suspension.holds_session_lane
    await s.send("a", "next message waits")
    leased = await s.lease(10)
    assert sorted(item.run.run_id for item in leased) == sorted(children)
    for item in leased:
        await s.complete(item, f"result {item.run.spec.label}")
    parent = await s.lease_one()
    assert parent.resumption.reason == announcement_pb2.RESUME_REASON_CHILDREN_SETTLED
    assert [c.text for c in parent.resumption.children] == ["result x", "result y", "result z"]
    assert not parent.resumption.lane_released
    assert parent.lease.turn == 2
    await s.complete(parent, "joined")
    found = await s.flows.GetFlow(flow.GetFlowRequest(flow_id=parent.run.run_id))
    assert len(found.nodes) == 4
    assert found.flow.depth == 1
    assert found.flow.state == run_pb2.RUN_STATE_SUCCEEDED
    announced = [e for e in await s.log("a") if e.HasField("child_announced")]
    assert len(announced) == 3


async def test_a_background_child_that_settles_during_the_turn_is_told_in_a_closing_turn(
    s: Driver,
) -> None:
    await s.send("a")
    parent = await s.lease_one()
    await s.spawn(parent, "bg")
    child = await s.lease_one()
    await s.complete(child, "child result")
    run = await s.complete(parent, "working on it")
    assert run.state == run_pb2.RUN_STATE_QUEUED
    closing = await s.lease_one()
    assert closing.resumption.reason == announcement_pb2.RESUME_REASON_CHILD_UNTOLD
    assert closing.resumption.lane_released
    assert [c.text for c in closing.resumption.children] == ["child result"]
    assert (await s.complete(closing, "all done")).state == run_pb2.RUN_STATE_SUCCEEDED


async def test_a_yielded_run_lets_the_customer_go_on(s: Driver) -> None:
    first = await s.send("a")
    parent = await s.lease_one()
    children = await s.spawn(parent, "slow")
    await s.wait_for_children(parent, *children, hold=False, interim="I'll get back to you")
    await s.send("a", "something else")
    leased = await s.lease(10)
    texts = {item.run.inputs[0].message.parts[0].text: item for item in leased}
    assert set(texts) == {"slow", "something else"}
    await s.complete(texts["something else"], "sure")
    await s.complete(texts["slow"], "slow result")
    closing = await s.lease_one()
    assert closing.run.run_id == first.run.run_id
    assert closing.resumption.lane_released
    await s.complete(closing, "here it is")
    replies = [
        (e.message_completed.kind, e.message_completed.message.parts[0].text)
        for e in await s.log("a")
        if e.HasField("message_completed")
        and e.message_completed.kind != event_pb2.MESSAGE_KIND_INPUT
    ]
    assert replies == [
        (event_pb2.MESSAGE_KIND_INTERIM, "I'll get back to you"),
        (event_pb2.MESSAGE_KIND_REPLY, "sure"),
        (event_pb2.MESSAGE_KIND_REPLY, "here it is"),
    ]


async def test_a_long_wait_sends_the_interim_reply_and_gives_the_lane_to_the_next_message(
    s: Driver,
) -> None:
    await s.send("a")
    parent = await s.lease_one()
    [child] = await s.spawn(parent, "slow")
    await s.wait_for_children(parent, child, yield_after=0.05, interim="still working")

    async def interim_sent() -> bool:
        return (await s.run(parent.run.run_id)).interim_sent

    await eventually(interim_sent)
    assert (await s.run(parent.run.run_id)).suspension.holds_session_lane
    await s.send("a", "another question")
    leased = await s.lease(10)
    assert {i.run.inputs[0].message.parts[0].text for i in leased} == {"slow", "another question"}
    assert not (await s.run(parent.run.run_id)).suspension.holds_session_lane


async def test_a_followup_waits_and_a_steered_message_wakes_a_run_that_holds_the_lane(
    s: Driver,
) -> None:
    root = await s.send("a")
    parent = await s.lease_one()
    [child] = await s.spawn(parent, "slow")
    await s.wait_for_children(parent, child)
    followup = await s.send("a", "later")
    assert followup.estimate.session_lane_ahead == 1
    steered = await s.send("a", "also this", mode=lane_pb2.QUEUE_MODE_STEER, request_id="steer-1")
    assert steered.outcome == lane_pb2.ENQUEUE_OUTCOME_STEERED
    assert steered.run.run_id == root.run.run_id
    leased = {item.run.run_id: item for item in await s.lease(10)}
    assert set(leased) == {child, root.run.run_id}
    woken = leased[root.run.run_id]
    assert woken.resumption.reason == announcement_pb2.RESUME_REASON_STEERED
    assert [c.run_id for c in woken.resumption.children] == [child]
    assert woken.resumption.children[0].status == run_pb2.RUN_STATE_RUNNING
    assert [i.request_id for i in woken.steered] == ["steer-1"]
    await s.wait_for_children(woken, child, taken=("steer-1",))
    await s.complete(leased[child], "slow result")
    joined = await s.lease_one()
    assert list(joined.steered) == []
    assert [c.text for c in joined.resumption.children] == ["slow result"]
    await s.complete(joined, "joined")
    assert "steer_accepted" in await s.kinds("a")
    assert (await s.lease_one()).run.run_id == followup.run.run_id


async def test_what_no_turn_takes_becomes_a_run_at_its_place_in_the_order(s: Driver) -> None:
    await s.send("a", "one")
    first = await s.lease_one()
    steered = await s.send("a", "two", mode=lane_pb2.QUEUE_MODE_STEER, request_id="st")
    await s.send("a", "three")
    [status] = await s.extend(first)
    assert [i.message.parts[0].text for i in status.steered] == ["two"]
    assert steered.outcome == lane_pb2.ENQUEUE_OUTCOME_STEERED
    await s.complete(first)
    second = await s.lease_one()
    assert second.run.inputs[0].message.parts[0].text == "two"
    missed = [e.steer_missed for e in await s.log("a") if e.HasField("steer_missed")]
    assert [m.fallback_run_id for m in missed] == [second.run.run_id]
    again = await s.send("a", "two", mode=lane_pb2.QUEUE_MODE_STEER, request_id="st")
    assert again.deduplicated
    assert again.run.run_id == second.run.run_id


async def test_cancelling_a_flow_ends_every_run_and_frees_the_lane(s: Driver) -> None:
    root = await s.send("a")
    parent = await s.lease_one()
    children = await s.spawn(parent, "one", "two", "three")
    await s.wait_for_children(parent, *children)
    working = await s.lease_one()
    after = await s.send("a", "next")
    response = await s.flows.CancelFlow(
        flow.CancelFlowRequest(flow_id=root.run.run_id, reason="enough")
    )
    assert response.affected_runs == 4
    assert await s.state(root.run.run_id) == "CANCELLING"
    [status] = await s.extend(working)
    assert status.cancel_requested
    assert status.cancel_reason == "enough"
    refused = from_proto(await s.refused(s.child(working, "grandchild", "1.1.0")))
    assert refused.reason == "FLOW_CANCELLING"
    # The lane is free although a descendant has not confirmed yet.
    next_run = await s.lease_one()
    assert next_run.run.run_id == after.run.run_id
    await s.complete(next_run)
    await s.fail(working, BY_REASON["RUN_CANCELLED"]("stopped"))
    for run_id in (root.run.run_id, *children):
        assert await s.state(run_id) == "CANCELLED"


async def test_a_failing_run_cancels_its_children_first(s: Driver) -> None:
    await s.send("a")
    parent = await s.lease_one()
    [child] = await s.spawn(parent, "one")
    working = await s.lease_one()
    run = await s.fail(parent, TurnFailed("no", metadata={"cause": "tool"}))
    assert run.state == run_pb2.RUN_STATE_CANCELLING
    await s.complete(working)
    assert await s.state(child) == "CANCELLED"
    assert await s.state(parent.run.run_id) == "FAILED"
    failed = await s.run(parent.run.run_id)
    assert from_proto(failed.error).reason == "TURN_FAILED"


async def test_a_lost_lease_is_tried_again_and_the_old_worker_is_refused(s: Driver) -> None:
    await s.send("a")
    first = await s.lease_one()
    second = await s.lease_one(wait=10)  # after the lease of one second
    assert (second.lease.turn, second.lease.attempt) == (1, 2)
    assert second.lease.fencing_token > first.lease.fencing_token
    [status] = await s.extend(first)
    assert status.lost
    response = await s.worker.CompleteRuns(
        ws.CompleteRunsRequest(completions=[ws.RunCompletion(lease_id=first.lease.lease_id)])
    )
    assert from_proto(response.results[0].error).reason == "LEASE_LOST"
    await s.complete(second)


async def test_a_new_incarnation_voids_the_leases_of_the_one_before_at_once(s: Driver) -> None:
    await s.send("a")
    await s.lease_one()
    old = s.me
    s.me = ws.Worker(name="agent-0", incarnation=2)
    again = await s.lease_one()
    assert again.lease.attempt == 2
    s.me = old
    with pytest.raises(Exception) as caught:
        await s.lease()
    assert from_rpc_error(caught.value).reason == "WORKER_REPLACED"  # type: ignore[arg-type]


async def test_attempts_run_out(s: Driver) -> None:
    accepted = await s.send("a", retry_policy=run_pb2.RetryPolicy(max_attempts=2))
    for _ in range(2):
        leased = await s.lease_one()
        await s.fail(leased, BY_REASON["MODEL_UNAVAILABLE"]("gone", retry_after=0), retryable=True)
    run = await s.run(accepted.run.run_id)
    assert run.state == run_pb2.RUN_STATE_FAILED
    error = from_proto(run.error)
    assert error.reason == "ATTEMPTS_EXHAUSTED"
    assert error.metadata["lastReason"] == "MODEL_UNAVAILABLE"


async def test_a_run_handed_back_does_not_count(s: Driver) -> None:
    await s.send("a")
    first = await s.lease_one()
    await s.worker.ReleaseRun(ws.ReleaseRunRequest(lease_id=first.lease.lease_id))
    again = await s.lease_one()
    assert (again.lease.turn, again.lease.attempt) == (1, 1)


async def test_ending_a_turn_twice_is_harmless_and_another_way_is_refused(s: Driver) -> None:
    await s.send("a")
    leased = await s.lease_one()
    assert (await s.complete(leased)).state == (await s.complete(leased)).state
    with pytest.raises(Exception) as caught:
        await s.fail(leased, TurnFailed("late"))
    assert from_rpc_error(caught.value).reason == "LEASE_LOST"  # type: ignore[arg-type]
    replies = [k for k in await s.kinds("a") if k == "message_completed"]
    assert len(replies) == 2  # the input and one reply


@pytest.mark.parametrize(
    ("budget", "name"),
    [
        (run_pb2.Budget(max_depth=0), "max_depth"),
        (run_pb2.Budget(max_children=1), "max_children"),
        (run_pb2.Budget(max_descendants=1), "max_descendants"),
    ],
)
async def test_a_spawn_beyond_a_cap_names_it(s: Driver, budget: run_pb2.Budget, name: str) -> None:
    await s.send("a", budget=budget)
    parent = await s.lease_one()
    if name != "max_depth":
        await s.spawn(parent, "first")
    error = from_proto(await s.refused(s.child(parent, "too much", "1.9.0")))
    assert error.reason == "BUDGET_EXCEEDED"
    assert error.metadata["budget"] == name
    assert error.metadata["runId"] == parent.run.run_id


async def test_a_full_session_lane_refuses_with_a_hint(store: str, s: Driver) -> None:
    item = s.item("a", "x")
    item.queue_policy.cap = 2
    for n in range(2):
        item.request_id = f"full-{n}"
        await s.scheduler.EnqueueRuns(pb.EnqueueRunsRequest(items=[item]))
    item.request_id = "full-3"
    error = from_proto(await s.refused(item))
    assert error.reason == "LANE_FULL"
    assert error.metadata["cap"] == "2"
    assert error.retry_after is not None


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        (lambda i: i.ClearField("request_id"), "INVALID_FIELD", "request_id"),
        (lambda i: i.message.ClearField("parts"), "INVALID_FIELD", "message.parts"),
        (lambda i: setattr(i.spec, "queue", "x"), "INVALID_FIELD", "spec.queue"),
        (lambda i: setattr(i.spec, "global_lane", "nope"), "LANE_NOT_FOUND", None),
        (lambda i: setattr(i.spec, "session_key", "a b"), "INVALID_FIELD", "spec.session_key"),
        (lambda i: setattr(i.spec.task, "value", b"x" * 70_000), "PAYLOAD_TOO_LARGE", "spec.task"),
        (
            lambda i: i.message.parts[0].__setattr__("text", "x" * 300_000),
            "PAYLOAD_TOO_LARGE",
            "message.parts[0].text",
        ),
        (
            lambda i: setattr(i.queue_policy, "mode", 9),
            "INVALID_FIELD",
            "queue_policy.mode",
        ),
        (
            lambda i: i.queue_policy.debounce.FromSeconds(6),
            "INVALID_FIELD",
            "queue_policy.debounce",
        ),
    ],
)
async def test_bad_input_names_the_field(s: Driver, change, reason, field) -> None:  # type: ignore[no-untyped-def]
    item = s.item("a", "x")
    change(item)
    error = from_proto(await s.refused(item))
    assert error.reason == reason
    if field:
        assert error.metadata["field"] == field


async def test_with_every_limit_at_one_a_deep_tree_completes(s: Driver) -> None:
    for lane in ("main", "subagent"):
        await s.scheduler.UpdateLane(pb.UpdateLaneRequest(name=lane, limit=1))
    root = await s.send("a")
    turns = 0
    while await s.state(root.run.run_id) not in ("SUCCEEDED", "FAILED"):
        leased = await s.lease_one()
        turns += 1
        if leased.run.spawn.depth < 3 and not leased.HasField("resumption"):
            children = await s.spawn(leased, "x", "y", "z")
            await s.wait_for_children(leased, *children)
        else:
            await s.complete(leased)
    assert await s.state(root.run.run_id) == "SUCCEEDED"
    assert turns == 27 + 2 * (1 + 3 + 9)


async def test_a_limit_is_live_and_zero_pauses(s: Driver) -> None:
    await s.scheduler.UpdateLane(pb.UpdateLaneRequest(name="main", limit=0))
    await s.send("a")
    assert await s.lease(1) == []
    poll = asyncio.create_task(s.lease(1, 10))
    await s.scheduler.UpdateLane(pb.UpdateLaneRequest(name="main"))
    assert len(await poll) == 1
    lanes = await s.scheduler.ListLanes(pb.ListLanesRequest(kind=lane_pb2.LANE_KIND_GLOBAL))
    main = next(lane for lane in lanes.lanes if lane.name == "main")
    assert (main.limit, main.configured_limit, main.running) == (4, 4, 1)


async def test_run_timeout_expires_what_executes_too_long(s: Driver) -> None:
    spec = run_pb2.RunSpec()
    spec.run_timeout.FromMilliseconds(50)
    accepted = await s.send("a", run_timeout=spec.run_timeout)
    leased = await s.lease_one()

    async def asked_to_stop() -> bool:
        [status] = await s.extend(leased)
        return status.cancel_requested

    await eventually(asked_to_stop)
    await s.fail(leased, BY_REASON["RUN_CANCELLED"]("stopped"))
    run = await s.run(accepted.run.run_id)
    assert run.state == run_pb2.RUN_STATE_EXPIRED
    assert from_proto(run.error).metadata["timeout"] == "run_timeout"


async def test_a_steered_run_that_ended_refuses(s: Driver) -> None:
    accepted = await s.send("a")
    await s.complete(await s.lease_one())
    with pytest.raises(Exception) as caught:
        await s.scheduler.SteerRun(
            pb.SteerRunRequest(
                run_id=accepted.run.run_id, message=message("late"), request_id="late"
            )
        )
    assert from_rpc_error(caught.value).reason == "RUN_ALREADY_ENDED"  # type: ignore[arg-type]
