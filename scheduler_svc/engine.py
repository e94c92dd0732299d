"""Decide in memory, commit in groups, then answer.

Who does what: callers hand commands (pure functions on the kernel) to `submit` and wait. One task,
`run`, owns the kernel. It takes all commands that have come in, reads from the store what they
need to know, applies them in order, gives ready runs to waiting polls, commits everything that
changed in one transaction, and only then answers, wakes the polls and tells the watchers. While
one commit is under way the next commands gather: that is the group.

If a commit fails, nothing of its group is answered but with `StoreUnavailable`; memory is rebuilt
from the store, which is tried again until it takes writes, and meanwhile every command is refused.
If it fails because another scheduler leads, `run` raises `NotLeader`: see `leadership`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence, Set
from typing import Any, Generic, TypeVar

import msgspec

from conveyor.events.v1 import event_pb2
from scheduler_svc import eventlog
from scheduler_svc.counts import Counts
from scheduler_svc.domain import attempts, leasing, recovery, sweeping
from scheduler_svc.domain.kernel import Changes, Config, Kernel
from scheduler_svc.domain.lanes import Session
from scheduler_svc.domain.leasing import Leased
from scheduler_svc.domain.recovery import Snapshot
from scheduler_svc.hub import Hub
from scheduler_svc.rpc import convert
from scheduler_svc.spans import Spans
from scheduler_svc.store.base import Batch, EventQuery, LaneStore, StoredRun
from svckit import failpoints
from svckit.backoff import full_jitter
from svckit.clock import Clock
from svckit.errors import (
    Internal,
    NotLeader,
    ServiceError,
    ShuttingDown,
    StartError,
    StoreUnavailable,
)
from svckit.metrics import NOBODY

T = TypeVar("T")
log = logging.getLogger(__name__)

# Payloads of runs about to be leased, so that a lease seldom reads the store.
PAYLOAD_CACHE_BYTES = 32 * 1024 * 1024
# Commands of one commit at most, so that one group cannot hold the next one up for long.
GROUP_LIMIT = 2000


class _Command(Generic[T]):
    __slots__ = ("apply", "event_ids", "future", "questions", "requests", "runs", "sessions")

    def __init__(
        self,
        apply: Callable[[Kernel, int], T],
        future: asyncio.Future[T],
        requests: Sequence[str],
        runs: Sequence[str],
        sessions: Sequence[str],
        event_ids: Sequence[tuple[str, str]],
        questions: Sequence[str] = (),
    ) -> None:
        self.apply = apply
        self.future = future
        self.requests = requests
        self.runs = runs
        self.sessions = sessions
        self.event_ids = event_ids
        self.questions = questions


class _Poll:
    __slots__ = ("assigned", "future", "incarnation", "max_runs", "queue", "worker")

    def __init__(self, queue: str, worker: str, incarnation: int, max_runs: int) -> None:
        self.queue = queue
        self.worker = worker
        self.incarnation = incarnation
        self.max_runs = max_runs
        self.future: asyncio.Future[list[Leased]] = asyncio.get_running_loop().create_future()
        # Runs were leased to it and their commit is under way.
        self.assigned = False


class Engine:
    """The active scheduler. `start` before, `run` as long as the service lives, `close` after."""

    def __init__(
        self,
        store: LaneStore,
        config: Config,
        clock: Clock,
        on_serving: Callable[[bool], None] = lambda serving: None,
        *,
        counts: Counts | None = None,
        spans: Spans | None = None,
    ) -> None:
        self.store = store
        self.spans = spans or Spans()
        self.hub = Hub()
        self.draining = False
        # False on a standby: nothing is answered, watches end.
        self.leading = True
        self._config = config
        self._clock = clock
        # How far the store is ahead of the clock: it was set back since, or is another machine's.
        self._ahead = 0
        # When this process last gave up what it had in memory: until then it kept leases alive.
        self._up_until = 0
        self._on_serving = on_serving
        self._counts = counts or Counts(NOBODY)
        self._kernel = Kernel(config)
        self._pending: list[_Command[Any]] = []
        self._polls: list[_Poll] = []
        # Polls whose leases are being committed.
        self._handed: list[tuple[_Poll, list[Leased]]] = []
        self._wake = asyncio.Event()
        self._available = False
        self._closed = False
        self._payloads: OrderedDict[str, bytes] = OrderedDict()
        self._payload_bytes = 0
        self._background: set[asyncio.Task[None]] = set()

    # -- Life -------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Opens the store and rebuilds memory from it. Raises `StartError`."""
        await self.store.acquire()
        try:
            await self._rebuild()
        except StoreUnavailable as err:
            raise StartError(f"the scheduler's store cannot be read: {err.message}") from err

    async def lead(self) -> None:
        """Takes over from another scheduler: as `start`, with a store that is open."""
        await self._rebuild()
        self.leading = True

    def stand_by(self) -> None:
        """Forgets everything, since another scheduler may decide now. `run` must have ended."""
        self.leading = self._available = False
        self._refuse((), NotLeader("this scheduler does not lead any more"))
        self._kernel = Kernel(self._config)
        self._payloads.clear()
        self._payload_bytes = 0
        self.hub.forget()

    def drain(self) -> None:
        """Ends waiting polls and watches; commands still work."""
        self.draining = True
        for poll in self._polls:
            poll.future.set_result([])
        self._polls.clear()
        self.hub.wake_all()

    async def close(self) -> None:
        """Closes the store, after what is under way. `run` must have ended."""
        self._closed = True
        self._refuse((), ShuttingDown("the scheduler stops"))
        await asyncio.gather(*self._background, return_exceptions=True)
        await self.store.close()

    def now(self) -> int:
        """The scheduler's clock, microseconds: never behind what the store has seen."""
        return self._clock.now_us() + self._ahead

    # -- For looking only, on the event loop ------------------------------------------------------

    @property
    def kernel(self) -> Kernel:
        """What stands in memory: that of a standby is empty."""
        return self._kernel

    @property
    def serving(self) -> bool:
        """Whether commands are taken: this scheduler leads, and its store takes writes."""
        return self.leading and self._available

    @property
    def commands_waiting(self) -> int:
        """Commands that wait for the commit after the present one."""
        return len(self._pending)

    # -- Callers ----------------------------------------------------------------------------------

    async def submit(
        self,
        apply: Callable[[Kernel, int], T],
        *,
        requests: Sequence[str] = (),
        runs: Sequence[str] = (),
        sessions: Sequence[str] = (),
        event_ids: Sequence[tuple[str, str]] = (),
        questions: Sequence[str] = (),
    ) -> T:
        """Applies a command, and answers once what it changed, or has seen, is stored.

        The other arguments name what the command needs to know from the store: request ids, ended
        runs, sessions, event ids and closed questions. What `apply` returns must not be a live
        record. Raises what `apply` raises, `StoreUnavailable`, and `ShuttingDown` once the engine
        is closed.
        """
        if self._closed:
            raise ShuttingDown("the scheduler stops")
        if not self._available:
            raise StoreUnavailable("the store takes no writes now; nothing was changed")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._pending.append(
            _Command(apply, future, requests, runs, sessions, event_ids, questions)
        )
        self._wake.set()
        return await future

    async def lease(
        self,
        queue: str,
        worker: str,
        incarnation: int,
        max_runs: int,
        wait: float,
        held: Set[tuple[str, int]] | None = None,
    ) -> list[Leased]:
        """Leases ready runs: at once, or as soon as one is ready, or none after `wait` seconds.

        `held` are the leases (run id, fencing token) that the worker has; others that were given to
        it got lost on their way and go back first. `None` compares nothing.
        """
        poll = _Poll(queue, worker, incarnation, max_runs)

        def apply(kernel: Kernel, now: int) -> None:
            leasing.greet(kernel, queue, worker, incarnation, now)
            if held is not None:
                leasing.give_back_all_but(kernel, queue, worker, held, now)
            if self.draining:
                poll.future.set_result([])
            else:
                self._polls.append(poll)

        try:
            await self.submit(apply)
            await asyncio.wait([poll.future], timeout=wait)
            if not poll.assigned and not poll.future.done():
                self._forget(poll)
                return []
            return await asyncio.shield(poll.future)
        except asyncio.CancelledError:
            if poll.assigned:
                self._in_background(self._give_back(poll))
            else:
                self._forget(poll)
            raise

    def asking(self, queue: str) -> set[str]:
        """The workers of a queue that wait for a run."""
        return {poll.worker for poll in self._polls if poll.queue == queue and poll.max_runs}

    def _forget(self, poll: _Poll) -> None:
        if poll in self._polls:
            self._polls.remove(poll)

    async def payload(self, run_id: str) -> bytes | None:
        """What a run was asked for, from the cache or the store."""
        payload = self._payloads.get(run_id)
        if payload is None:
            stored = await self.store.get_runs([run_id])
            payload = stored[run_id].payload if run_id in stored else None
        return payload

    async def give_back(self, leased: Sequence[Leased]) -> None:
        """Gives back runs that do not reach their worker: at once instead of after a lease time."""
        for item in leased:
            run_id, token = item.run.run_id, item.lease.token

            def apply(kernel: Kernel, now: int, run_id: str = run_id, token: int = token) -> None:
                run = leasing.leased_run(kernel, run_id, token)
                run.last_token = 0  # nobody made a span of it
                cause = "the run did not reach the worker"
                attempts.give_back(kernel, run, cause, now, keeps=True)

            try:
                await self.submit(apply)
            except ServiceError:
                log.debug("run was not given back", extra={"run_id": run_id})

    async def _give_back(self, poll: _Poll) -> None:
        with contextlib.suppress(ServiceError):  # nothing was leased after all
            await self.give_back(await poll.future)

    def _in_background(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # -- The one task -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Applies commands and looks at what is due, until cancelled. Raises `NotLeader`."""
        while True:
            await self._something_to_do()
            group, self._pending = self._pending[:GROUP_LIMIT], self._pending[GROUP_LIMIT:]
            try:
                await self._turn(group)
            except asyncio.CancelledError:
                self._refuse(group, ShuttingDown("the scheduler stops"))
                raise
            except Exception as err:  # whatever happened, memory is not to be trusted any more
                await self._recover(group, err)

    async def _something_to_do(self) -> None:
        if self._pending:
            return
        self._wake.clear()
        due = self._kernel.next_time()
        delay = None if due is None else max(0.0, (due - self.now()) / 1e6)
        if delay == 0.0:
            return
        # Not `asyncio.timeout`: that cancels this task each time, which costs more than the turn.
        loop = asyncio.get_running_loop()
        timer = None if delay is None else loop.call_later(delay, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            if timer is not None:
                timer.cancel()

    async def _turn(self, group: Sequence[_Command[Any]]) -> None:
        await self._read_what_they_need(group)
        kernel, now = self._kernel, self.now()
        sweeping.sweep(kernel, now)
        answers: list[tuple[_Command[Any], Any, ServiceError | None]] = []
        for command in group:
            if command.future.cancelled():
                continue
            try:
                answers.append((command, command.apply(kernel, now), None))
            except ServiceError as err:
                answers.append((command, None, err))
        handed = self._handed = self._hand_out(now)
        changes = kernel.take_changes()
        rows = []
        if changes:
            batch = await self._batch(changes, now)
            rows = batch.events
            if failpoints.ARMED:
                _pass_points("before", batch)
            began = time.perf_counter()
            await self.store.commit(batch)
            took = time.perf_counter() - began
            if failpoints.ARMED:
                _pass_points("after", batch)
            self._remember(changes.payloads)
            self.spans.committed(changes, now, self.now())
            self._counts.committed(
                changes, (item for _, leased in handed for item in leased), len(group), took
            )
        # Leases first: who works waits for less than who asked.
        for poll, leased in handed:
            if not poll.future.done():
                poll.future.set_result(leased)
        self._handed = []
        for command, value, error in answers:
            if command.future.done():
                continue
            if error is None:
                command.future.set_result(value)
            else:
                command.future.set_exception(error)
        self.hub.publish(rows)

    def _hand_out(self, now: int) -> list[tuple[_Poll, list[Leased]]]:
        """Gives ready runs to waiting polls, those that wait longest first."""
        handed = []
        for poll in list(self._polls):
            leased = leasing.lease_ready(
                self._kernel, poll.queue, poll.worker, poll.incarnation, poll.max_runs, now
            )
            if leased:
                poll.assigned = True
                self._polls.remove(poll)
                handed.append((poll, leased))
        return handed

    async def _read_what_they_need(self, group: Sequence[_Command[Any]]) -> None:
        kernel = self._kernel
        requests = [r for c in group for r in c.requests]
        runs = [r for c in group for r in c.runs if r not in kernel.runs]
        sessions = [s for c in group for s in c.sessions if s not in kernel.sessions]
        event_ids = [e for c in group for e in c.event_ids]
        questions = [q for c in group for q in c.questions if kernel.questions.get(q) is None]
        if not (requests or runs or sessions or event_ids or questions):
            return
        known = await self.store.lookup(requests, runs, sessions, event_ids, questions)
        kernel.take_in(
            known.requests,
            known.runs.values(),
            (
                Session(key, head=head, previous=list(previous))
                for key, (head, previous) in known.sessions.items()
            ),
            known.event_ids,
            known.questions,
        )

    async def _batch(self, changes: Changes, now: int) -> Batch:
        await self._join_inputs(changes)
        children = await self._announced(changes)
        return Batch(
            time=now,
            runs=list(changes.runs.values()),
            payloads=changes.payloads,
            results=changes.results,
            events=[eventlog.event_row(emit, children, changes.runs) for emit in changes.emits],
            sessions=[(s.key, s.head, s.previous) for s in changes.sessions.values()],
            requests=changes.requests,
            limits=changes.lanes,
            steers=changes.steers,
            facts={
                key: None if fact is None else msgspec.json.encode(fact)
                for key, fact in changes.facts.items()
            },
            questions=list(changes.questions.values()),
            question_data=changes.question_data,
            token=changes.token,
        )

    async def _join_inputs(self, changes: Changes) -> None:
        # A payload is written again as a whole: joins are few, and end with the first lease.
        before = {
            run_id: changes.payloads.get(run_id) or self._payloads.get(run_id)
            for run_id in changes.inputs
        }
        missing = [run_id for run_id, payload in before.items() if payload is None]
        stored = await self.store.get_runs(missing) if missing else {}
        for run_id, inputs in changes.inputs.items():
            payload = before[run_id] or stored[run_id].payload
            changes.payloads[run_id] = convert.with_inputs(payload, inputs)

    async def _announced(self, changes: Changes) -> dict[str, StoredRun]:
        # The children whose end is told, with everything; what is not at hand is in the store.
        children = {
            child: StoredRun(
                changes.runs[child],
                changes.payloads.get(child) or self._payloads.get(child, b""),
                changes.results.get(child),
            )
            for emit in changes.emits
            if (child := eventlog.announced(emit))
        }
        missing = [
            child
            for child, known in children.items()
            if not known.payload or (known.run.has_result and known.result is None)
        ]
        stored = await self.store.get_runs(missing) if missing else {}
        for child, found in stored.items():
            known = children[child]
            known.payload = found.payload
            known.result = found.result if known.result is None else known.result
        return children

    def _remember(self, payloads: dict[str, bytes]) -> None:
        for run_id, payload in payloads.items():
            self._payload_bytes += len(payload) - len(self._payloads.pop(run_id, b""))
            self._payloads[run_id] = payload
        while self._payload_bytes > PAYLOAD_CACHE_BYTES:
            _, dropped = self._payloads.popitem(last=False)
            self._payload_bytes -= len(dropped)

    # -- Trouble ----------------------------------------------------------------------------------

    async def _recover(self, group: Sequence[_Command[Any]], err: Exception) -> None:
        error: ServiceError
        self._counts.failed()
        if isinstance(err, StoreUnavailable):
            error = err
            # What follows the first line may be a row.
            reason = str(err.__cause__ or err.message).partition("\n")[0]
            log.warning("the store takes no writes; waiting for it", extra={"error": reason})
        elif isinstance(err, NotLeader):
            self.leading = False  # before anybody hears of it: no answer may leave from now on
            self.spans.forget()
            self._refuse(group, err)
            raise err
        else:
            error = Internal("internal error")
            log.error("a command broke the rules; memory is rebuilt", exc_info=err)
        self._available = False
        self.spans.forget()
        self._up_until = self.now()
        self._on_serving(False)
        self._refuse(group, error)
        for pause in full_jitter(0.1, 2.0):
            try:
                await self._rebuild()
            except StoreUnavailable:
                await asyncio.sleep(pause)
            else:
                break
        log.warning("the store takes writes again")
        self._on_serving(True)

    def _refuse(self, group: Sequence[_Command[Any]], error: ServiceError) -> None:
        """Answers the group, and all that wait for the next one, with an error."""
        polls = [*self._polls, *(poll for poll, _ in self._handed)]
        for command in (*group, *self._pending):
            if not command.future.done():
                command.future.set_exception(error)
        for poll in polls:
            if not poll.future.done():
                poll.future.set_exception(error)
                poll.future.exception()  # heard: its caller may have had the same from `submit`
        self._pending, self._polls, self._handed = [], [], []

    async def _rebuild(self) -> None:
        snapshot = await self.store.load()
        # A token of its own, so that a store that cannot be written is noticed here.
        snapshot.last_token += 1
        snapshot.last_time = await self._last_time(snapshot)
        self._ahead = max(self._ahead, snapshot.last_time - self._clock.now_us())
        now = self.now()
        await self.store.commit(Batch(time=now, token=snapshot.last_token))
        # Whether a commit that failed was stored all the same is known only now.
        self._payloads.clear()
        self._payload_bytes = 0
        # In a thread: with a hundred thousand runs it takes seconds, in which the lease of a leader
        # has to be renewed.
        kernel = await asyncio.to_thread(recovery.rebuild, self._config, snapshot, now)
        self.hub.start_over(snapshot.last_position)
        self._kernel = kernel
        self._available = True
        self._wake.set()

    async def _last_time(self, snapshot: Snapshot) -> int:
        """The newest time that is known, as a rule from the store: never go behind it.

        Else a pause that began before the clock was set back would last as long as it was set back.
        """
        last = self._up_until
        for run in snapshot.runs:
            last = max(last, run.state_time, run.lease.lease_time if run.lease else 0)
        query = EventQuery(after_position=snapshot.last_position - 1)
        for row in await self.store.events(query, 1):
            event = event_pb2.Event.FromString(row.data)
            last = max(last, event.create_time.ToMicroseconds())
        return last


def _pass_points(moment: str, batch: Batch) -> None:
    failpoints.failpoint(f"scheduler.commit.{moment}")
    if any(row.kind == "child_announced" for row in batch.events):
        failpoints.failpoint(f"scheduler.announcement.{moment}")
