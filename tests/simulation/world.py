"""What the actors of a schedule share: chance, the network, the disk, and a trace of it all."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import grpc
from grpc import aio

from svckit.errors import ServiceError, StoreUnavailable
from svckit.grpc import methods
from svckit.grpc.status import to_proto, to_trailers
from tests.history import Limits
from tests.simulation.loop import VirtualClock

TRACE_LINES = 60
# Seconds that a request can be under way.
LATEST = 20.0
CODES = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


class World:
    """One schedule. `rng` is its only chance; `calm` ends all faults."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.calm = False
        self.steps = 0
        self.clock = VirtualClock()
        self.trace: deque[str] = deque(maxlen=TRACE_LINES)
        self._digest = hashlib.sha256()
        self._aside: set[asyncio.Task[None]] = set()
        self.problems: list[str] = []
        # Methods of the scheduler that is up, by full name; `None` while none is.
        self.methods: dict[str, Callable[..., Any]] | None = None
        self.down: asyncio.Future[None] | None = None  # done when that scheduler dies
        self.accepted: dict[str, str] = {}
        self.bodies: dict[str, Any] = {}  # request id -> what was sent with it
        self.limits: Limits
        self.configured: dict[str, int] = {}
        # Part of calls that meet each trouble, drawn per schedule: some are quiet, some are wild.
        self.loss = self.rng.choice([0.0, 0.02, 0.1, 0.3])
        self.slow = self.rng.choice([0.001, 0.01, 0.1, 0.5])

    def say(self, text: str) -> None:
        """Adds a line to the trace."""
        line = f"{asyncio.get_running_loop().time():10.4f} {text}"
        self._digest.update(line.encode())
        self.trace.append(line)

    @property
    def digest(self) -> str:
        """Equal for equal traces."""
        return self._digest.hexdigest()[:16]

    def wrong(self, text: str) -> None:
        """Notes what must not happen."""
        self.say(f"WRONG: {text}")
        self.problems.append(text)

    def chance(self, part: float) -> bool:
        """True for this part of the draws; never once all is calm."""
        return self.rng.random() < part and not self.calm

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Lets something happen on the side."""
        task = asyncio.get_running_loop().create_task(work)
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)

    async def pause(self, mean: float) -> None:
        """Waits for a time with this mean, often much shorter, seldom much longer."""
        await asyncio.sleep(self.rng.expovariate(1 / mean))


def failure(error: ServiceError) -> aio.AioRpcError:
    """How a caller sees it."""
    code = grpc.StatusCode[error.grpc_code]
    trailers = aio.Metadata(*to_trailers(to_proto(error)))
    return aio.AioRpcError(code, aio.Metadata(), trailers, details=error.message)


def no_answer(code: grpc.StatusCode, why: str) -> aio.AioRpcError:
    """How a caller sees that nobody answers."""
    return aio.AioRpcError(code, aio.Metadata(), aio.Metadata(), details=why)


class Call:
    """What grpc.aio gives to a servicer."""

    def __init__(self, timeout: float | None) -> None:
        self._until = None if timeout is None else asyncio.get_running_loop().time() + timeout

    def time_remaining(self) -> float | None:
        if self._until is None:
            return None
        return max(0.0, self._until - asyncio.get_running_loop().time())

    def invocation_metadata(self) -> tuple[()]:
        return ()


class Channel:
    """One caller's way to the scheduler: calls are late, lost, answered to nobody, or cut off.

    A request whose caller has given up may still arrive: that is how calls are doubled and
    overtake each other.
    """

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        # The caller is dead: what is under way may arrive, nothing new leaves.
        self.dead = False
        self.cut = False

    def unary_unary(self, path: str, *_: Any, **__: Any) -> Callable[..., Awaitable[Any]]:
        def call(request: Any, timeout: float | None = None, **_: Any) -> asyncio.Task[Any]:
            copy = type(request).FromString(request.SerializeToString())
            limit = timeout or methods.default_timeout(path, request)
            return asyncio.get_running_loop().create_task(self._call(path, copy, limit))

        return call

    def unary_stream(self, *_: Any, **__: Any) -> Any:
        return None

    stream_unary = stream_stream = unary_stream

    async def _call(self, path: str, request: Any, timeout: float) -> Any:
        world = self.world
        world.steps += 1
        name = path.rpartition("/")[2]
        if self.dead:
            await asyncio.get_running_loop().create_future()
        if self.cut:
            await asyncio.sleep(min(timeout, 1.0))
            raise no_answer(grpc.StatusCode.UNAVAILABLE, "cut off")
        lost = world.chance(world.loss)
        late = lost and world.chance(0.5)
        if lost:
            world.say(f"{self.name} {name}: request {'late' if late else 'lost'}")
            if late:
                world.spawn(self._late(path, request, world.rng.uniform(0, LATEST)))
            await asyncio.sleep(timeout)
            raise no_answer(grpc.StatusCode.DEADLINE_EXCEEDED, "lost")
        await world.pause(world.slow)
        answer = await self._serve(path, request, timeout)
        await world.pause(world.slow)
        if world.chance(world.loss):
            world.say(f"{self.name} {name}: answer lost")
            raise no_answer(grpc.StatusCode.UNAVAILABLE, "answer lost")
        return answer

    async def _late(self, path: str, request: Any, delay: float) -> None:
        await asyncio.sleep(delay)
        try:
            await self._serve(path, request, 5.0)
            self.world.say(f"{self.name} {path.rpartition('/')[2]}: late request done")
        except aio.AioRpcError:
            pass

    async def _serve(self, path: str, request: Any, timeout: float) -> Any:
        world = self.world
        if world.methods is None or world.down is None:
            raise no_answer(grpc.StatusCode.UNAVAILABLE, "nobody listens")
        down = world.down
        handler = world.methods[path]
        task = asyncio.get_running_loop().create_task(handler(request, Call(timeout)))
        try:
            await asyncio.wait([task, down], timeout=timeout, return_when="FIRST_COMPLETED")
            if down.done():
                raise no_answer(grpc.StatusCode.UNAVAILABLE, "the scheduler died")
            if not task.done():
                raise no_answer(grpc.StatusCode.DEADLINE_EXCEEDED, "too slow")
            answer = task.result()
            return type(answer).FromString(answer.SerializeToString())
        except ServiceError as err:
            raise failure(err) from None
        except aio.AioRpcError:
            raise
        except Exception as err:
            world.wrong(f"{path} raised {type(err).__name__}: {err}")
            raise no_answer(grpc.StatusCode.INTERNAL, "internal") from err
        finally:
            task.cancel()
            task.add_done_callback(lambda over: over.cancelled() or over.exception())  # heard


class Disk:
    """What outlives the scheduler: the store, and how willing it is."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.refuse = 0
        self.slow = world.rng.choice([0.0, 0.001, 0.05, 0.3])


class Process:
    """A scheduler process as its store sees it: alive, or killed at some point of a commit."""

    def __init__(self) -> None:
        self.alive = True
        # Commits until it is killed, and on which side of that commit.
        self.commits_left = -1
        self.killed_after = False
        self.kill: Callable[[], None] = lambda: None


class DiskStore:
    """A `LaneStore` that belongs to one process: with it, it stops."""

    def __init__(self, inner: Any, disk: Disk, process: Process) -> None:
        self.inner = inner
        self._disk = disk
        self._process = process

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if not asyncio.iscoroutinefunction(found):
            return found

        async def verb(*args: Any, **more: Any) -> Any:
            await self._alive()
            return await found(*args, **more)

        return verb

    async def _alive(self) -> None:
        if not self._process.alive:
            await asyncio.get_running_loop().create_future()

    async def commit(self, batch: Any) -> None:
        world, disk, process = self._disk.world, self._disk, self._process
        await self._alive()
        if disk.slow:
            await world.pause(disk.slow)
            await self._alive()
        if disk.refuse and not world.calm:
            disk.refuse -= 1
            world.say("disk: commit refused")
            raise StoreUnavailable("full")
        process.commits_left -= 1
        due = process.commits_left == 0 and not world.calm
        if due and not process.killed_after:
            world.say("scheduler: killed before a commit")
            process.kill()
            await self._alive()
        await self.inner.commit(batch)
        world.say(f"commit: {len(batch.runs)} runs, {len(batch.events)} events")
        if due:
            world.say("scheduler: killed after a commit")
            process.kill()
            await self._alive()
