"""The worker against a scripted scheduler: what it does with leases, cancellations and the end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from conveyor.scheduler.v1 import run_pb2
from conveyor.scheduler.v1 import worker_service_pb2 as ws
from svckit.errors import (
    LeaseLost,
    ModelUnavailable,
    StoreUnavailable,
    WorkerReplaced,
    invalid_field,
)
from svckit.grpc import deadline
from svckit.grpc.status import from_proto, to_proto
from svckit.testing import ScriptedServicer, eventually, scripted_server
from svckit.worker import Complete, Fail, Handler, LeasedTurn, Outcome, Release, Suspend, Worker

REPLY = run_pb2.RunResult()
REPLY.reply.message_id = "m"


@dataclass
class FakeScheduler:
    """Hands out what `offer` was given and keeps the leases alive until told otherwise."""

    ttl: float = 10.0
    ready: asyncio.Queue[ws.LeasedRun] = field(default_factory=asyncio.Queue)
    lost: set[str] = field(default_factory=set)
    cancelling: dict[str, str] = field(default_factory=dict)
    steered: list[run_pb2.RunInput] = field(default_factory=list)
    mute: bool = False

    def __post_init__(self) -> None:
        self.script = ScriptedServicer("conveyor.scheduler.v1.WorkerService")
        self.script.always("LeaseRuns", self._lease)
        self.script.always("ExtendLeases", self._extend)
        self.script.always("CompleteRuns", self._complete)
        self.script.always("SuspendRun", ws.SuspendRunResponse())
        self.script.always("FailRun", ws.FailRunResponse())
        self.script.always("ReleaseRun", ws.ReleaseRunResponse())

    def offer(self, *names: str, steered: Sequence[run_pb2.RunInput] = ()) -> None:
        for name in names:
            leased = ws.LeasedRun(run=run_pb2.Run(run_id=name), steered=steered)
            leased.lease.CopyFrom(self._fresh(f"lease-{name}"))
            self.ready.put_nowait(leased)

    def _fresh(self, lease_id: str) -> ws.Lease:
        lease = ws.Lease(lease_id=lease_id, turn=1, attempt=1)
        lease.ttl.FromMilliseconds(round(self.ttl * 1000))
        return lease

    async def _lease(self, request: ws.LeaseRunsRequest) -> ws.LeaseRunsResponse:
        runs = []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(request.wait.ToMicroseconds() / 1_000_000):
                runs.append(await self.ready.get())
        while len(runs) < request.max_runs and not self.ready.empty():
            runs.append(self.ready.get_nowait())
        return ws.LeaseRunsResponse(leased_runs=runs)

    async def _extend(self, request: ws.ExtendLeasesRequest) -> Any:
        if self.mute:
            return StoreUnavailable("no store")
        statuses = []
        for lease_id in request.lease_ids:
            status = ws.LeaseStatus(lost=lease_id in self.lost, steered=self.steered)
            if not status.lost:
                status.lease.CopyFrom(self._fresh(lease_id))
            if lease_id in self.cancelling:
                status.cancel_requested = True
                status.cancel_reason = self.cancelling[lease_id]
            statuses.append(status)
        return ws.ExtendLeasesResponse(statuses=statuses)

    def _complete(self, request: ws.CompleteRunsRequest) -> ws.CompleteRunsResponse:
        results = [ws.CompletionResult(run=run_pb2.Run()) for _ in request.completions]
        return ws.CompleteRunsResponse(results=results)

    def calls(self, method: str) -> list[Any]:
        return self.script.calls[method]

    def failure(self) -> tuple[str, bool]:
        request = self.calls("FailRun")[-1]
        return from_proto(request.error).reason, request.retryable


class Recorder:
    """A handler that notes its turns and does what `then` says."""

    def __init__(self, then: Outcome | BaseException | None = None) -> None:
        self.then = then
        self.turns: list[LeasedTurn] = []
        self.stopped: list[str] = []
        self.go = asyncio.Event()

    async def __call__(self, turn: LeasedTurn) -> Outcome:
        self.turns.append(turn)
        try:
            if self.then is None:
                await self.go.wait()
                return Complete(REPLY)
        except asyncio.CancelledError:
            self.stopped.append(turn.run.run_id)
            raise
        if isinstance(self.then, BaseException):
            raise self.then
        return self.then


@contextlib.asynccontextmanager
async def working(
    scheduler: FakeScheduler, handler: Handler, **options: Any
) -> AsyncIterator[Worker]:
    given: dict[str, Any] = {
        "queue": "agent",
        "name": "w",
        "slots": 2,
        "extend_interval": 0.05,
        "poll_wait": 5.0,
        "drain_grace": 0.5,
        **options,
    }
    async with scripted_server(scheduler.script) as (_, channel):
        worker = Worker(channel, handler=handler, **given)
        running = asyncio.create_task(worker.run())
        try:
            yield worker
            if not running.done():
                await worker.drain()
            await running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def test_a_turn_is_leased_run_and_completed() -> None:
    scheduler, handler = FakeScheduler(), Recorder(Complete(REPLY, taken=["r1"]))
    scheduler.offer("a")
    async with working(scheduler, handler, incarnation=7) as worker:
        await eventually(lambda: scheduler.calls("CompleteRuns"))
        assert worker.connected
    poll = scheduler.calls("LeaseRuns")[0]
    assert (poll.worker.name, poll.worker.incarnation, poll.queue, poll.max_runs) == (
        "w",
        7,
        "agent",
        2,
    )
    completion = scheduler.calls("CompleteRuns")[0].completions[0]
    assert completion.lease_id == "lease-a"
    assert completion.result == REPLY
    assert completion.taken_request_ids == ["r1"]


async def test_no_more_turns_than_slots() -> None:
    scheduler, handler = FakeScheduler(), Recorder()
    async with working(scheduler, handler):
        scheduler.offer("a")
        await eventually(lambda: len(handler.turns) == 1)
        scheduler.offer("b", "c")
        await eventually(lambda: len(handler.turns) == 2)
        assert [c.max_runs for c in scheduler.calls("LeaseRuns")] == [2, 1]
        handler.go.set()
        await eventually(lambda: len(scheduler.calls("CompleteRuns")) == 3)


@pytest.mark.parametrize(
    ("outcome", "method"),
    [
        (Suspend(ws.SuspendRunRequest(hold_session_lane=True)), "SuspendRun"),
        (Fail(ModelUnavailable("down"), retryable=True), "FailRun"),
        (Fail(to_proto(ModelUnavailable("down")), retryable=True), "FailRun"),
        (Release(), "ReleaseRun"),
    ],
)
async def test_outcomes(outcome: Outcome, method: str) -> None:
    scheduler = FakeScheduler()
    scheduler.offer("a")
    async with working(scheduler, Recorder(outcome)):
        await eventually(lambda: scheduler.calls(method))
    request = scheduler.calls(method)[0]
    assert request.lease_id == "lease-a"
    if method == "FailRun":
        assert scheduler.failure() == ("MODEL_UNAVAILABLE", True)
    if method == "SuspendRun":
        assert request.hold_session_lane


@pytest.mark.parametrize(
    ("error", "reason", "retryable"),
    [
        (ValueError("secret"), "TURN_FAILED", True),
        (ModelUnavailable("down"), "MODEL_UNAVAILABLE", True),
        (invalid_field("a", "b"), "INVALID_FIELD", False),
    ],
)
async def test_what_a_handler_raises_fails_the_turn(
    error: Exception, reason: str, retryable: bool
) -> None:
    scheduler = FakeScheduler()
    scheduler.offer("a")
    async with working(scheduler, Recorder(error)):
        await eventually(lambda: scheduler.calls("FailRun"))
    assert scheduler.failure() == (reason, retryable)
    assert "secret" not in str(scheduler.calls("FailRun")[0])


async def test_a_cancelled_run_stops_and_confirms() -> None:
    scheduler, handler = FakeScheduler(), Recorder()
    scheduler.offer("a")
    async with working(scheduler, handler):
        await eventually(lambda: handler.turns)
        scheduler.cancelling["lease-a"] = "not needed"
        await eventually(lambda: scheduler.calls("FailRun"))
        assert handler.turns[0].cancel_reason == "not needed"
    assert handler.stopped == ["a"]
    assert scheduler.failure() == ("RUN_CANCELLED", False)


async def test_a_lost_lease_stops_the_handler_and_nothing_is_written() -> None:
    scheduler, handler = FakeScheduler(), Recorder()
    scheduler.offer("a")
    async with working(scheduler, handler) as worker:
        await eventually(lambda: handler.turns)
        scheduler.lost.add("lease-a")
        await eventually(lambda: worker.active == 0)
        assert handler.turns[0].lost.is_set()
    assert handler.stopped == ["a"]
    for method in ("CompleteRuns", "FailRun", "ReleaseRun", "SuspendRun"):
        assert not scheduler.calls(method)


async def test_a_lease_that_cannot_be_extended_is_given_up_before_it_ends() -> None:
    scheduler, handler = FakeScheduler(ttl=0.5, mute=True), Recorder()
    scheduler.offer("a")
    loop = asyncio.get_running_loop()
    async with working(scheduler, handler) as worker:
        await eventually(lambda: handler.turns)
        began = loop.time()
        await eventually(lambda: worker.active == 0, interval=0.005)
        assert loop.time() - began < 0.5
    assert handler.stopped == ["a"]
    assert not scheduler.calls("FailRun")


async def test_leases_shorter_than_the_pause_between_extensions_are_kept_alive() -> None:
    """With `[runs] lease_seconds = 1` every turn of more than 0.8 s used to lose its lease."""
    scheduler, handler = FakeScheduler(ttl=0.4), Recorder()
    async with working(scheduler, handler, extend_interval=60.0):
        scheduler.offer("a")
        await eventually(lambda: len(scheduler.calls("ExtendLeases")) >= 6)
        handler.go.set()
        await eventually(lambda: scheduler.calls("CompleteRuns"))
    assert handler.stopped == []


async def test_one_lease_that_came_late_does_not_make_all_extensions_hurry_for_ever() -> None:
    """A commit that took as long as the lease left no time, and then no pause, ever again."""
    scheduler, handler = FakeScheduler(ttl=1.5), Recorder()
    times: list[float] = []
    extend = scheduler._extend

    async def timed(request: ws.ExtendLeasesRequest) -> Any:
        times.append(asyncio.get_running_loop().time())
        scheduler.ttl = 60.0
        return await extend(request)

    scheduler.script.always("ExtendLeases", timed)
    async with working(scheduler, handler, extend_interval=1.0):
        scheduler.offer("a")
        await eventually(lambda: len(times) >= 2)
        handler.go.set()
    assert times[1] - times[0] > 0.75


async def test_an_extension_that_crosses_the_end_of_a_turn_does_not_stop_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The scheduler had ended the turn; its answer to an extension came before that to the end."""
    scheduler = FakeScheduler()
    answer = asyncio.Event()

    async def complete(request: ws.CompleteRunsRequest) -> Any:
        scheduler.lost.add("lease-a")
        await answer.wait()
        return ws.CompleteRunsResponse(results=[ws.CompletionResult(run=run_pb2.Run())])

    scheduler.script.always("CompleteRuns", complete)
    async with working(scheduler, Recorder(Complete(REPLY))):
        scheduler.offer("a")
        await eventually(lambda: bool(scheduler.lost))
        extended = len(scheduler.calls("ExtendLeases"))
        await eventually(lambda: len(scheduler.calls("ExtendLeases")) > extended + 1)
        answer.set()
    assert "turn stopped" not in caplog.text
    assert len(scheduler.calls("CompleteRuns")) == 1


async def test_lease_lost_raised_by_the_handler_is_the_same() -> None:
    scheduler, handler = FakeScheduler(), Recorder(LeaseLost("gone"))
    scheduler.offer("a")
    async with working(scheduler, handler) as worker:
        await eventually(lambda: handler.turns)
        await eventually(lambda: worker.active == 0)
    assert not scheduler.calls("FailRun")


async def test_the_end_of_a_turn_is_repeated_with_the_same_body_until_answered() -> None:
    scheduler = FakeScheduler()
    # More than the channel repeats by itself.
    scheduler.script.queue("CompleteRuns", *[StoreUnavailable("full")] * 6)
    scheduler.offer("a")
    async with working(scheduler, Recorder(Complete(REPLY))) as worker:
        await eventually(lambda: len(scheduler.calls("CompleteRuns")) == 7, timeout=30)
        await eventually(lambda: worker.active == 0)
    bodies = {c.SerializeToString(deterministic=True) for c in scheduler.calls("CompleteRuns")}
    assert len(bodies) == 1


async def test_a_result_that_is_refused_fails_the_run() -> None:
    scheduler = FakeScheduler()
    refused = ws.CompletionResult(error=to_proto(invalid_field("result", "is too long")))
    scheduler.script.queue("CompleteRuns", ws.CompleteRunsResponse(results=[refused]))
    scheduler.offer("a")
    async with working(scheduler, Recorder(Complete(REPLY))):
        await eventually(lambda: scheduler.calls("FailRun"))
    assert scheduler.failure() == ("TURN_FAILED", False)


async def test_steered_input_is_given_once() -> None:
    scheduler, handler = FakeScheduler(), Recorder()
    first, second = run_pb2.RunInput(request_id="1"), run_pb2.RunInput(request_id="2")
    scheduler.offer("a", steered=[first])
    async with working(scheduler, handler):
        await eventually(lambda: handler.turns)
        turn = handler.turns[0]
        assert [i.request_id for i in turn.new_steered()] == ["1"]
        waiting = asyncio.create_task(turn.wait_steered())
        extended = len(scheduler.calls("ExtendLeases"))
        scheduler.steered = [first]
        await eventually(lambda: len(scheduler.calls("ExtendLeases")) > extended + 2)
        assert not waiting.done(), "a repeated input is not new"
        scheduler.steered = [first, second]
        assert [i.request_id for i in await waiting] == ["2"]
        assert turn.new_steered() == []
        handler.go.set()


async def test_drain_lets_turns_end() -> None:
    scheduler, handler = FakeScheduler(), Recorder()
    scheduler.offer("a")
    async with working(scheduler, handler, drain_grace=60) as worker:
        await eventually(lambda: handler.turns)
        draining = asyncio.create_task(worker.drain())
        await asyncio.wait_for(handler.turns[0].draining.wait(), 30)
        handler.go.set()
        await asyncio.wait_for(draining, 30)
    assert len(scheduler.calls("CompleteRuns")) == 1
    assert not scheduler.calls("ReleaseRun")


async def test_drain_gives_back_what_does_not_end_in_time() -> None:
    scheduler, handler = FakeScheduler(), Recorder()
    scheduler.offer("a", "b")
    async with working(scheduler, handler, drain_grace=0.05):
        await eventually(lambda: len(handler.turns) == 2)
    assert sorted(handler.stopped) == ["a", "b"]
    assert {c.lease_id for c in scheduler.calls("ReleaseRun")} == {"lease-a", "lease-b"}


async def test_a_handler_that_ignores_its_end_does_not_hold_the_drain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("svckit.worker.STOP_SECONDS", 0.1)
    scheduler = FakeScheduler()
    scheduler.offer("a")
    over = asyncio.Event()
    started = asyncio.Event()

    async def stubborn(_: LeasedTurn) -> Outcome:
        started.set()
        while not over.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await over.wait()
        return Release()

    async with working(scheduler, stubborn, drain_grace=0.01):
        await started.wait()
    over.set()
    assert len(scheduler.calls("ReleaseRun")) == 1


async def test_a_replaced_worker_stops_with_an_error() -> None:
    scheduler, handler = FakeScheduler(), Recorder()
    scheduler.offer("a")

    async def work_until_replaced() -> None:
        async with working(scheduler, handler):
            await eventually(lambda: handler.turns)
            scheduler.script.queue("ExtendLeases", WorkerReplaced("newer"))
            await eventually(lambda: handler.stopped)

    with pytest.raises(WorkerReplaced):
        await work_until_replaced()
    assert not scheduler.calls("FailRun")


async def test_a_worker_that_starts_with_a_clock_set_back_takes_its_name_over() -> None:
    """Else nobody would work until the clock is where it was."""
    scheduler, handler = FakeScheduler(), Recorder(Complete(REPLY))
    before = WorkerReplaced("newer", metadata={"incarnation": str(10**15)})
    scheduler.script.queue("LeaseRuns", before)
    scheduler.offer("a")
    async with working(scheduler, handler):
        await eventually(lambda: scheduler.calls("CompleteRuns"))
    incarnations = [call.worker.incarnation for call in scheduler.calls("LeaseRuns")]
    assert incarnations[0] < 10**15
    assert set(incarnations[1:]) == {10**15 + 1}


async def test_a_worker_that_was_greeted_takes_nothing_over() -> None:
    scheduler, handler = FakeScheduler(), Recorder()
    scheduler.offer("a")

    async def work_until_replaced() -> None:
        async with working(scheduler, handler, slots=3) as worker:
            await eventually(lambda: worker.connected)
            newer = WorkerReplaced("newer", metadata={"incarnation": str(10**15)})
            await eventually(lambda: len(scheduler.calls("LeaseRuns")) == 2)
            scheduler.script.queue("LeaseRuns", newer)
            scheduler.offer("b")  # answers the poll at hand; the next one is refused
            await eventually(lambda: handler.stopped)

    with pytest.raises(WorkerReplaced):
        await work_until_replaced()


async def test_polling_goes_on_when_the_scheduler_was_away() -> None:
    scheduler, handler = FakeScheduler(), Recorder(Complete(REPLY))
    scheduler.script.queue("LeaseRuns", *[StoreUnavailable("x")] * 3)
    scheduler.offer("a")
    async with working(scheduler, handler):
        await eventually(lambda: scheduler.calls("CompleteRuns"))
    # One each: a poll is never repeated by the channel.
    assert len(scheduler.calls("LeaseRuns")) >= 4


async def test_turns_inherit_nothing_from_who_started_the_worker() -> None:
    scheduler = FakeScheduler()
    left: list[float | None] = []

    async def handler(_: LeasedTurn) -> Outcome:
        left.append(deadline.remaining())
        return Release()

    scheduler.offer("a")
    with deadline.scope(0.01):
        async with working(scheduler, handler):
            await eventually(lambda: scheduler.calls("ReleaseRun"))
    assert left == [None]
