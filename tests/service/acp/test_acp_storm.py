"""Sessions in a storm: everything at once, a store that fails, harnesses that die."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest

from acp_svc.domain.session import Session, State
from acp_svc.domain.settings import Changes
from acp_svc.store.sessions import Chosen
from conveyor.acp.v1 import session_pb2 as pb
from svckit.errors import AcpBackendUnavailable, ServiceError, StoreUnavailable
from tests.service.acp.bench_sessions import Bench, Held, House, bench

MOST = 3


class Storm:
    """Random users of a bench. All they may get is an error that says what it is."""

    def __init__(self, b: Bench, rng: random.Random) -> None:
        self.b = b
        self.rng = rng
        self.inside: set[str] = set()
        self.calm = False
        change = b.store.change

        async def failing(session_id: str, rule: Callable[[Session], Session]) -> Session:
            if not self.calm and rng.random() < 0.05:
                raise StoreUnavailable("not now")
            return await change(session_id, rule)

        b.store.change = failing  # type: ignore[method-assign]

    async def user(self, name: int) -> None:
        for step in range(8):
            try:
                mode = pb.ACP_SESSION_MODE_ONESHOT if step % 4 == 3 else 0
                made = await self.b.sessions.create(
                    self.b.spec(mode=mode), request_id=f"{name}-{step // 4}-{mode}"
                )
                await self.rng.choice([self.work, self.work, self.work, self.configure, self.end])(
                    made.session_id, f"run-{name}-{step}"
                )
            except ServiceError:
                pass
            await self.pause()

    async def work(self, session_id: str, run_id: str) -> None:
        live = await self.b.sessions.open(session_id)
        async with self.b.sessions.busy(live, run_id) as live:
            assert session_id not in self.inside, "two turns at once"
            self.inside.add(session_id)
            try:
                await self.b.sessions.mark_sent(session_id, run_id, "1")
                await self.pause()
                if self.rng.random() < 0.3:
                    cast("Held", live.connection).die()
                    await self.pause()
                    live = await self.b.sessions.open(session_id)
                    assert live.connection.alive
                await self.pause()
                await self.b.sessions.ended(run_id, "1")
            finally:
                self.inside.discard(session_id)

    async def configure(self, session_id: str, _: str) -> None:
        await self.b.sessions.configure(
            session_id, Changes(label="l", options={"effort": self.rng.choice(["low", "high"])})
        )

    async def end(self, session_id: str, _: str) -> None:
        await self.b.sessions.close(session_id)

    async def nature(self) -> None:
        while True:
            await self.pause()
            if self.b.house.running and self.rng.random() < 0.1:
                self.rng.choice(sorted(self.b.house.running, key=lambda held: held.pid)).die()
            if self.rng.random() < 0.1:
                self.b.house.fails.append(AcpBackendUnavailable("away"))
            self.b.clock.advance(self.rng.choice([1, 1, 1, 100]))
            with suppress(ServiceError):
                await self.b.reaper.look()

    async def pause(self) -> None:
        for _ in range(self.rng.randrange(4)):
            await asyncio.sleep(0)


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_happens_the_record_says_what_is(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    house = House(loads=bool(seed % 2))
    async with bench(
        tmp_path, house=house, max_sessions=MOST, idle_minutes=5, cancel_seconds=0.5
    ) as b:
        storm = Storm(b, rng)
        nature = asyncio.create_task(storm.nature())
        try:
            async with asyncio.TaskGroup() as users:
                for name in range(6):
                    users.create_task(storm.user(name))
        finally:
            nature.cancel()
            await asyncio.gather(nature, return_exceptions=True)
        storm.calm = True
        house.fails.clear()
        assert house.most <= MOST
        # What the store could not take the reaper says again; what closes it waits for.
        for _ in range(3):
            await b.reaper.look()
        sessions = await b.sessions.page(Chosen(tuple(State)), before="", limit=500)
        assert sessions
        for session in sessions:
            live = b.processes.live(session.session_id)
            assert session.state not in (State.BUSY, State.ASKING, State.CLOSING), session
            assert (live is not None) == (session.state is State.READY), session
            assert (session.worker == "acp-0") == (live is not None)
            assert not session.run_id
        assert b.processes._taken == {s.session_id for s in sessions if s.worker}
        # Whoever has not ended can be used, one after the other.
        for session in sorted(sessions, key=lambda s: s.state is not State.READY):
            if session.state.open:
                await b.worked(session.session_id, f"last-{session.session_id}")
                await b.sessions.close(session.session_id)
