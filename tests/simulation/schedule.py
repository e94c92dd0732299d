"""One schedule from its seed to its verdict."""

from __future__ import annotations

import asyncio
import functools
import logging
import random
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from scheduler_svc.domain.records import TERMINAL
from scheduler_svc.store.base import RunQuery
from scheduler_svc.store.memory import MemoryStore
from scheduler_svc.store.sqlite import SqliteStore
from svckit import ids
from svckit.settings import Settings, load
from tests.history import Limits, assert_holds, of_store
from tests.simulation.loop import VirtualLoop
from tests.simulation.machines import SchedulerMachine, WorkerMachine
from tests.simulation.people import SESSIONS, Gateway, Watcher, fate
from tests.simulation.world import LATEST, Disk, World

# Once all is calm, everything has to end within this virtual time. The longest wait of one run is
# for its children and their backoffs; an hour would be that of a clock that jumped.
CALM_SECONDS = 600.0


@dataclass
class Verdict:
    """What became of a schedule."""

    seed: int
    steps: int
    runs: int
    events: int
    seconds: float
    digest: str
    problem: str = ""

    def __str__(self) -> str:
        return (
            f"seed {self.seed}: {self.steps} calls, {self.runs} runs, {self.events} events, "
            f"{self.seconds:.0f} virtual seconds, trace {self.digest}"
        )


def run_schedule(seed: int, store: str = "memory") -> Verdict:
    """Runs it, and checks everything. Deterministic."""
    random.seed(seed)
    logging.disable(logging.CRITICAL)
    world = World(seed)
    chance = random.Random(seed + 1)
    with ExitStack() as stack:
        enter: Any = stack.enter_context
        runner: Any = enter(asyncio.Runner(loop_factory=VirtualLoop))
        directory = Path(enter(tempfile.TemporaryDirectory())) if store == "sqlite" else Path()
        loop = runner.get_loop()
        # Ids are made from the time and from chance.
        time_ns = SimpleNamespace(time_ns=lambda: round((1_700_000_000 + loop.time()) * 1e9))
        enter(mock.patch.object(ids, "time", time_ns))
        enter(mock.patch.object(ids, "os", SimpleNamespace(urandom=chance.randbytes)))
        enter(mock.patch.object(ids, "_last", 0))
        try:
            verdict: Verdict = runner.run(_schedule(world, store, directory))
            return verdict
        finally:
            logging.disable(logging.NOTSET)


def _settings(world: World) -> Settings:
    rng = world.rng
    world.configured = {lane: rng.randint(1, 3) for lane in ("main", "subagent", "acp")}
    world.limits = Limits(world.configured)
    rates = rng.choice([0, 0, 20, 120]), rng.choice([0, 0, 2000])
    base = _base()
    lanes = {
        lane: getattr(base.lanes, lane).model_copy(update={"limit": limit})
        for lane, limit in world.configured.items()
    }
    rated = {"requests_per_minute": rates[0], "tokens_per_minute": rates[1]}
    return base.model_copy(
        update={
            "lanes": base.lanes.model_copy(update=lanes),
            "providers": {"p": base.providers["p"].model_copy(update=rated)},
            "runs": base.runs.model_copy(update={"max_attempts": rng.choice([1, 3, 10])}),
        }
    )


@functools.cache
def _base() -> Settings:
    """What no schedule draws. To read it takes a tenth as long as a schedule."""
    return load(
        None,
        {
            "CONVEYOR_STORE__URL": "memory:",
            "CONVEYOR_PROVIDERS__P__REQUESTS_PER_MINUTE": "0",
            "CONVEYOR_RUNS__LEASE_SECONDS": "10",
            "CONVEYOR_RUNS__BACKOFF__INITIAL_SECONDS": "1",
            "CONVEYOR_RUNS__BACKOFF__MAX_SECONDS": "5",
            "CONVEYOR_AGENTS__DEFAULTS__SUBAGENTS__MAX_SPAWN_DEPTH": "2",
        },
    )


class _Inline:
    """An executor without threads, in which time would not stand still."""

    def submit(self, work: Callable[..., Any], *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*args))
        except Exception as err:
            future.set_exception(err)
        return future

    def shutdown(self, wait: bool = True) -> None:
        pass


def _sqlite(directory: Path) -> SqliteStore:
    store: Any = SqliteStore(directory / "scheduler.db")
    store._thread = store._reading_thread = _Inline()
    found: SqliteStore = store
    return found


async def _schedule(world: World, store: str, directory: Path) -> Verdict:
    disk = Disk(world)
    kept = MemoryStore()
    open_store: Callable[[], Any] = lambda: kept  # noqa: E731
    if store == "sqlite":
        open_store = lambda: _sqlite(directory)  # noqa: E731
    scheduler = SchedulerMachine(world, disk, open_store, _settings(world))
    workers = [WorkerMachine(world, f"agent-{n}", "agent", world.rng.randint(1, 4)) for n in (0, 1)]
    workers.append(WorkerMachine(world, "acp-0", "acp", 2))
    watchers = [Watcher(world, session) for session in SESSIONS[:2]]
    gateways = [Gateway(world, f"g{n}") for n in range(world.rng.randint(1, 4))]
    machines: list[Any] = [scheduler, *workers, *watchers]
    lives = [asyncio.create_task(machine.run()) for machine in machines]
    chaos = asyncio.create_task(fate(world, disk, scheduler, workers))
    # Few acts or many: what needs two of them is found sooner among the many short schedules.
    acts = [world.rng.randint(2, world.rng.choice([3, 6, 12])) for _ in gateways]
    people = [asyncio.create_task(g.run(n)) for g, n in zip(gateways, acts, strict=True)]
    problem = ""
    try:
        await _unless(lives, people)
        world.say("all is calm")
        world.calm = True
        chaos.cancel()
        for worker in workers:
            worker.channel.cut = False
        await asyncio.sleep(LATEST)  # what is on its way, limits too, arrives before
        for lane in ("main", "subagent", "acp"):
            await gateways[0].set_limit(lane, None)
        await _everything_ended(world, lives, scheduler)
        await _everything_seen(world, watchers, scheduler)
    except AssertionError as err:
        problem = str(err)
    finally:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=60)
    scheduler.process.kill()
    kept_for_good = open_store()
    await kept_for_good.acquire()
    history = await of_store(kept_for_good)
    await kept_for_good.close()
    history.accepted = world.accepted
    history.limits = world.limits
    history.watched = [watcher.seen for watcher in watchers]
    history.finished = not problem
    history.exact = scheduler.lives == 1
    if not problem and world.problems:
        problem = "\n".join(world.problems[:5])
    try:
        assert_holds(history)
    except AssertionError as err:
        problem = f"{problem}\n{err}".strip()
    verdict = Verdict(
        seed=world.seed,
        steps=world.steps,
        runs=len(history.runs),
        events=len(history.events),
        seconds=asyncio.get_running_loop().time(),
        digest=world.digest,
    )
    if problem:
        again = f"SIM_SEED={world.seed} SIM_STORE={store} pytest tests/simulation"
        trace = "\n".join(world.trace)
        verdict.problem = f"{verdict}\n{problem}\nthe last steps:\n{trace}\nagain: {again}"
    return verdict


async def _unless(lives: list[asyncio.Task[Any]], work: list[asyncio.Task[Any]]) -> None:
    """Waits for the work to be done; a machine that ends has a bug."""
    todo = set(work)
    while todo:
        done, _ = await asyncio.wait([*lives, *todo], return_when="FIRST_COMPLETED", timeout=3600)
        assert done, "nobody gets an answer for an hour"
        for task in done:
            if task in todo:
                todo.discard(task)
                task.result()
            else:
                raise AssertionError(f"a machine ended: {task.exception()!r}")


async def _everything_ended(
    world: World, lives: list[asyncio.Task[Any]], scheduler: SchedulerMachine
) -> None:
    loop = asyncio.get_running_loop()
    until = loop.time() + CALM_SECONDS
    while True:
        await asyncio.sleep(3.0)
        for life in lives:
            assert not life.done(), f"a machine ended: {life.exception()!r}"
        engine = scheduler.engine
        if not scheduler.process.alive:
            continue
        stored = await engine.store.list_runs(RunQuery(), before=0, after=0, limit=100_000)
        left = [found.run for found in stored if found.run.state not in TERMINAL]
        if not left:
            return
        if loop.time() > until:
            told = "; ".join(
                f"{run.run_id} {run.state.name} in {run.session_key}, ready at {run.ready_time}, "
                f"waits for {run.wait}"
                for run in left[:5]
            )
            raise AssertionError(
                f"invariant 5: {len(left)} runs have not ended after {CALM_SECONDS} quiet "
                f"seconds, at {engine.now()}: {told}"
            )


async def _everything_seen(
    world: World, watchers: list[Watcher], scheduler: SchedulerMachine
) -> None:
    for _ in range(120):
        store = scheduler.engine.store
        heads = [await store.session_head(watcher.session) or 0 for watcher in watchers]
        seen = [w.seen[-1].sequence if w.seen else 0 for w in watchers]
        if heads == seen:
            return
        await asyncio.sleep(1.0)
    raise AssertionError(f"invariant 10: watchers saw up to {seen} of {heads}")
