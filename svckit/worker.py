"""The lease loop of a worker: lease, extend, run handlers, end turns, give back on drain.

Three things go on side by side. The *lease loop* asks for as many runs as there are free slots. The
*extend loop* keeps all leases alive with one call and learns of cancellations, steered input and
lost leases. Each *turn* runs its handler in a task of its own and then ends the turn with one call,
which is repeated until it is answered or the lease is over.

A handler may also *keep* its lease while its run waits (`LeasedTurn.wait_kept`). Such a turn takes
no slot, but its lease is extended with the others, and when no slot is free the lease loop asks for
the next turns of such runs only. The same handler then carries on, under the new lease.

A worker never trusts a lease that it could not extend: it stops the handler a margin before the
lease ends, because from then on another worker may hold the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from google.rpc import status_pb2
from grpc import aio
from opentelemetry import context as otel_context
from opentelemetry import trace

from conveyor.scheduler.v1 import run_pb2
from conveyor.scheduler.v1 import worker_service_pb2 as ws
from conveyor.scheduler.v1 import worker_service_pb2_grpc as ws_grpc
from svckit import failpoints, pseudonyms
from svckit.backoff import full_jitter
from svckit.clock import Clock, SystemClock
from svckit.conventions import TRACER
from svckit.errors import (
    Internal,
    LeaseLost,
    NotLeader,
    RunCancelled,
    ServiceError,
    ShuttingDown,
    StoreUnavailable,
    TurnFailed,
    Unreachable,
    WorkerReplaced,
)
from svckit.failpoints import failpoint
from svckit.grpc import client, deadline
from svckit.grpc.status import from_proto, from_rpc_error, to_proto
from svckit.heldturn import HeldTurn, call, place_of, reason_of
from svckit.logging import bind, get_logger
from svckit.metrics import NOBODY, Metrics, definitions
from svckit.turn import Complete, Fail, Handler, LeasedTurn, Outcome, Release, Suspend
from svckit.turnends import TurnEnds
from svckit.turnspan import TurnSpans

if TYPE_CHECKING:
    from conveyor.scheduler.v1.worker_service_pb2_grpc import WorkerServiceAsyncStub

__all__ = [
    "Complete",
    "Fail",
    "Handler",
    "LeasedTurn",
    "Outcome",
    "Release",
    "Suspend",
    "Worker",
]

MAX_POLL_RUNS = 64
EXTEND_AGAIN_SECONDS = 0.5
EXTENSIONS = 3
"""How often a lease is extended at least before it would end."""
LEAST_EXTEND_SECONDS = 0.05
"""However little time a lease that came late has left: it is lost sooner than asking helps."""
STOP_SECONDS = 2.0
"""How long a handler may clean up after it was cancelled before its turn is ended over its head."""

_log = get_logger("svckit.worker")

_AGAIN = (Unreachable, ShuttingDown, StoreUnavailable, NotLeader)


class Worker:
    """Serves one queue. `run` until `drain`; both are meant for `svckit.service.App`.

    `slots`: turns at a time. `name`: stable over restarts, unique in the queue. `incarnation`:
    greater at every start; left out, the time of this start. `stop_seconds`: how long a handler may
    clean up after it was cancelled; its lease is extended meanwhile. Times are in seconds. Leases
    that are too short for `extend_interval` are extended more often.
    """

    def __init__(
        self,
        channel: aio.Channel,
        *,
        queue: str,
        name: str,
        slots: int,
        handler: Handler,
        incarnation: int | None = None,
        extend_interval: float = 2.0,
        poll_wait: float = 20.0,
        drain_grace: float = 5.0,
        stop_seconds: float = STOP_SECONDS,
        clock: Clock | None = None,
        tracer: trace.Tracer | None = None,
        metrics: Metrics = NOBODY,
    ) -> None:
        self._stub: WorkerServiceAsyncStub = ws_grpc.WorkerServiceStub(channel)
        self._queue = queue
        self._slots = slots
        self._handler = handler
        started = incarnation or (clock or SystemClock()).now_us() // 1000
        self._worker = ws.Worker(name=name, incarnation=started)
        self._extend_interval = self._until_extended = extend_interval
        self._shorter = asyncio.Event()
        self._poll_wait = poll_wait
        self._drain_grace = drain_grace
        self._stop_seconds = stop_seconds
        self._spans = TurnSpans(tracer or trace.get_tracer(TRACER), queue, name)
        self._ends = TurnEnds(
            lambda request: client.call(self._stub.CompleteRuns(request), service="scheduler")
        )
        self._turns: dict[str, HeldTurn] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._freed = asyncio.Event()
        self._draining = asyncio.Event()
        self._polling: asyncio.Future[ws.LeaseRunsResponse] | None = None
        self._polling_for = 0
        self._connected = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._ended = metrics.counter(definitions.TURNS_ENDED)
        self._stopped = metrics.counter(definitions.TURNS_STOPPED)
        for outcome in ("complete", "suspend", "fail", "release"):
            self._ended.start(queue, outcome)
        metrics.read(definitions.WORKER_SLOTS, lambda: {(queue,): slots})
        metrics.read(definitions.WORKER_TURNS, lambda: {(queue,): self.active})
        metrics.read(definitions.WORKER_CONNECTED, lambda: {(queue,): float(self.connected)})

    @property
    def active(self) -> int:
        """Turns held now, kept ones included."""
        return len(self._turns)

    @property
    def _free(self) -> int:
        """Slots that no turn takes. Below 0 after a turn went on whose lease was kept."""
        return self._slots - sum(not turn.kept for turn in self._turns.values())

    @property
    def connected(self) -> bool:
        """Whether the scheduler answered the last poll: what readiness of a worker means."""
        return self._connected.is_set()

    async def wait_connected(self) -> None:
        """Wait until the scheduler has been reached once."""
        await self._connected.wait()

    # Loops

    async def run(self) -> None:
        """Work until `drain` is done. Raises `WorkerReplaced` when another process took the name.

        Cancelling it stops all handlers at once and gives nothing back.
        """
        loops = [
            deadline.spawn(self._lease_loop(), name=f"lease {self._queue}"),
            deadline.spawn(self._extend_loop(), name=f"extend {self._queue}"),
        ]
        drained = asyncio.create_task(self._drained())
        try:
            await asyncio.wait({*loops, drained}, return_when=asyncio.FIRST_COMPLETED)
            for loop in loops:
                if loop.done() and not loop.cancelled():
                    loop.result()
        finally:
            for task in (*loops, drained):
                task.cancel()
            for turn in list(self._turns.values()):
                self._lose(turn, "worker stopped")
            await asyncio.gather(*loops, drained, *self._tasks, return_exceptions=True)

    async def drain(self) -> None:
        """Stop leasing, let turns end for the grace, then cancel the rest and release it."""
        self._draining.set()
        if self._polling is not None:
            self._polling.cancel()
        self._freed.set()
        for turn in self._turns.values():
            turn.public.draining.set()
            if turn.kept:  # nothing will come for it any more
                self._give_back(turn)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._drain_grace):
                await self._idle.wait()
        for turn in list(self._turns.values()):
            self._give_back(turn)
        await self._idle.wait()

    def _give_back(self, turn: HeldTurn) -> None:
        turn.releasing = True
        turn.stop_handler()

    async def _drained(self) -> None:
        await self._draining.wait()
        await self._idle.wait()

    async def _lease_loop(self) -> None:
        pauses = full_jitter(0.1, 2.0)
        greeted = False
        while not self._draining.is_set():
            self._freed.clear()
            wanted = max(0, min(self._free, MAX_POLL_RUNS))
            if not wanted and not any(turn.kept for turn in self._turns.values()):
                await self._freed.wait()
                continue
            request = ws.LeaseRunsRequest(worker=self._worker, queue=self._queue, max_runs=wanted)
            request.wait.FromMilliseconds(round(self._poll_wait * 1000))
            # An answer that got lost on its way here held leases that nobody works on.
            request.held.SetInParent()
            request.held.lease_ids.extend(self._turns)
            try:
                response = await self._poll(request)
                if response is None:
                    continue
            except WorkerReplaced as err:
                if greeted or not self._outbid(err):
                    raise
                continue
            except ServiceError as err:
                self._connected.clear()
                if not isinstance(err, (*_AGAIN, Internal)):
                    raise
                _log.debug("poll failed", queue=self._queue, reason=err.reason)
                await self._pause(next(pauses))
                continue
            pauses = full_jitter(0.1, 2.0)
            greeted = True
            self._connected.set()
            for leased in response.leased_runs:
                self._take(leased)
        await self._idle.wait()

    def _outbid(self, err: WorkerReplaced) -> bool:
        """Take an incarnation above that of the process before: the clock was set back since."""
        newest = err.metadata.get("incarnation", "")
        if not newest.isdecimal():
            return False
        _log.warning("the clock is behind that of the worker before", incarnation=newest)
        self._worker.incarnation = int(newest) + 1
        return True

    async def _poll(self, request: ws.LeaseRunsRequest) -> ws.LeaseRunsResponse | None:
        """Ask for runs; None when it was called off: the worker drains, or got a slot free."""
        call = self._stub.LeaseRuns(request)
        self._polling = asyncio.ensure_future(client.call(call, service="scheduler"))
        self._polling_for = request.max_runs
        try:
            return await self._polling
        except asyncio.CancelledError:
            here = asyncio.current_task()
            if not (here and here.cancelling()):
                return None  # it was the poll that was cancelled, not this loop
            raise
        finally:
            self._polling = None

    def _slot_is_free(self) -> None:
        """A poll that asks for nothing new makes way for one that does."""
        self._freed.set()
        if self._polling is not None and not self._polling_for and self._free > 0:
            self._polling.cancel()

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._draining.wait()

    async def _extend_loop(self) -> None:
        extended = True
        while True:
            # Another scheduler may lead a moment later, and leases do not wait.
            interval = self._until_extended = self._extend_pause()
            self._shorter.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(
                    interval if extended else min(interval, EXTEND_AGAIN_SECONDS)
                ):
                    await self._shorter.wait()
                    continue
            extended = await self._extend() if self._turns else True

    def _extend_pause(self) -> float:
        """Seconds between extensions, as the leases that are held now need it."""
        needed = min((turn.ttl for turn in self._turns.values()), default=math.inf) / EXTENSIONS
        return min(self._extend_interval, max(needed, LEAST_EXTEND_SECONDS))

    async def _extend(self) -> bool:
        """Extend all leases; False when nobody answered."""
        asked = dict(self._turns)
        sent = asyncio.get_running_loop().time()
        request = ws.ExtendLeasesRequest(worker=self._worker, lease_ids=asked)
        # A call that hangs must leave time for another before the leases end.
        timeout = max(self._extend_pause(), 1.0)
        try:
            answer = await client.call(
                self._stub.ExtendLeases(request, timeout=timeout), service="scheduler"
            )
        except WorkerReplaced:
            raise
        except ServiceError as err:
            _log.warning("leases not extended", leases=len(asked), reason=err.reason)
            return False
        for (lease_id, turn), status in zip(asked.items(), answer.statuses, strict=False):
            if self._turns.get(lease_id) is not turn:
                continue  # over, or under another lease by now
            if status.lost:
                # An answer that crossed the end of the turn: that spent the lease, nobody took it.
                if not turn.ending:
                    self._lose(turn, "lease lost")
                continue
            self._extended(turn, status.lease, sent)
            turn.public.offer(status.steered)
            if status.cancel_requested and not turn.public.cancelled.is_set():
                self._cancel(turn, status.cancel_reason)
        return True

    # One turn

    def _take(self, leased: ws.LeasedRun) -> None:
        for turn in self._turns.values():
            if turn.goes_on_with(leased):
                self._go_on(turn, leased)
                return
            if turn.kept and turn.public.run.run_id == leased.run.run_id:
                self._lose(turn, "the run goes on without what was kept")
                break
        self._start(leased)

    def _go_on(self, turn: HeldTurn, leased: ws.LeasedRun) -> None:
        """The run of a kept turn goes on in the same handler."""
        del self._turns[turn.lease_id]
        turn.public.begin(leased)
        self._turns[turn.lease_id] = turn
        self._extended(turn, leased.lease, asyncio.get_running_loop().time())
        turn.span = self._spans.begin(turn.public)
        going_on, turn.next_turn = turn.next_turn, None
        if going_on is not None and not going_on.done():
            going_on.set_result(None)

    async def _keep(self, turn: HeldTurn, request: ws.SuspendRunRequest) -> None:
        """End the turn with a wait that keeps its lease, and wait for the next one."""
        if turn.kept:
            raise RuntimeError("one wait at a time")
        suspend = ws.SuspendRunRequest()
        suspend.CopyFrom(request)
        suspend.lease_id, suspend.keep_lease = turn.lease_id, True
        answers: list[ws.SuspendRunResponse] = []

        async def send() -> None:
            answers[:] = [await client.call(self._stub.SuspendRun(suspend), service="scheduler")]

        span = turn.span
        # Before the call, since the next turn may come before its answer.
        going_on = turn.next_turn = asyncio.get_running_loop().create_future()
        try:
            await self._until_answered(turn, send)
        except BaseException as err:
            if isinstance(err, LeaseLost):
                self._lose(turn, "lease lost")
            if isinstance(err, ServiceError):
                turn.next_turn = None  # refused: the turn goes on as before
            raise
        if not answers:
            raise LeaseLost("the lease ended before the wait began")
        if answers[0].run.state == run_pb2.RUN_STATE_CANCELLING:
            self._cancel(turn, answers[0].run.cancel_reason)
        span.ended_with("suspend")
        span.end()
        self._slot_is_free()
        if self._draining.is_set():
            self._give_back(turn)
        await going_on
        otel_context.attach(trace.set_span_in_context(turn.span.below))

    def _cancel(self, turn: HeldTurn, reason: str) -> None:
        turn.public.cancel_reason = reason
        turn.public.cancelled.set()
        turn.stop_handler()

    def _start(self, leased: ws.LeasedRun) -> None:
        turn = HeldTurn(leased, self._keep, self._stop_seconds)
        self._turns[turn.lease_id] = turn
        self._idle.clear()
        if self._draining.is_set():
            turn.public.draining.set()
        self._extended(turn, leased.lease, asyncio.get_running_loop().time())
        # A context of its own: nothing of the poll, and nothing of any other turn.
        task = deadline.spawn(self._carry(turn), name=f"turn {turn.public.run.run_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _extended(self, turn: HeldTurn, lease: ws.Lease, since: float) -> None:
        """Count the time left from before the call, and stop a margin before it is over."""
        ttl = turn.ttl = lease.ttl.ToMicroseconds() / 1_000_000
        if self._extend_pause() < self._until_extended:
            self._shorter.set()
        turn.expires_at = since + ttl - min(1.0, ttl / 5)
        if turn.watchdog is not None:
            turn.watchdog.cancel()
        turn.watchdog = asyncio.get_running_loop().call_at(
            turn.expires_at, self._lose, turn, "lease not extended"
        )

    def _lose(self, turn: HeldTurn, why: str) -> None:
        if not turn.public.lost.is_set():
            self._stopped.add(self._queue, why)
            _log.warning("turn stopped", run_id=turn.public.run.run_id, problem=why)
        turn.public.lost.set()
        turn.span.drop()
        turn.stop_handler()

    async def _carry(self, turn: HeldTurn) -> None:
        """Run the handler and end the turn, whatever happens."""
        public = turn.public
        run = public.run
        turn.span = self._spans.begin(public)
        try:
            with (
                bind(
                    run_id=run.run_id,
                    turn=public.turn,
                    conversation=pseudonyms.of(run.spec.session_key),
                ),
                failpoints.at(place_of(run, public.turn)),
            ):
                with turn.span.current():
                    failpoint("worker.turn.leased")
                    outcome = await self._handle(turn)
                self._ended.add(self._queue, type(outcome).__name__.lower())
                reason = "" if public.cancelled.is_set() else reason_of(outcome)
                turn.span.ended_with(type(outcome).__name__.lower(), reason)
                # That of a later turn, when the lease was kept meanwhile.
                with turn.span.current():
                    if not public.lost.is_set():
                        await self._end(turn, outcome)
        finally:
            turn.span.end()
            if turn.watchdog is not None:
                turn.watchdog.cancel()
            self._turns.pop(turn.lease_id, None)
            self._slot_is_free()
            if not self._turns:
                self._idle.set()

    async def _handle(self, turn: HeldTurn) -> Outcome:
        public = turn.public
        turn.handler = asyncio.create_task(call(self._handler, public))
        if turn.stopping.is_set():
            turn.handler.cancel()
        try:
            if not await turn.handler_ended():
                _log.error("handler does not stop", seconds=self._stop_seconds)
                return self._after_cancellation(turn)
            if turn.handler.cancelled():
                return self._after_cancellation(turn)
            return turn.handler.result()
        except LeaseLost:
            self._lose(turn, "lease lost")
            return Release("lost")
        except ServiceError as err:
            _log.warning("turn failed", reason=err.reason)
            return Fail(err, retryable=isinstance(err, _AGAIN) or err.retry_after is not None)
        except aio.AioRpcError as err:
            mapped = from_rpc_error(err)
            _log.warning("turn failed", reason=mapped.reason)
            return Fail(mapped, retryable=True)
        except Exception as err:
            _log.error("handler failed", exc_info=err)
            return Fail(
                TurnFailed("the turn failed unexpectedly", metadata={"cause": "task"}),
                retryable=True,
            )
        finally:
            if not turn.handler.done():
                turn.handler.cancel()

    def _after_cancellation(self, turn: HeldTurn) -> Outcome:
        public = turn.public
        if public.cancelled.is_set():
            message = public.cancel_reason or "the run was cancelled"
            return Fail(RunCancelled(message, metadata={"cause": "request"}), retryable=False)
        if turn.releasing or public.lost.is_set():
            return Release("draining")
        # The handler cancelled itself, which is a bug of the handler.
        return Fail(
            TurnFailed("the turn stopped by itself", metadata={"cause": "task"}), retryable=True
        )

    async def _end(self, turn: HeldTurn, outcome: Outcome) -> None:
        """Tell the scheduler how the turn ended, until it answers or the lease is over."""
        turn.ending = True
        try:
            await self._until_answered(turn, self._ending(turn, outcome))
        except LeaseLost:
            self._lose(turn, "lease lost")
        except ServiceError as err:
            _log.error("end of turn refused", outcome=type(outcome).__name__, reason=err.reason)
            if not isinstance(outcome, Fail):
                # The run must not hang until the lease ends because of, say, a reply too long.
                refused = TurnFailed(
                    f"the end of the turn was refused: {err.message}", metadata={"cause": "task"}
                )
                await self._end(turn, Fail(refused, retryable=False))

    def _ending(self, turn: HeldTurn, outcome: Outcome) -> Callable[[], Awaitable[Any]]:
        """Build the call that ends the turn. Its body stays the same however often it is sent."""
        lease_id = turn.lease_id
        if isinstance(outcome, Complete):
            completion = ws.RunCompletion(
                lease_id=lease_id,
                result=outcome.result,
                announce_mode=outcome.announce_mode,
                taken_request_ids=outcome.taken,
                steered_is_next_prompt=outcome.steered_is_next_prompt,
            )
            return lambda: self._complete(completion)
        if isinstance(outcome, Suspend):
            suspend = ws.SuspendRunRequest()
            suspend.CopyFrom(outcome.request)
            suspend.lease_id = lease_id
            return lambda: client.call(self._stub.SuspendRun(suspend), service="scheduler")
        if isinstance(outcome, Fail):
            error = outcome.error
            fail = ws.FailRunRequest(
                lease_id=lease_id,
                error=error if isinstance(error, status_pb2.Status) else to_proto(error),
                retryable=outcome.retryable,
                taken_request_ids=outcome.taken,
            )
            return lambda: client.call(self._stub.FailRun(fail), service="scheduler")
        release = ws.ReleaseRunRequest(lease_id=lease_id)
        return lambda: client.call(self._stub.ReleaseRun(release), service="scheduler")

    async def _complete(self, completion: ws.RunCompletion) -> None:
        result = await self._ends.send(completion)
        if result.WhichOneof("result") == "error":
            raise from_proto(result.error, service="scheduler")

    async def _until_answered(self, turn: HeldTurn, send: Callable[[], Awaitable[Any]]) -> None:
        pauses = full_jitter(0.1, 1.0)
        while not turn.public.lost.is_set():
            try:
                failpoint("worker.end.unsent")
                await send()
                failpoint("worker.end.sent")
                return
            except (*_AGAIN, Internal) as err:
                _log.warning("end of turn not answered", reason=err.reason)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(next(pauses)):
                    await turn.public.lost.wait()
