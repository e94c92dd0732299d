"""The processes: a scheduler with its real engine and servicers, workers with their real loop."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from opentelemetry import trace

from conveyor.common.v1 import content_pb2
from conveyor.events.v1 import event_log_service_pb2 as log_pb
from conveyor.events.v1 import event_log_service_pb2_grpc as log_grpc
from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import limit_service_pb2 as limit_pb
from conveyor.scheduler.v1 import limit_service_pb2_grpc as limit_grpc
from conveyor.scheduler.v1 import run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as pb
from conveyor.scheduler.v1 import scheduler_service_pb2_grpc as pb_grpc
from conveyor.scheduler.v1 import worker_service_pb2 as ws
from conveyor.scheduler.v1 import worker_service_pb2_grpc as ws_grpc
from scheduler_svc import app
from scheduler_svc.domain.kernel import PATIENCE
from scheduler_svc.domain.records import SECOND, Run
from scheduler_svc.engine import Engine, _Poll
from svckit.errors import LeaseLost, ServiceError, StartError, StoreUnavailable, TurnFailed
from svckit.grpc import client
from svckit.grpc.status import from_proto
from svckit.service import Context
from svckit.settings import Settings
from svckit.turn import Complete, Fail, LeasedTurn, Outcome, Release, Suspend
from svckit.worker import Worker
from tests.simulation.loop import VirtualClock
from tests.simulation.world import Channel, Disk, DiskStore, Process, World

# Tokens of a model call at most: none uses more than it reserved.
ESTIMATE = 20


class WatchedEngine(Engine):
    """The engine, looked at after every commit."""

    world: World

    async def _turn(self, group: Sequence[Any]) -> None:
        await super()._turn(group)
        k = self._kernel
        for run in k.runs.values():
            cap = run.caps.max_tokens
            spent = run.tree_usage.tokens + k.limits.held(run.run_id)[0]
            if cap is not None and spent > cap:
                self.world.wrong(
                    f"invariant 12: run {run.run_id} has {spent} tokens settled and reserved, and "
                    f"a cap of {cap}"
                )
        if self.draining:
            return
        ready = [k.runs[session.ready] for session in k.sessions.values() if session.ready]
        for poll, run in itertools.product(self._polls, ready):
            lane = k.lanes[run.lane]
            if lane.free and run.queue == poll.queue and self._is_for(run, poll):
                self.world.wrong(
                    f"invariant 4: {lane.free} free slots in lane {lane.name!r} and run "
                    f"{run.run_id} is ready, while {poll.worker!r} waits for work"
                )

    def _is_for(self, run: Run, poll: _Poll) -> bool:
        if run.kept is not None:
            return run.kept.worker == poll.worker
        if not poll.max_runs or run.preferred_worker in ("", poll.worker):
            return bool(poll.max_runs)
        k = self._kernel
        called = k.last_calls.get((run.queue, run.preferred_worker), k.start_time)
        # With a margin: the commit took its time after they were handed out.
        return self.now() - called > PATIENCE + 10 * SECOND

    async def _recover(self, group: Sequence[Any], err: Exception) -> None:
        if not isinstance(err, StoreUnavailable):
            self.world.wrong(f"the engine broke: {type(err).__name__}: {err}")
        await super()._recover(group, err)


class _Methods:
    """Stands for a gRPC server: takes the methods of all services."""

    def __init__(self) -> None:
        self.found: dict[str, Callable[..., Any]] = {}

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        pass

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        for name, handler in handlers.items():
            self.found[f"/{service}/{name}"] = handler.unary_unary or handler.unary_stream


class SchedulerMachine:
    """A machine on which a scheduler is started again whenever it has died."""

    def __init__(
        self, world: World, disk: Disk, open_store: Callable[[], Any], settings: Settings
    ) -> None:
        self._world, self._disk = world, disk
        self._open_store, self._settings = open_store, settings
        self.engine: WatchedEngine
        self.process = Process()
        self.lives = 0
        self._stop = asyncio.Event()

    def kill(self) -> None:
        """Ends the process in the middle of whatever it does."""
        self.process.kill()

    def stop(self) -> None:
        """Asks it to end in order."""
        self._stop.set()

    async def run(self) -> None:
        """Lives for ever."""
        world = self._world
        while True:
            jump = world.rng.choice([0, 0, 0, 3600, -3600]) if not world.calm else 0
            self.lives += 1
            await self._life(VirtualClock(jump))
            await world.pause(world.rng.choice([0.1, 1.0, 10.0]))

    async def _life(self, clock: VirtualClock) -> None:
        world = self._world
        loop = asyncio.get_running_loop()
        process = self.process = Process()
        self._stop.clear()
        tasks: list[asyncio.Task[Any]] = []
        down: asyncio.Future[None] = loop.create_future()
        inner = self._open_store()

        def kill() -> None:
            if not process.alive:
                return
            process.alive = False
            world.methods = None
            for task in tasks:
                task.cancel()
            down.set_result(None)
            for name in ("_shut_reads", "_shut"):  # what the end of a process does to its files
                getattr(inner, name, lambda: None)()

        process.kill = kill
        engine = self.engine = WatchedEngine(
            DiskStore(inner, self._disk, process),
            app.config(self._settings),
            clock,
        )
        engine.world = world
        starting = loop.create_task(engine.start())
        await asyncio.wait([starting, down], return_when="FIRST_COMPLETED")
        if down.done():
            starting.cancel()
            return
        if isinstance(err := starting.exception(), StartError):
            world.say(f"scheduler: cannot start: {err}")
            kill()
            return
        starting.result()
        tracer = trace.get_tracer("simulation")
        context = Context("scheduler", self._settings, clock, tracer)
        built = app.make_app(engine, context)
        methods = _Methods()
        for service in built.services:
            service.add(methods)  # type: ignore[arg-type]
        for name, work in built.tasks:
            running: Any = work()
            tasks.append(loop.create_task(running, name=name))
        world.methods, world.down = methods.found, down
        world.say(f"scheduler: up, its clock is {clock.now_us() - world.clock.now_us():+} µs off")
        stopping = loop.create_task(self._stop.wait())
        ends: list[asyncio.Future[Any]] = [down, stopping, *tasks]
        await asyncio.wait(ends, return_when="FIRST_COMPLETED")
        stopping.cancel()
        if not down.done():
            for task in tasks:
                if task.done() and not task.cancelled():
                    world.wrong(f"task {task.get_name()} ended: {task.exception()!r}")
            world.say("scheduler: stops in order")
            ending = loop.create_task(self._end(engine, tasks))
            await asyncio.wait([ending, down], return_when="FIRST_COMPLETED")
            ending.cancel()
            process.alive = False
            if not down.done():
                down.set_result(None)

    async def _end(self, engine: Engine, tasks: list[asyncio.Task[Any]]) -> None:
        engine.drain()
        await asyncio.sleep(0.05)
        self._world.methods = None
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await engine.close()


class WorkerMachine:
    """A machine on which a worker is started again whenever it has died."""

    def __init__(self, world: World, name: str, queue: str, slots: int) -> None:
        self._world, self._name, self._queue, self._slots = world, name, queue, slots
        self._incarnation = 0
        self.channel = Channel(world, name)
        self._task: asyncio.Task[None] | None = None
        self._worker: Worker | None = None
        self._held: list[str] = []

    async def run(self) -> None:
        """Lives for ever."""
        while True:
            self._incarnation += 1
            self.channel = Channel(self._world, f"{self._name}.{self._incarnation}")
            channel: Any = self.channel
            brain = Brain(self._world, channel)
            self._worker = Worker(
                channel,
                queue=self._queue,
                name=self._name,
                slots=self._slots,
                handler=brain.turn,
                incarnation=self._incarnation,
                extend_interval=2.0,
                poll_wait=self._world.rng.choice([2.0, 20.0]),
                clock=self._world.clock,
            )
            self._world.say(f"{self.channel.name}: up")
            self._task = asyncio.create_task(self._worker.run())
            await asyncio.wait([self._task])
            if not self._task.cancelled() and self._task.exception() is not None:
                self._world.wrong(f"{self.channel.name} ended: {self._task.exception()!r}")
            self._held = brain.leases
            await self._world.pause(2.0)

    def kill(self) -> None:
        """Ends it in the middle of whatever it does."""
        self.channel.dead = True
        if self._task is not None:
            self._task.cancel()

    def stop(self) -> None:
        """Asks it to end in order."""
        if self._worker is not None and self._task is not None and not self._task.done():
            self._world.spawn(self._drain(self._worker))

    async def _drain(self, worker: Worker) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await worker.drain()

    async def haunt(self) -> None:
        """What a process that was frozen and died says when its packets arrive at last."""
        channel: Any = Channel(self._world, f"ghost of {self._name}")
        stub = ws_grpc.WorkerServiceStub(channel)
        for lease_id in self._held[-3:]:
            done = ws.RunCompletion(lease_id=lease_id, result=result("ghost"))
            with contextlib.suppress(ServiceError):
                await client.call(stub.CompleteRuns(ws.CompleteRunsRequest(completions=[done])))


def message(text: str, role: content_pb2.Role.ValueType = content_pb2.ROLE_AGENT) -> Any:
    """A message."""
    part = content_pb2.ContentPart(text=text)
    return content_pb2.Message(message_id=f"m-{text}"[:64], role=role, parts=[part])


def result(text: str) -> run_pb2.RunResult:
    """What a turn replies."""
    return run_pb2.RunResult(reply=message(text))


class MustWait(Exception):
    """A model call is reserved for a time that is too far off to hold a slot for."""

    def __init__(self, reservation_id: str) -> None:
        self.reservation_id = reservation_id


class Brain:
    """What an agent does in a turn: anything the contract allows, and in the end an answer."""

    def __init__(self, world: World, channel: Any) -> None:
        self._world = world
        self._runs: Any = pb_grpc.SchedulerServiceStub(channel)
        self._log: Any = log_grpc.EventLogServiceStub(channel)
        self._limits: Any = limit_grpc.LimitServiceStub(channel)
        self.leases: list[str] = []

    async def turn(self, turn: LeasedTurn) -> Outcome:
        """Handles one turn."""
        world, rng = self._world, self._world.rng
        self.leases.append(turn.lease_id)
        run, children = turn.run, 0
        world.say(f"turn {run.run_id[-4:]} {turn.turn}.{turn.attempt}")
        tired = world.calm or turn.turn > 4
        for step in range(0 if world.calm else rng.randint(0, 3)):
            await world.pause(rng.choice([0.1, 1.0, 4.0]))
            try:
                await self._step(turn, step)
            except MustWait as wait:
                suspend = ws.SuspendRunRequest(hold_session_lane=True)
                suspend.condition.limit.reservation_id = wait.reservation_id
                return Suspend(suspend)
            if not tired and run.spawn.depth < 2 and rng.random() < 0.4:
                children += await self._spawn(turn, step)
        if not tired and rng.random() < 0.15:
            await self._wait_kept(turn)
        await world.pause(1.0)
        taken = [given.request_id for given in turn.new_steered() if rng.random() < 0.7]
        if tired:
            return Complete(result(f"{run.run_id}-{turn.turn}"), taken=taken)
        return self._outcome(turn, children, taken)

    async def _wait_kept(self, turn: LeasedTurn) -> None:
        """Something that cannot move waits, and the same handler goes on; a note tells of it."""
        world = self._world
        suspend = ws.SuspendRunRequest(hold_session_lane=True)
        suspend.condition.limit.name = "kept"
        suspend.condition.limit.retry_after.FromMilliseconds(world.rng.choice([0, 500, 9_000]))
        waiting = asyncio.create_task(turn.wait_kept(suspend))
        try:
            await asyncio.wait([waiting], timeout=world.rng.choice([0.2, 30.0]))
            event = event_pb2.Event(event_id=f"{turn.run.run_id}-kept-{turn.turn}")
            event.note_added.code = "kept"
            append = log_pb.AppendEventsRequest(lease_id=turn.lease_id, events=[event])
            await client.call(self._log.AppendEvents(append))
            await waiting
        finally:
            waiting.cancel()
            await asyncio.wait([waiting])
        self.leases.append(turn.lease_id)
        world.say(f"kept {turn.run.run_id[-4:]} {turn.turn}.{turn.attempt}")

    def _outcome(self, turn: LeasedTurn, children: int, taken: list[str]) -> Outcome:
        rng = self._world.rng
        draw = rng.random()
        if draw < 0.08:
            return Fail(TurnFailed("no luck"), retryable=rng.random() < 0.6, taken=taken)
        if draw < 0.12:
            return Release("no reason")
        if draw < 0.18:
            suspend = ws.SuspendRunRequest(hold_session_lane=True, taken_request_ids=taken)
            suspend.condition.limit.name = "x"
            suspend.condition.limit.retry_after.FromMilliseconds(rng.choice([0, 500, 30_000]))
            self._may_yield(turn, suspend)
            return Suspend(suspend)
        if children and draw < 0.7:
            return Suspend(self._wait(turn, taken))
        each = rng.choice([run_pb2.ANNOUNCE_MODE_EACH, run_pb2.ANNOUNCE_MODE_ALL])
        reply = result(f"{turn.run.run_id}-{turn.turn}")
        return Complete(reply, announce_mode=each, taken=taken)

    def _wait(self, turn: LeasedTurn, taken: list[str]) -> ws.SuspendRunRequest:
        rng = self._world.rng
        suspend = ws.SuspendRunRequest(
            hold_session_lane=rng.random() < 0.6, taken_request_ids=taken
        )
        suspend.condition.children.mode = rng.choice(
            [run_pb2.ANNOUNCE_MODE_EACH, run_pb2.ANNOUNCE_MODE_ALL]
        )
        if rng.random() < 0.3:
            suspend.timeout.FromMilliseconds(rng.choice([1000, 20_000]))
        self._may_yield(turn, suspend)
        return suspend

    def _may_yield(self, turn: LeasedTurn, suspend: ws.SuspendRunRequest) -> None:
        route = turn.run.spec.reply_route
        if suspend.hold_session_lane and route.delivers_later and not turn.run.spawn.depth:
            suspend.yield_after.FromMilliseconds(self._world.rng.choice([100, 5_000]))
            suspend.interim_reply.CopyFrom(message("working on it"))

    async def _step(self, turn: LeasedTurn, step: int) -> None:
        """A step: an event, and a model call that was reserved before and is reported after."""
        world, name = self._world, f"{turn.turn}.{step}"
        event = event_pb2.Event(event_id=f"{turn.run.run_id}-{name}")
        event.note_added.code = "step"
        if world.rng.random() < 0.7:
            append = log_pb.AppendEventsRequest(lease_id=turn.lease_id, events=[event])
            await client.call(self._log.AppendEvents(append))
        if world.rng.random() < 0.7:
            await self._call_model(turn, f"{turn.run.run_id}/{name}.{turn.attempt}", step)

    async def _call_model(self, turn: LeasedTurn, name: str, step: int) -> None:
        world, rng = self._world, self._world.rng
        call = limit_pb.ModelCall(provider_id="p", model="m", run_id=turn.run.run_id)
        given = turn.leased.resumption.grant
        if step == 0 and given.reservation_id:
            grant = given
        else:
            asked = limit_pb.ReserveRequest(
                call=call, lease_id=turn.lease_id, request_id=name, estimated_tokens=ESTIMATE
            )
            answer = await client.call(self._limits.Reserve(asked))
            if answer.HasField("refused"):
                raise from_proto(answer.refused.error)
            grant = answer.granted
        delay = grant.delay.ToMicroseconds() / 1e6
        if delay > 1.0 and grant.reservation_id != given.reservation_id:
            raise MustWait(grant.reservation_id)
        await asyncio.sleep(delay)
        await world.pause(0.5)
        report = limit_pb.ReportRequest(
            request_id=name, call=call, reservation_id=grant.reservation_id
        )
        if rng.random() < 0.9:
            report.outcome = limit_pb.CALL_OUTCOME_ANSWERED
            report.usage.model_calls, report.usage.output_tokens = 1, ESTIMATE - step
        else:
            report.outcome = limit_pb.CALL_OUTCOME_THROTTLED
            report.retry_after.FromSeconds(rng.choice([0, 1, 5]))
        answer = await client.call(self._limits.Report(report))
        if answer.HasField("budget_error"):
            raise from_proto(answer.budget_error)

    async def _spawn(self, turn: LeasedTurn, step: int) -> int:
        items = []
        for index in range(self._world.rng.randint(1, 3)):
            call = f"{turn.turn}.{step}.{index}"
            request_id = f"{turn.run.run_id}/{call}"
            item = pb.EnqueueItem(
                spec=run_pb2.RunSpec(queue="agent" if index < 2 else "acp", label=call),
                message=message(call, content_pb2.ROLE_USER),
                request_id=request_id,
                parent_lease_id=turn.lease_id,
                tool_call_id=call,
            )
            items.append(item)
        answer = await client.call(self._runs.EnqueueRuns(pb.EnqueueRunsRequest(items=items)))
        count = 0
        for item, outcome in zip(items, answer.results, strict=True):
            if outcome.HasField("accepted"):
                count += 1
                self._world.accepted[item.request_id] = outcome.accepted.run.run_id
            elif isinstance(err := from_proto(outcome.error), LeaseLost):
                raise err
        return count
