"""Leases that a worker keeps while its run waits, and runs that prefer a worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from conveyor.scheduler.v1 import announcement_pb2, lane_pb2, run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as pb
from conveyor.scheduler.v1 import worker_service_pb2 as ws
from svckit.errors import RunCancelled
from svckit.grpc.channel import make_channel
from svckit.grpc.status import from_proto, to_proto
from svckit.testing import eventually
from svckit.worker import Complete, LeasedTurn, Outcome, Worker
from tests.service.scheduler.conftest import Driver, driver, settings
from tests.service.scheduler.test_questions import answer, append, question, refusal, wait_for

SHORT = {"CONVEYOR_RUNS__LEASE_SECONDS": "1"}
BACKOFF = run_pb2.RetryPolicy(initial_backoff=Duration(nanos=50_000_000))


@pytest.fixture
async def s(tmp_path: Path) -> AsyncIterator[Driver]:
    """A scheduler in memory. What stores keep is in `test_a_kept_lease_outlives_a_restart...`."""
    async with driver(settings(tmp_path, "memory")) as found:
        yield found


async def asked(s: Driver, session: str = "a", **spec: Any) -> Any:
    """A run that waits for an answer, under a lease that its worker keeps."""
    await s.send(session, retry_policy=BACKOFF, **spec)
    leased = await s.lease_one()
    await append(s, leased, question(leased))
    run = await wait_for(s, leased, "1.1.0", keep_lease=True)
    assert run.state == run_pb2.RUN_STATE_SUSPENDED
    return leased


async def status(s: Driver, leased: Any) -> ws.LeaseStatus:
    request = ws.ExtendLeasesRequest(worker=s.me, lease_ids=[leased.lease.lease_id])
    [found] = (await s.worker.ExtendLeases(request)).statuses
    assert isinstance(found, ws.LeaseStatus)
    return found


async def run_of(s: Driver, leased: Any) -> run_pb2.Run:
    answer = await s.scheduler.GetRun(pb.GetRunRequest(run_id=leased.run.run_id))
    assert isinstance(answer.run, run_pb2.Run)
    return answer.run


async def fail(s: Driver, leased: Any, *, retryable: bool = False) -> Any:
    error = to_proto(RunCancelled("stopped", metadata={"cause": "request"}))
    request = ws.FailRunRequest(lease_id=leased.lease.lease_id, error=error, retryable=retryable)
    return (await s.worker.FailRun(request)).run


def other(s: Driver) -> Any:
    """Another worker of the queue."""
    twin = Driver(s.channel)
    twin.me = ws.Worker(name="agent-1", incarnation=1)
    return twin


async def test_a_kept_lease_holds_no_slot_and_alone_gets_the_next_turn(s: Driver) -> None:
    await s.scheduler.UpdateLane(pb.UpdateLaneRequest(name="main", limit=1))
    leased = await asked(s)
    waits = await run_of(s, leased)
    assert (waits.suspension.lease_worker, waits.worker) == ("agent-0", "agent-0")
    why = await s.scheduler.ExplainRun(pb.ExplainRunRequest(run_id=leased.run.run_id))
    assert "worker agent-0 keeps its process meanwhile" in why.explanation.reasons[0].text
    # The only slot is free for others, and the lease lasts.
    await s.send("b")
    second = await s.lease_one()
    assert (await status(s, leased)).lease.lease_id == leased.lease.lease_id
    assert await append(s, leased, question(leased, "1.1.1")) > 0
    # It goes on at its worker only, which has no slot of its own for anything else.
    await answer(s, leased)
    await s.complete(second)
    await s.send("c")
    assert [item.run.spec.session_key for item in await other(s).lease(1)] == ["c"]
    assert await s.lease(0) == [], "the slot of the lane is taken"
    await s.scheduler.UpdateLane(pb.UpdateLaneRequest(name="main", limit=2))
    why = await s.scheduler.ExplainRun(pb.ExplainRunRequest(run_id=leased.run.run_id))
    assert why.explanation.reasons[0].no_worker.worker == "agent-0"
    assert await other(s).lease(1) == []
    [resumed] = await s.lease(0)
    assert (resumed.run.run_id, resumed.lease.turn, resumed.lease.attempt) == (
        leased.run.run_id,
        2,
        1,
    )
    assert resumed.resumption.reason == announcement_pb2.RESUME_REASON_ANSWERED
    assert [a.option_id for a in resumed.resumption.answers] == ["yes"]
    assert resumed.lease.fencing_token > leased.lease.fencing_token
    await s.complete(resumed)
    assert await s.state(leased.run.run_id) == "SUCCEEDED"
    assert (await status(s, leased)).lost


async def test_a_question_asked_under_a_kept_lease_is_waited_for_too(s: Driver) -> None:
    leased = await asked(s)
    await append(s, leased, question(leased, "1.1.1"))
    await answer(s, leased, "1.1.1", "no")
    [resumed] = await s.lease(0)
    assert [a.question_id for a in resumed.resumption.answers] == [f"{leased.run.run_id}/1.1.1"]
    # What is still open the next turn waits for again, and keeps its lease again.
    assert (await wait_for(s, resumed, "1.1.0", keep_lease=True)).suspension.lease_worker
    await answer(s, leased, "1.1.0")
    [third] = await s.lease(0)
    assert third.lease.turn == 3
    await s.complete(third)


async def test_a_kept_lease_learns_of_a_cancellation_and_confirms_it(s: Driver) -> None:
    leased = await asked(s)
    await s.send("a", "next")
    await s.scheduler.CancelRun(pb.CancelRunRequest(run_id=leased.run.run_id, reason="enough"))
    assert await s.state(leased.run.run_id) == "CANCELLING"
    assert await s.lease(1) == [], "its process may still be at work in the session"
    found = await status(s, leased)
    assert (found.cancel_requested, found.cancel_reason) == (True, "enough")
    assert (await fail(s, leased)).state == run_pb2.RUN_STATE_CANCELLED
    assert [item.run.inputs[0].message.parts[0].text for item in await s.lease(1)] == ["next"]


async def test_a_suspension_that_keeps_the_lease_does_not_confirm_a_cancellation(
    s: Driver,
) -> None:
    await s.send("a")
    leased = await s.lease_one()
    await append(s, leased, question(leased))
    await s.scheduler.CancelRun(pb.CancelRunRequest(run_id=leased.run.run_id, reason="enough"))
    run = await wait_for(s, leased, "1.1.0", keep_lease=True)
    assert (run.state, run.cancel_reason) == (run_pb2.RUN_STATE_CANCELLING, "enough")
    assert (await status(s, leased)).cancel_requested
    assert (await fail(s, leased)).state == run_pb2.RUN_STATE_CANCELLED


async def test_a_kept_lease_allows_events_failure_and_release_only(s: Driver) -> None:
    leased = await asked(s)
    lease_id = leased.lease.lease_id
    completion = ws.CompleteRunsRequest(completions=[ws.RunCompletion(lease_id=lease_id)])
    [result] = (await s.worker.CompleteRuns(completion)).results
    assert from_proto(result.error).reason == "LEASE_LOST"
    again = wait_for(s, leased, "1.1.0", "1.1.1", keep_lease=True)
    assert (await refusal(again)).reason == "LEASE_LOST"
    repeated = await wait_for(s, leased, "1.1.0", keep_lease=True)
    assert repeated.state == run_pb2.RUN_STATE_SUSPENDED
    assert (await fail(s, leased)).state == run_pb2.RUN_STATE_FAILED
    assert (await refusal(s.worker.ReleaseRun(ws.ReleaseRunRequest(lease_id=lease_id)))).reason


async def test_a_kept_lease_that_is_released_gives_the_turn_to_anybody(s: Driver) -> None:
    leased = await asked(s)
    released = await s.worker.ReleaseRun(ws.ReleaseRunRequest(lease_id=leased.lease.lease_id))
    assert released.run.state == run_pb2.RUN_STATE_QUEUED
    twin = other(s)
    again = await twin.lease_one()
    assert (again.lease.turn, again.lease.attempt) == (1, 1)
    # The question is still open: whoever has the run may wait for it again.
    assert (await wait_for(twin, again, "1.1.0")).state == run_pb2.RUN_STATE_SUSPENDED
    await answer(s, leased)
    await twin.complete(await twin.lease_one())


async def test_a_lost_kept_lease_is_a_lost_lease(tmp_path: Path) -> None:
    async with driver(settings(tmp_path, **SHORT)) as s:
        leased = await asked(s)
        twin = other(s)
        again = await twin.lease_one(wait=10)
        assert (again.run.run_id, again.lease.turn, again.lease.attempt) == (
            leased.run.run_id,
            1,
            2,
        )
        assert (await refusal(append(s, leased, question(leased, "x")))).reason == "LEASE_LOST"
        await twin.complete(again)


async def test_a_new_incarnation_voids_what_the_one_before_kept(s: Driver) -> None:
    waits, answered = await asked(s, "a"), await asked(s, "b")
    await answer(s, answered)
    s.me = ws.Worker(name="agent-0", incarnation=2)
    again = {item.run.run_id: item for item in await s.lease(2, 5)}
    while len(again) < 2:
        again |= {item.run.run_id: item for item in await s.lease(2, 5)}
    one, two = again[waits.run.run_id], again[answered.run.run_id]
    assert (one.lease.turn, one.lease.attempt) == (1, 2), "the turn that waited is tried again"
    assert (two.lease.turn, two.lease.attempt) == (2, 1), "an answer is not lost"
    assert [a.option_id for a in two.resumption.answers] == ["yes"]


async def test_a_next_turn_that_does_not_reach_its_worker_waits_for_it(s: Driver) -> None:
    """An answer got lost: the lease that was kept stands again."""
    leased = await asked(s)
    await answer(s, leased)
    [lost] = await s.lease(0)
    held = ws.HeldLeases(lease_ids=[leased.lease.lease_id])
    # The worker knows only the kept one, and goes on extending it.
    assert (await status(s, leased)).lease.lease_id == leased.lease.lease_id
    assert await append(s, leased, question(leased, "1.1.1")) > 0
    request = ws.LeaseRunsRequest(worker=s.me, queue="agent", max_runs=0, held=held)
    [again] = (await s.worker.LeaseRuns(request)).leased_runs
    assert (again.lease.turn, again.lease.attempt) == (2, 1)
    assert [a.option_id for a in again.resumption.answers] == ["yes"]
    assert (await status(s, lost)).lost
    await s.complete(again)


async def test_a_kept_lease_outlives_a_restart_of_the_scheduler(tmp_path: Path) -> None:
    async with driver(settings(tmp_path)) as s:
        leased = await asked(s)
        await s.send("b", preferred_worker="agent-0")
    async with driver(settings(tmp_path)) as s:
        twin = other(s)
        assert await twin.lease(2) == [], "nobody knows yet whether agent-0 is there"
        assert not (await status(s, leased)).lost
        assert (await run_of(s, leased)).suspension.lease_worker == "agent-0"
        await answer(s, leased)
        assert await twin.lease(2) == []
        resumed, preferring = await s.lease(2)
        assert (resumed.run.run_id, resumed.lease.turn) == (leased.run.run_id, 2)
        assert preferring.run.spec.preferred_worker == "agent-0"


async def test_others_take_a_run_when_the_worker_it_prefers_is_silent(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("scheduler_svc.domain.kernel.PATIENCE", 300_000)
    async with driver(settings(tmp_path)) as s:
        await s.lease(1)  # it is there
        twin = other(s)
        preferring = await s.send("a", preferred_worker="agent-0")
        anybody = await s.send("b")
        assert [item.run.run_id for item in await twin.lease(2)] == [anybody.run.run_id]
        why = await s.scheduler.ExplainRun(pb.ExplainRunRequest(run_id=preferring.run.run_id))
        reason = why.explanation.reasons[0]
        assert (reason.no_worker.worker, reason.no_worker.queue) == ("agent-0", "agent")
        assert "waits for worker agent-0" in reason.text
        taken = await twin.lease_one()  # as soon as it was silent for long enough
        assert taken.run.run_id == preferring.run.run_id


async def test_the_name_of_a_preferred_worker_has_a_length(s: Driver) -> None:
    error = from_proto(await s.refused(s.item("a", "x", preferred_worker="w" * 65)))
    assert (error.reason, error.metadata["field"]) == ("INVALID_FIELD", "spec.preferred_worker")


# The worker of svckit, against this scheduler.


@asynccontextmanager
async def working(s: Driver, handler: Any, **options: Any) -> AsyncIterator[Worker]:
    given = {"queue": "agent", "name": "agent-0", "slots": 1, "incarnation": 1, **options}
    async with make_channel(s.address) as channel:
        worker = Worker(
            channel, handler=handler, extend_interval=0.1, poll_wait=5, drain_grace=0.5, **given
        )
        running = asyncio.create_task(worker.run())
        try:
            yield worker
            if not running.done():
                await worker.drain()
            await running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


class Asks:
    """Asks once, keeps its lease until the answer, and ends with it."""

    def __init__(self, s: Driver) -> None:
        self.s = s
        self.turns: list[tuple[str, int, int]] = []
        self.stopped: list[str] = []
        self.answers: list[str] = []
        self.steered: list[str] = []
        self.waiting = 0

    async def __call__(self, turn: LeasedTurn) -> Outcome:
        session = turn.run.spec.session_key
        self.turns.append((session, turn.turn, turn.attempt))
        if session != "ask":
            return Complete(None)
        await append(self.s, turn.leased, question(turn.leased), prefix=turn.run.run_id)
        condition = run_pb2.WaitCondition(
            approval=run_pb2.ApprovalWait(question_ids=[f"{turn.run.run_id}/1.1.0"])
        )
        request = ws.SuspendRunRequest(condition=condition, hold_session_lane=True)
        self.waiting += 1
        try:
            next_turn = await turn.wait_kept(request)
        except asyncio.CancelledError:
            self.stopped.append(turn.cancel_reason or ("lost" if turn.lost.is_set() else "drain"))
            raise
        assert next_turn is turn
        self.turns.append((session, turn.turn, turn.attempt))
        self.answers += [a.option_id for a in turn.leased.resumption.answers]
        self.steered += [said.request_id for said in turn.new_steered()]
        return Complete(None)


async def waits(s: Driver, run_id: str) -> Any:
    async def suspended() -> bool:
        return bool(await s.state(run_id) == "SUSPENDED")

    await eventually(suspended)
    return lambda: run_pb2.Run(run_id=run_id)


async def ended(s: Driver, run_id: str, state: str) -> None:
    async def so() -> bool:
        return bool(await s.state(run_id) == state)

    await eventually(so)


def named(run_id: str) -> Any:
    leased = ws.LeasedRun()
    leased.run.run_id = run_id
    return leased


async def test_a_handler_goes_on_in_place_while_its_slot_serves_others(s: Driver) -> None:
    handler = Asks(s)
    async with working(s, handler) as worker:
        asking = (await s.send("ask")).run.run_id
        await waits(s, asking)
        for n in range(3):  # the one slot is free meanwhile
            await ended(s, (await s.send(f"b{n}")).run.run_id, "SUCCEEDED")
        assert worker.active == 1
        await answer(s, named(asking))
        await ended(s, asking, "SUCCEEDED")
    assert [turn for turn in handler.turns if turn[0] == "ask"] == [("ask", 1, 1), ("ask", 2, 1)]
    assert handler.answers == ["yes"]


async def test_what_was_said_during_a_wait_comes_with_the_next_turn(s: Driver) -> None:
    """Found with a harness that was steered while it asked: it learned it with an extension."""
    handler = Asks(s)
    async with working(s, handler):
        asking = (await s.send("ask")).run.run_id
        await waits(s, asking)
        await s.send("ask", "and hurry", mode=lane_pb2.QUEUE_MODE_STEER, request_id="hurry")
        await answer(s, named(asking))
        await ended(s, asking, "SUCCEEDED")
    assert handler.steered == ["hurry"]


async def test_a_kept_turn_goes_on_although_no_slot_is_free(s: Driver) -> None:
    handler, gate = Asks(s), asyncio.Event()

    async def handle(turn: LeasedTurn) -> Outcome:
        if turn.run.spec.session_key == "long":
            await gate.wait()
        return await handler(turn)

    async with working(s, handle):
        asking = (await s.send("ask")).run.run_id
        await waits(s, asking)
        long = (await s.send("long")).run.run_id
        await ended(s, long, "RUNNING")
        await answer(s, named(asking))
        await ended(s, asking, "SUCCEEDED")
        assert await s.state(long) == "RUNNING"
        # A poll for kept turns only makes way as soon as the slot is free.
        second = (await s.send("ask")).run.run_id
        gate.set()
        await waits(s, second)
        await answer(s, named(second), request_id="second")
        await ended(s, second, "SUCCEEDED")


async def test_a_cancelled_kept_turn_is_stopped_and_confirmed(s: Driver) -> None:
    handler = Asks(s)
    async with working(s, handler) as worker:
        asking = (await s.send("ask")).run.run_id
        await waits(s, asking)
        await s.scheduler.CancelRun(pb.CancelRunRequest(run_id=asking, reason="enough"))
        await ended(s, asking, "CANCELLED")
        assert handler.stopped == ["enough"]
        await eventually(lambda: not worker.active)


async def test_a_draining_worker_gives_kept_turns_back(s: Driver) -> None:
    handler = Asks(s)
    async with working(s, handler):
        asking = (await s.send("ask", retry_policy=BACKOFF)).run.run_id
        await waits(s, asking)
    assert handler.stopped == ["drain"]
    again = await s.lease_one()
    assert (again.run.run_id, again.lease.turn, again.lease.attempt) == (asking, 1, 1)


async def test_an_interrupt_waits_for_the_kept_process(s: Driver) -> None:
    handler = Asks(s)
    async with working(s, handler):
        asking = (await s.send("ask")).run.run_id
        await waits(s, asking)
        newer = await s.send("ask", "newer", mode=lane_pb2.QUEUE_MODE_INTERRUPT)
        await waits(s, newer.run.run_id)
        assert await s.state(asking) == "CANCELLED"
        assert handler.stopped == ["a newer message interrupted it"]
