"""Messages for a busy session, as a gateway and a worker see them, on each store."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from grpc import aio

from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import lane_pb2, run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as pb
from conveyor.scheduler.v1 import worker_service_pb2 as ws
from scheduler_svc.domain.admission import Outcome
from scheduler_svc.domain.records import QueueMode
from svckit.errors import RunCancelled
from svckit.grpc.status import from_proto, from_rpc_error
from svckit.settings import load

from .conftest import Driver, driver, message, settings

COLLECT, INTERRUPT = lane_pb2.QUEUE_MODE_COLLECT, lane_pb2.QUEUE_MODE_INTERRUPT
STEER = lane_pb2.QUEUE_MODE_STEER
COLLECTED = lane_pb2.ENQUEUE_OUTCOME_COLLECTED
QUEUED = lane_pb2.ENQUEUE_OUTCOME_QUEUED


def collecting(s: Driver, session: str, text: str, debounce: float = 0, **more: Any) -> Any:
    item = s.item(session, text, mode=COLLECT, **more)
    item.queue_policy.debounce.FromMicroseconds(round(debounce * 1e6))
    return item


async def enqueue(s: Driver, *items: Any) -> list[pb.AcceptedRun]:
    response = await s.scheduler.EnqueueRuns(pb.EnqueueRunsRequest(items=items))
    assert all(result.HasField("accepted") for result in response.results), response
    return [result.accepted for result in response.results]


async def collect(s: Driver, session: str, text: str, debounce: float = 0, **more: Any) -> Any:
    [accepted] = await enqueue(s, collecting(s, session, text, debounce, **more))
    return accepted


def texts(leased: Any) -> list[str]:
    return [entry.message.parts[0].text for entry in leased.run.inputs]


# -- collect -----------------------------------------------------------------------------------


async def test_messages_for_a_busy_session_become_one_run_that_answers_all(s: Driver) -> None:
    await s.send("a", "before")
    before = await s.lease_one()
    first = await collect(s, "a", "one")
    second = await collect(s, "a", "two", request_id="second")
    third = await collect(s, "a", "three")
    assert [a.outcome for a in (first, second, third)] == [QUEUED, COLLECTED, COLLECTED]
    assert first.run.run_id == second.run.run_id == third.run.run_id
    assert second.estimate.session_lane_ahead == 1
    await s.complete(before)
    leased = await s.lease_one()
    assert texts(leased) == ["one", "two", "three"]
    assert [entry.body_hash for entry in leased.run.inputs] == [
        entry.body_hash for entry in (await s.run(first.run.run_id)).inputs
    ]
    await s.complete(leased, "for all")
    assert await s.lease(1) == []
    kinds = await s.kinds("a")
    assert kinds.count("message_completed") == 4 + 2
    # The request of each message leads to the run that answered it, after its end too.
    again = await collect(s, "a", "two", request_id="second")
    assert (again.deduplicated, again.outcome) == (True, COLLECTED)
    assert again.run.run_id == first.run.run_id
    error = from_proto(await s.refused(s.item("a", "else", request_id="second")))
    assert error.reason == "REQUEST_ID_REUSED"


async def test_an_idle_session_collects_until_nothing_came_for_a_while(s: Driver) -> None:
    [first, _] = await enqueue(
        s, collecting(s, "a", "one", debounce=0.3), collecting(s, "a", "two", debounce=0.3)
    )
    assert await s.lease(1) == []
    leased = await s.lease_one()
    assert texts(leased) == ["one", "two"]
    waited = leased.run.timing.start_time.ToMicroseconds()
    waited -= first.run.timing.create_time.ToMicroseconds()
    assert 300_000 <= waited < 3_000_000


async def test_a_debounce_of_zero_starts_at_once_and_none_is_a_second(s: Driver) -> None:
    await collect(s, "now", "x", debounce=0)
    assert texts(await s.lease_one(wait=0)) == ["x"]
    await s.send("later", "x", mode=COLLECT)
    assert await s.lease(1) == []
    assert texts(await s.lease_one()) == ["x"]


async def test_the_messages_of_a_run_that_was_leased_are_fixed(s: Driver) -> None:
    first = await collect(s, "a", "one")
    leased = await s.lease_one()
    late = await collect(s, "a", "two")
    assert late.outcome == QUEUED
    assert late.run.run_id != first.run.run_id
    await s.worker.ReleaseRun(ws.ReleaseRunRequest(lease_id=leased.lease.lease_id))
    later = await collect(s, "a", "three")
    assert later.run.run_id == late.run.run_id, "also while it waits for its next attempt"
    assert texts(await s.lease_one()) == ["one"]


async def test_what_cannot_share_a_run_gets_one_of_its_own_in_order(s: Driver) -> None:
    await s.send("a", "before")
    before = await s.lease_one()
    await collect(s, "a", "one")
    assert (await collect(s, "a", "urgent", priority=5)).outcome == QUEUED  # another spec
    assert (await s.send("a", "alone")).outcome == QUEUED
    assert (await collect(s, "a", "two")).outcome == QUEUED
    assert (await collect(s, "a", "three")).outcome == COLLECTED
    found = []
    while before is not None:
        await s.complete(before)
        before = next(iter(await s.lease(1)), None)
        found += [texts(before)] if before else []
    assert found == [["one"], ["urgent"], ["alone"], ["two", "three"]]


async def test_a_run_that_nobody_can_join_any_more_does_not_wait(s: Driver) -> None:
    await collect(s, "a", "one", debounce=5)
    assert await s.lease(1) == []
    await s.send("a", "alone")
    assert texts(await s.lease_one(wait=0)) == ["one"]


async def test_a_collected_message_does_not_overtake_a_steered_one(s: Driver) -> None:
    await s.send("a", "before")
    before = await s.lease_one()
    await collect(s, "a", "one")
    await s.send("a", "steered", mode=STEER)
    assert (await collect(s, "a", "two")).outcome == QUEUED
    found = []
    while before is not None:
        await s.complete(before)  # nothing is taken: the steered one becomes a run of its own
        before = next(iter(await s.lease(1)), None)
        found += [texts(before)] if before else []
    assert found == [["one"], ["steered"], ["two"]]


async def test_what_is_said_to_a_harness_is_not_steered_into_the_run_of_an_agent(s: Driver) -> None:
    await s.send("a", "for the agent")
    agent = await s.lease_one()
    later = await s.send("a", "for the harness", mode=STEER, queue="acp")
    assert later.outcome == lane_pb2.ENQUEUE_OUTCOME_STEER_FELL_BACK
    [status] = await s.extend(agent)
    assert not status.steered
    await s.complete(agent)
    [harness] = await s.lease(queue="acp")
    assert texts(harness) == ["for the harness"]


async def test_a_run_holds_at_most_100_messages_and_2_mib(s: Driver) -> None:
    await s.send("a", "before")
    await s.lease_one()
    many = await enqueue(s, *(collecting(s, "a", f"{n}") for n in range(102)))
    assert [a.outcome for a in many].count(QUEUED) == 2
    assert many[99].run.run_id == many[0].run.run_id != many[100].run.run_id
    large = []
    for n in range(3):
        item = collecting(s, "b", "x")
        item.message.CopyFrom(message("x", f"m{n}"))
        for _ in range(3):
            item.message.parts.add(text="y" * 250_000)
        large += await enqueue(s, item)
    assert [a.outcome for a in large] == [QUEUED, COLLECTED, QUEUED]


async def test_joining_is_no_new_run_for_a_full_lane(s: Driver) -> None:
    await s.send("a", "before")
    await s.lease_one()
    item = collecting(s, "a", "one")
    item.queue_policy.cap = 1
    await enqueue(s, item)
    item = collecting(s, "a", "two")
    item.queue_policy.cap = 1
    [joined] = await enqueue(s, item)
    assert joined.outcome == COLLECTED


async def test_collected_messages_survive_a_restart_and_go_on_collecting(tmp_path: Path) -> None:
    config = settings(tmp_path)
    async with driver(config) as s:
        await s.scheduler.UpdateLane(pb.UpdateLaneRequest(name="main", limit=0))
        first = await collect(s, "a", "one", debounce=0.2, request_id="first")
        await collect(s, "a", "two", debounce=0.2, request_id="second")
    async with driver(config) as s:
        third = await collect(s, "a", "three", debounce=0.2, request_id="third")
        assert (third.outcome, third.run.run_id) == (COLLECTED, first.run.run_id)
    async with driver(config) as s:
        await s.scheduler.UpdateLane(pb.UpdateLaneRequest(name="main"))
        assert texts(await s.lease_one()) == ["one", "two", "three"]


# -- interrupt ---------------------------------------------------------------------------------


async def test_an_interrupt_stops_what_executes_and_goes_next(s: Driver) -> None:
    running = await s.send("a", "long")
    leased = await s.lease_one()
    await s.send("a", "waiting")
    now = await s.send("a", "now", mode=INTERRUPT)
    assert now.outcome == lane_pb2.ENQUEUE_OUTCOME_INTERRUPTED
    assert now.estimate.session_lane_ahead == 1
    soon = now.estimate.start_time.ToMicroseconds() - now.estimate.as_of_time.ToMicroseconds()
    assert 0 <= soon < 1_000_000, "what is being stopped takes no turn time any more"
    [status] = await s.extend(leased)
    assert status.cancel_requested
    assert await s.lease(1) == []
    await s.fail(leased, RunCancelled("stopped"))
    stopped = await s.run(running.run.run_id)
    assert stopped.state == run_pb2.RUN_STATE_CANCELLED
    error = from_proto(stopped.error)
    assert (error.reason, error.metadata["cause"]) == ("RUN_CANCELLED", "interrupt")
    leased = await s.lease_one()
    assert texts(leased) == ["now"]
    assert [p.run_id for p in leased.previous_runs] == [running.run.run_id]
    await s.complete(leased)
    assert texts(await s.lease_one()) == ["waiting"]


async def test_an_interrupt_stops_a_run_that_waits_with_the_lane_and_its_children(
    s: Driver,
) -> None:
    root = await s.send("a")
    leased = await s.lease_one()
    await s.wait_for_children(leased, *await s.spawn(leased, "x", "y"))
    now = await s.send("a", "now", mode=INTERRUPT)
    assert now.outcome == lane_pb2.ENQUEUE_OUTCOME_INTERRUPTED
    assert await s.state(root.run.run_id) == "CANCELLED"
    [leased] = await s.lease(9)
    assert texts(leased) == ["now"]


async def test_an_interrupt_leaves_a_run_alone_that_gave_the_lane_back(s: Driver) -> None:
    root = await s.send("a")
    leased = await s.lease_one()
    [child] = await s.spawn(leased, "x")
    await s.wait_for_children(leased, child, hold=False)
    work = await s.lease_one()
    now = await s.send("a", "now", mode=INTERRUPT)
    assert now.outcome == QUEUED
    assert await s.state(root.run.run_id) == "SUSPENDED"
    # Back in line it holds finished work, and still lets the interrupt go first.
    await s.complete(work)
    assert texts(await s.lease_one()) == ["now"]


async def test_a_run_that_may_yield_is_interrupted_all_the_same(s: Driver) -> None:
    root = await s.send("a")
    leased = await s.lease_one()
    [child] = await s.spawn(leased, "x")
    await s.wait_for_children(leased, child, yield_after=0.001)
    await asyncio.sleep(0.01)  # past the moment from which another message makes it yield
    await s.send("a", "now", mode=INTERRUPT)
    assert await s.state(root.run.run_id) == "CANCELLED"


async def test_interrupts_keep_their_order_also_over_a_restart(tmp_path: Path) -> None:
    config = settings(tmp_path)
    async with driver(config) as s:
        await s.send("a", "long")
        leased = await s.lease_one()
        for text in ("waiting", "first", "second"):
            await s.send("a", text, mode=0 if text == "waiting" else INTERRUPT)
    async with driver(config) as s:
        found = []
        await s.fail(leased, RunCancelled("stopped"))
        for _ in range(3):
            leased = await s.lease_one()
            found += texts(leased)
            await s.complete(leased)
        assert found == ["first", "second", "waiting"]


# -- Full lanes --------------------------------------------------------------------------------


def dropping(s: Driver, session: str, text: str, cap: int = 2) -> Any:
    item = s.item(session, text)
    item.queue_policy.cap, item.queue_policy.overflow = cap, lane_pb2.OVERFLOW_RULE_DROP_OLDEST
    return item


async def test_a_full_lane_drops_the_oldest_message_and_says_so(s: Driver) -> None:
    await s.send("a", "before")
    leased = await s.lease_one()
    sent = await enqueue(s, *(dropping(s, "a", text) for text in ("one", "two", "three")))
    dropped = await s.run(sent[0].run.run_id)
    assert dropped.state == run_pb2.RUN_STATE_CANCELLED
    error = from_proto(dropped.error)
    assert (error.reason, dict(error.metadata)) == ("DROPPED_FROM_LANE", {"sessionKey": "a"})
    [note] = [e for e in await s.log("a") if e.WhichOneof("payload") == "note_added"]
    assert note.run_id == dropped.run_id
    assert (note.note_added.code, note.note_added.visible) == ("DROPPED_FROM_LANE", True)
    assert note.note_added.level == event_pb2.NOTE_LEVEL_WARNING
    await s.complete(leased)
    assert texts(await s.lease_one()) == ["two"]


async def test_a_lowered_cap_drops_as_many_as_it_takes(s: Driver) -> None:
    await s.send("a", "before")
    await s.lease_one()
    sent = await enqueue(s, *(dropping(s, "a", f"{n}", cap=5) for n in range(5)))
    await enqueue(s, dropping(s, "a", "new", cap=2))
    states = [await s.state(accepted.run.run_id) for accepted in sent]
    assert states == ["CANCELLED"] * 4 + ["QUEUED"]


async def test_a_lane_full_of_steered_messages_drops_none_of_them(s: Driver) -> None:
    await s.send("a", "before")
    await s.lease_one()
    for n in range(2):
        await s.send("a", f"{n}", mode=STEER)
    error = from_proto(await s.refused(dropping(s, "a", "new")))
    assert error.reason == "LANE_FULL"


async def test_a_run_takes_no_more_steered_messages_than_a_lane_holds(tmp_path: Path) -> None:
    """SteerRun had no cap: who repeats it could fill the scheduler's memory."""
    async with driver(settings(tmp_path, CONVEYOR_LANES__SESSION__CAP="2")) as s:
        run = (await s.send("a", "one")).run
        leased = await s.lease_one()

        async def steer(text: str) -> None:
            request = pb.SteerRunRequest(
                run_id=run.run_id, request_id=f"s-{text}", message=message(text)
            )
            await s.scheduler.SteerRun(request)

        await steer("1")
        await steer("2")
        with pytest.raises(aio.AioRpcError) as refused:
            await steer("3")
        error = from_rpc_error(refused.value)
        assert error.reason == "LANE_FULL"
        assert error.metadata == {"sessionKey": "a", "waiting": "2", "cap": "2"}
        assert error.retry_after
        await steer("2")  # known
        await s.wait_for_children(leased, *await s.spawn(leased, "x"), taken=("s-1", "s-2"))
        await steer("3")


# -- What a session keeps ----------------------------------------------------------------------


async def test_a_session_whose_runs_are_all_stopped_keeps_a_short_list_of_them(s: Driver) -> None:
    """The list of earlier runs grew for as long as every run was cancelled while executing."""
    await s.send("a", "answered")
    await s.complete(await s.lease_one())
    for n in range(25):
        sent = await s.send("a", f"{n}")
        leased = await s.lease_one()
        await s.scheduler.CancelRun(pb.CancelRunRequest(run_id=sent.run.run_id))
        await s.fail(leased, RunCancelled("stopped"))
    await s.send("a", "next")
    previous = (await s.lease_one()).previous_runs
    assert len(previous) == 20
    assert previous[0].state == run_pb2.RUN_STATE_SUCCEEDED, "what was answered is kept"
    assert previous[-1].run_id == sent.run.run_id


async def test_a_flood_over_many_sessions_costs_another_customer_one_dispatch(s: Driver) -> None:
    """1,000 messages over 50 sessions of one customer, then one message of another."""
    items = [s.item(f"f{n % 50}", f"{n}", customer_key="flood") for n in range(1000)]
    for begin in range(0, 1000, 250):
        for item in items[begin : begin + 250]:
            item.queue_policy.cap = 1000
        await enqueue(s, *items[begin : begin + 250])
    executing = await s.lease(4)
    assert len(executing) == 4
    await s.send("other", "one")
    started = []
    for leased in executing[:2]:
        await s.complete(leased)
        started += await s.lease(1)
    assert "other" in [item.run.spec.customer_key for item in started]


async def test_lanes_have_the_weights_of_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "conveyor.toml"
    path.write_text('[customers."http:big"]\nweight = 3\n')
    async with driver(load(path, {"CONVEYOR_STORE__URL": "memory:"})) as s:
        for n in range(12):
            for customer in ("http:big", "http:small"):
                await s.send(f"{customer}-{n}", customer_key=customer)
        for _ in range(2):
            leased = await s.lease(4)
            started = [item.run.spec.customer_key for item in leased]
            assert sorted(started) == ["http:big"] * 3 + ["http:small"]
            for item in leased:
                await s.complete(item)


def test_modes_of_the_contract_and_of_the_rules_have_the_same_numbers() -> None:
    for mode in QueueMode:
        assert lane_pb2.QueueMode.Value(f"QUEUE_MODE_{mode.name}") == mode
    for outcome in Outcome:
        assert lane_pb2.EnqueueOutcome.Value(f"ENQUEUE_OUTCOME_{outcome.name}") == outcome
