"""Who asks, who watches, and what goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from grpc import aio

from conveyor.common.v1 import content_pb2
from conveyor.events.v1 import event_log_service_pb2 as log_pb
from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import flow_service_pb2 as flow_pb
from conveyor.scheduler.v1 import flow_service_pb2_grpc as flow_grpc
from conveyor.scheduler.v1 import lane_pb2, run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as pb
from conveyor.scheduler.v1 import scheduler_service_pb2_grpc as pb_grpc
from svckit.errors import RequestIdReused, ServiceError, ShuttingDown, StoreUnavailable, Unreachable
from svckit.grpc import client
from svckit.grpc.status import from_proto
from tests.simulation.machines import SchedulerMachine, WorkerMachine, message
from tests.simulation.world import Call, Channel, Disk, World

SESSIONS = ["a", "b", "c", "d", "e"]
# Then people are served even in the wildest schedule.
FAULTS_SECONDS = 60.0
AGAIN = (Unreachable, StoreUnavailable, ShuttingDown)
MODES = [
    lane_pb2.QUEUE_MODE_FOLLOWUP,
    lane_pb2.QUEUE_MODE_FOLLOWUP,
    lane_pb2.QUEUE_MODE_STEER,
    lane_pb2.QUEUE_MODE_COLLECT,
    lane_pb2.QUEUE_MODE_INTERRUPT,
]


class Gateway:
    """Sends messages, stops and steers runs, changes limits; repeats what is not answered."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        channel: Any = Channel(world, name)
        self._runs: Any = pb_grpc.SchedulerServiceStub(channel)
        self._flows: Any = flow_grpc.FlowServiceStub(channel)
        self._count = 0

    async def run(self, acts: int) -> None:
        """So many acts."""
        rng = self.world.rng
        for _ in range(acts):
            await self.world.pause(rng.choice([0.01, 0.5, 3.0]))
            act = rng.choices(
                [self.send, self.burst, self.send_again, self.cancel, self.steer, self.limit],
                [8, 1, 2, 2, 2, 1],
            )[0]
            await act()

    async def _until_answered(self, method: Any, request: Any) -> Any:
        """The answer, or the refusal."""
        while True:
            try:
                return await client.call(method(request))
            except AGAIN:
                await self.world.pause(0.5)
            except ServiceError as err:
                return err

    async def send(self) -> None:
        """A new message."""
        rng = self.world.rng
        self._count += 1
        session = rng.choice(SESSIONS)
        spec = run_pb2.RunSpec(
            session_key=session,
            customer_key=rng.choice([session, "shared"]),
            queue="agent",
            reply_route=run_pb2.ReplyRoute(address="x", delivers_later=rng.random() < 0.7),
            priority=rng.choice([0, 0, 60]),
        )
        if rng.random() < 0.2:
            spec.preferred_worker = rng.choice(["agent-0", "agent-1", "gone"])
        if rng.random() < 0.1:
            spec.queue_timeout.FromSeconds(10)
        if rng.random() < 0.1:
            spec.run_timeout.FromSeconds(5)
        if rng.random() < 0.1:
            spec.wall_timeout.FromSeconds(20)
        if rng.random() < 0.3:
            spec.budget.max_tokens = rng.choice([10, 45, 200])
        if rng.random() < 0.1:
            spec.budget.max_wall_time.FromSeconds(15)
        policy = lane_pb2.QueuePolicy(mode=rng.choice(MODES), cap=6)
        if policy.mode == lane_pb2.QUEUE_MODE_COLLECT:
            policy.debounce.FromMilliseconds(rng.choice([0, 200, 3000]))
        if rng.random() < 0.3:
            policy.overflow = lane_pb2.OVERFLOW_RULE_DROP_OLDEST
        item = pb.EnqueueItem(
            spec=spec,
            message=message(f"{self.name}-{self._count}", content_pb2.ROLE_USER),
            request_id=f"{self.name}-{self._count}",
            queue_policy=policy,
        )
        await self._enqueue(item)

    async def burst(self) -> None:
        """Several at once."""
        for _ in range(self.world.rng.randint(2, 6)):
            await self.send()

    async def _enqueue(self, item: pb.EnqueueItem, *, other: bool = False) -> None:
        world = self.world
        world.bodies.setdefault(item.request_id, item)
        while True:
            answer = await self._until_answered(
                self._runs.EnqueueRuns, pb.EnqueueRunsRequest(items=[item])
            )
            if isinstance(answer, ServiceError):
                world.wrong(f"enqueue refused as a whole: {answer.reason} {answer.message}")
                return
            [outcome] = answer.results
            error = from_proto(outcome.error) if outcome.HasField("error") else None
            if not isinstance(error, AGAIN):
                break
            await world.pause(0.5)
        if error is not None:
            world.say(f"{item.request_id} in {item.spec.session_key}: {error.reason}")
            if error.reason in ("INTERNAL", "LEASE_LOST", "RUN_NOT_FOUND", "INVALID_FIELD"):
                world.wrong(f"{item.request_id}: {error.reason} {error.message}")
            if not other and isinstance(error, RequestIdReused):
                world.wrong(f"{item.request_id}: the same body was refused")
            return
        run_id = outcome.accepted.run.run_id
        world.say(
            f"{item.request_id} in {item.spec.session_key}: {run_id[-4:]} "
            f"{lane_pb2.EnqueueOutcome.Name(outcome.accepted.outcome)[16:].lower()}"
        )
        if other:
            world.wrong(f"{item.request_id}: another body was accepted")
        world.accepted[item.request_id] = run_id

    async def send_again(self) -> None:
        """A message that was sent before, with its body or with another one."""
        world = self.world
        if not world.bodies:
            return
        request_id = world.rng.choice(sorted(world.bodies))
        item = pb.EnqueueItem()
        item.CopyFrom(world.bodies[request_id])
        other = request_id in world.accepted and world.rng.random() < 0.3
        if other:
            item.message.parts[0].text += " and more"
        await self._enqueue(item, other=other)

    def _some_run(self) -> str:
        return self.world.rng.choice([self.world.accepted[r] for r in sorted(self.world.accepted)])

    async def cancel(self) -> None:
        """Stops a run, or a whole flow."""
        if not self.world.accepted:
            return
        run_id = self._some_run()
        if self.world.rng.random() < 0.5:
            request: Any = pb.CancelRunRequest(run_id=run_id, reason="enough")
            answer = await self._until_answered(self._runs.CancelRun, request)
        else:
            request = flow_pb.CancelFlowRequest(flow_id=run_id)
            answer = await self._until_answered(self._flows.CancelFlow, request)
        what = answer.reason if isinstance(answer, ServiceError) else "asked to stop"
        self.world.say(f"{self.name}: {run_id[-4:]} {what}")

    async def steer(self) -> None:
        """Says something to a run."""
        if not self.world.accepted:
            return
        self._count += 1
        request_id = f"{self.name}-steer-{self._count}"
        request = pb.SteerRunRequest(
            run_id=self._some_run(),
            request_id=request_id,
            message=message(request_id, content_pb2.ROLE_USER),
        )
        answer = await self._until_answered(self._runs.SteerRun, request)
        what = answer.reason if isinstance(answer, ServiceError) else "steered"
        self.world.say(f"{self.name}: {request.run_id[-4:]} {what}")

    async def limit(self) -> None:
        """Changes the limit of a lane, or goes back to that of the configuration."""
        lane = self.world.rng.choice(["main", "subagent", "acp"])
        limit = self.world.rng.choice([None, 0, 1, 2, 5])
        await self.set_limit(lane, limit)

    async def set_limit(self, lane: str, limit: int | None) -> None:
        """Sets it, and notes when it may have changed."""
        world = self.world
        request = pb.UpdateLaneRequest(name=lane)
        if limit is not None:
            request.limit = limit
        # The scheduler's clock may be an hour off, and one call may arrive several times, late.
        world.limits.unanswered(lane, world.configured[lane] if limit is None else limit, 0)
        answer = await self._until_answered(self._runs.UpdateLane, request)
        if isinstance(answer, ServiceError):
            world.wrong(f"limit refused: {answer.reason}")
        else:
            world.say(f"{self.name}: lane {lane} has the limit {answer.lane.limit}")


class Watcher:
    """Follows one session from its beginning, through whatever happens."""

    def __init__(self, world: World, session: str) -> None:
        self.world, self.session = world, session
        self.seen: list[event_pb2.Event] = []

    async def run(self) -> None:
        """Watches for ever."""
        world = self.world
        while True:
            if world.methods is not None and world.down is not None:
                await self._watch(world.methods, world.down)
            await world.pause(1.0)

    async def _watch(self, methods: dict[str, Any], down: asyncio.Future[None]) -> None:
        request = log_pb.WatchEventsRequest(session_key=self.session)
        request.after_sequence = self.seen[-1].sequence if self.seen else 0
        stream = methods["/conveyor.events.v1.EventLogService/WatchEvents"](request, Call(None))
        reading = asyncio.create_task(self._read(stream))
        try:
            await asyncio.wait([reading, down], return_when="FIRST_COMPLETED")
        finally:
            reading.cancel()
            _, left = await asyncio.wait([reading], timeout=10.0)
            if left:
                self.world.wrong(f"a watch of session {self.session!r} goes on after its end")

    async def _read(self, stream: Any) -> None:
        """Reads until the stream ends, or the reader has had enough of it."""
        with contextlib.suppress(ServiceError, aio.AioRpcError):
            async with contextlib.aclosing(stream) as responses:
                async for response in responses:
                    if self.world.chance(0.02):
                        return  # before it was seen: it comes again
                    if response.HasField("event"):
                        self.seen.append(response.event)


async def fate(
    world: World, disk: Disk, scheduler: SchedulerMachine, workers: list[WorkerMachine]
) -> None:
    """Lets things go wrong, until all is calm."""
    rng = world.rng
    weights = [rng.choice([0, 1, 4]) for _ in range(9)]
    if not any(weights):
        return
    loop = asyncio.get_running_loop()
    while not world.calm and loop.time() < FAULTS_SECONDS:
        await world.pause(rng.choice([1.0, 6.0]))
        worker = rng.choice(workers)
        match rng.choices(range(9), weights)[0]:
            case 0:
                world.say("scheduler: killed")
                scheduler.kill()
            case 1 | 2 as side:
                scheduler.process.commits_left = rng.randint(1, 6)
                scheduler.process.killed_after = side == 2
            case 3:
                scheduler.stop()
            case 4:
                disk.refuse = rng.randint(1, 4)
            case 5:
                world.say(f"{worker.channel.name}: killed")
                worker.kill()
                world.spawn(_haunt(world, worker))
            case 6:
                world.say(f"{worker.channel.name}: stops in order")
                worker.stop()
            case 7:
                world.say(f"{worker.channel.name}: cut off")
                worker.channel.cut = True
                await world.pause(rng.choice([1.0, 15.0]))
                worker.channel.cut = False
            case _:
                await world.pause(10.0)


async def _haunt(world: World, worker: WorkerMachine) -> None:
    await asyncio.sleep(world.rng.choice([0.1, 2.0, 12.0]))
    await worker.haunt()
