"""Sessions with a real store and a harness made of memory, so that its moments can be chosen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from acp_svc.app import MIGRATIONS
from acp_svc.creating import Creator
from acp_svc.domain.catalog import Catalog, Override
from acp_svc.domain.permissions import PermissionMode
from acp_svc.harness.connection import Connection
from acp_svc.harness.types import Deadlines, Opened, Order
from acp_svc.opening import Opener
from acp_svc.processes import Processes
from acp_svc.reaping import Reaper
from acp_svc.sessions import Sessions
from acp_svc.store.prompts import PromptStore
from acp_svc.store.sessions import SessionStore
from conveyor.acp.v1 import session_pb2 as pb
from conveyor.scheduler.v1 import scheduler_service_pb2 as sched_pb
from svckit.clock import FakeClock
from svckit.database import Database
from svckit.errors import ServiceError, invalid_field
from svckit.settings_model import AcpSettings, RetentionSettings


class Held:
    """A `Connection` without a process."""

    def __init__(self, house: House, order: Order, number: int) -> None:
        self._house = house
        self.order = order
        self.pid = number
        self.last_words = "the end"
        self.told: list[tuple[str, str]] = []
        self._gone = asyncio.Event()
        how = (
            ("loaded" if order.must_resume or house.loads else "new")
            if order.upstream_id
            else "new"
        )
        self.opened = Opened(
            upstream_id=order.upstream_id if how == "loaded" else f"up-{number}",
            how=how,  # type: ignore[arg-type]
            loadable=house.loads,
            modes=("ask", "plan"),
            mode=order.harness_mode or "ask",
            models=("a", "b"),
            model=order.model,
            options={"effort": "low"} | dict(order.options),
            sandboxed=house.sandboxes,
            agent_name="held",
            agent_version="1",
        )

    @property
    def alive(self) -> bool:
        return not self._gone.is_set()

    async def gone(self) -> None:
        await self._gone.wait()

    def die(self) -> None:
        """End as a process does that crashes."""
        self._gone.set()

    async def stop(self) -> None:
        await self._house.stopping.wait()
        self._gone.set()
        self._house.running.discard(self)

    async def set_mode(self, mode: str) -> Opened:
        return self._set("mode", mode, mode=mode)

    async def set_model(self, model: str) -> Opened:
        return self._set("model", model, model=model)

    async def set_option(self, name: str, value: str) -> Opened:
        return self._set(name, value, options={**self.opened.options, name: value})

    async def set_permission_mode(self, mode: PermissionMode, own_mode: str = "") -> Opened:
        return self._set("permissions", f"{mode.value} {own_mode}".strip(), mode=own_mode or "ask")

    def _set(self, name: str, value: str, **changed: Any) -> Opened:
        self.told.append((name, value))
        if name in self._house.refuses:
            raise self._house.refuses[name]
        self.opened = replace(self.opened, **changed)
        return self.opened


@dataclass
class House:
    """What the harness does, and what is to be seen of it."""

    loads: bool = True
    sandboxes: bool = False
    refuses: dict[str, ServiceError] = field(default_factory=dict)
    fails: list[ServiceError] = field(default_factory=list)
    """Errors of the next openings."""
    orders: list[Order] = field(default_factory=list)
    running: set[Held] = field(default_factory=set)
    most: int = 0
    """Most that ever ran at a time."""

    def __post_init__(self) -> None:
        self.opens = asyncio.Event()
        self.opens.set()
        self.stopping = asyncio.Event()
        self.stopping.set()

    async def connect(self, order: Order, deadlines: Deadlines, owner: str) -> Connection:
        self.orders.append(order)
        if self.fails:
            raise self.fails.pop(0)
        held = Held(self, order, len(self.orders))
        self.running.add(held)
        self.most = max(self.most, len(self.running))
        try:
            await self.opens.wait()
        except asyncio.CancelledError:
            self.running.discard(held)
            raise
        return cast("Connection", held)


class Scheduler:
    """Takes the cancellations of runs."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []

    async def CancelRun(
        self, request: sched_pb.CancelRunRequest, timeout: float = 0
    ) -> sched_pb.CancelRunResponse:
        self.cancelled.append(request.run_id)
        return sched_pb.CancelRunResponse()


@dataclass
class Bench:
    """Everything of one service. `spec` is of a session that works in `root`."""

    sessions: Sessions
    processes: Processes
    reaper: Reaper
    store: SessionStore
    house: House
    scheduler: Scheduler
    clock: FakeClock
    root: Path

    def spec(self, **fields: Any) -> pb.AcpSessionSpec:
        return pb.AcpSessionSpec(**fields)

    async def spawned(self, request_id: str = "q", **fields: Any) -> str:
        """Spawn a session and return its id."""
        made = await self.sessions.spawn(self.spec(**fields), request_id=request_id)
        self.clock.advance(1)
        return made.session_id

    async def worked(self, session_id: str, run_id: str = "r") -> None:
        """Let a run prompt it."""
        live = await self.sessions.open(session_id)
        async with self.sessions.busy(live, run_id):
            await self.sessions.mark_sent(session_id, run_id, "1")
            await self.sessions.ended(run_id, "1")
        self.clock.advance(1)

    def held(self, session_id: str) -> Held:
        """The connection of a session that has one."""
        live = self.processes.place(session_id).live
        assert live is not None
        return cast("Held", live.connection)


@asynccontextmanager
async def bench(
    root: Path,
    *,
    house: House | None = None,
    database_url: str = ":memory:",
    clock: FakeClock | None = None,
    **settings: Any,
) -> AsyncIterator[Bench]:
    """A service without gRPC, for the block; drained at its end."""
    work = root / "work"
    work.mkdir(exist_ok=True)
    program = root / "held"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    acp = AcpSettings(default_harness="held", workspace_roots=(str(work),), **settings)
    catalog = Catalog.build({"held": Override((str(program),))}, default="held")
    database = await Database.open(database_url, migrations=MIGRATIONS, name="acp")
    clock, house, scheduler = clock or FakeClock(), house or House(), Scheduler()
    store, prompts = SessionStore(database), PromptStore(database)
    opener = Opener(catalog, acp, "bench", house.connect)
    processes = Processes(store, opener, clock, worker="acp-0", most=acp.max_sessions)
    sessions = Sessions(
        store=store,
        prompts=prompts,
        creator=Creator(store, catalog, acp, clock, processes.check_room),
        processes=processes,
        scheduler=cast("Any", scheduler),
        clock=clock,
        cancel_seconds=acp.cancel_seconds,
        workspace_roots=acp.workspace_roots,
    )
    reaper = Reaper(
        sessions,
        processes,
        store,
        prompts,
        clock,
        worker="acp-0",
        owner="bench-of-sessions",
        idle_minutes=acp.idle_minutes,
        keep=RetentionSettings(),
    )
    try:
        yield Bench(sessions, processes, reaper, store, house, scheduler, clock, work)
    finally:
        await processes.drain()
        await database.close()
    assert not house.running, "processes were left behind"
    assert not processes._places, "nobody uses them any more"


def refusal(field: str) -> ServiceError:
    """What the harness answers to a setting that it does not know."""
    return invalid_field(field, "the harness refuses it")
