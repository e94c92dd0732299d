"""Two schedulers under load; the one that leads is killed, frozen and woken, or asked to stop.

Nothing is lost, nothing is done twice, order is kept, and no live turn is tried again.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from conveyor.common.v1 import content_pb2
from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as scheduler_pb
from conveyor.scheduler.v1 import scheduler_service_pb2_grpc as scheduler_grpc
from svckit.errors import NotLeader, Unreachable
from svckit.grpc.channel import make_channel
from svckit.grpc.client import call
from svckit.testing import eventually
from svckit.testing.postgres import PostgresServer
from tests.history import History, assert_holds
from tests.system.cluster import Cluster, running_cluster
from tests.system.harness import SUCCEEDED, chat, payloads, replies

LEASE = 5.0
CUSTOMERS = 5
# Turns that last: whatever happens to the scheduler happens while some are under way.
DELEGATED = "[[spawn: [[sleep: 1200ms]] [[reply: one]]]] [[spawn: [[sleep: 300ms]] [[reply: two]]]]"


@pytest.fixture(scope="module")
def cluster(
    tmp_path_factory: pytest.TempPathFactory, _postgres: PostgresServer
) -> Iterator[Cluster]:
    url = _postgres.create_database()
    with running_cluster(
        tmp_path_factory.mktemp("failover"), _postgres, url, lease=LEASE
    ) as started:
        yield started
    _postgres.drop_database(url)


class Load:
    """Customers that send delegated requests one after the other, and what they were told."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self._cluster = cluster
        self._name = name
        self._stop = asyncio.Event()
        self.accepted: dict[str, str] = {}
        # What each customer was shown of the whole session, by one watch that outlives everything.
        self.watched: list[list[event_pb2.Event]] = [[] for _ in range(CUSTOMERS)]
        self.answered: list[int] = [0] * CUSTOMERS
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self._customer(n)) for n in range(CUSTOMERS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def _customer(self, number: int) -> None:
        key = f"agent:main:grpc:direct:{self._name}-{number}"
        watching: list[asyncio.Task[None]] = []
        async with self._cluster.client() as client:
            while not self._stop.is_set():
                request = f"{self._name}-{number}-{self.answered[number]}"
                # A second message, which has to wait for the first.
                beside = client.send(
                    f"[[reply: after {request}]]", session_key=key, request_id=f"{request}-after"
                )
                told, sent = await asyncio.gather(
                    chat(client, DELEGATED, session_key=key, request_id=request), beside
                )
                assert told.ended.state == SUCCEEDED, told.ended
                self.accepted[request] = told.run_id
                self.accepted[f"{request}-after"] = sent.accepted.run.run_id
                self.answered[number] += 1
                if not watching:
                    watching.append(asyncio.create_task(self._watch(number, key)))
            await eventually(lambda: self._shown(number), timeout=60)
            watching[0].cancel()

    async def _watch(self, number: int, key: str) -> None:
        async with (
            self._cluster.client() as client,
            contextlib.aclosing(client.watch_session(key)) as stream,
        ):
            async for item in stream:
                if item.HasField("event"):
                    self.watched[number].append(item.event)

    def _shown(self, number: int) -> bool:
        """Whether the watch showed the end of everything that this customer asked for."""
        ends = sum(
            change.state == SUCCEEDED
            for change in payloads(self.watched[number], "run_state_changed")
        )
        return ends == 2 * self.answered[number]

    async def everybody_is_answered(self, more: int = 1) -> None:
        """Wait until each customer got so many more answers."""
        wanted = [answered + more for answered in self.answered]

        def look() -> bool:
            for task in self._tasks:
                if task.done():
                    task.result()
            return all(have >= want for have, want in zip(self.answered, wanted, strict=True))

        await eventually(look, timeout=50)


@asynccontextmanager
async def direct(address: str) -> AsyncIterator[Callable[[], Awaitable[Any]]]:
    """A harmless read of one scheduler, as often as called."""
    async with make_channel(address, own_connection=True) as channel:
        stub: Any = scheduler_grpc.SchedulerServiceStub(channel)
        yield lambda: call(stub.ListLanes(scheduler_pb.ListLanesRequest(), timeout=60.0))


UNHEARD = "agent:main:grpc:direct:said-to-a-frozen-one"


async def write_directly(address: str) -> Any:
    """A message for one scheduler and no other."""
    item = scheduler_pb.EnqueueItem(
        spec=run_pb2.RunSpec(session_key=UNHEARD, customer_key=UNHEARD, queue="agent"),
        message=content_pb2.Message(
            message_id="m-1",
            role=content_pb2.ROLE_USER,
            parts=[content_pb2.ContentPart(text="[[reply: unheard]]")],
        ),
        request_id="unheard",
    )
    async with make_channel(address, own_connection=True) as channel:
        stub: Any = scheduler_grpc.SchedulerServiceStub(channel)
        return await call(
            stub.EnqueueRuns(scheduler_pb.EnqueueRunsRequest(items=[item]), timeout=60.0)
        )


async def served_by_another(cluster: Cluster, than: str) -> float:
    """Wait until another scheduler answers; returns the seconds it took."""
    began = time.monotonic()
    [other] = [address for address in cluster.schedulers if address != than]
    async with direct(other) as read:
        while True:
            with contextlib.suppress(NotLeader):
                await read()
                return time.monotonic() - began
            await asyncio.sleep(0.02)


async def check(cluster: Cluster, load: Load) -> History:
    """What the database holds is what was promised, and what customers saw."""

    async def finished() -> History:
        history = await cluster.history()
        history.finished = True
        history.accepted = load.accepted
        history.watched = load.watched
        assert all(row.state in _TERMINAL for row in history.runs.values()), (
            "something is under way"
        )
        return history

    history = await eventually(finished, timeout=60)
    assert_holds(history)
    attempts = [change.attempt for change in payloads(history.events, "run_state_changed")]
    assert max(attempts) == 1, "a live turn was tried again"
    by_session = defaultdict(list)
    for event in history.events:
        by_session[event.session_key].append(event)
    for events in by_session.values():
        assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    for request, run_id in load.accepted.items():
        expected = 1 if request.endswith("-after") else 2
        told = [event for event in history.events if event.run_id == run_id]
        assert len(replies(told)) == 1
        if expected == 2:
            assert len(payloads(told, "child_announced")) == 2
    return history


_TERMINAL = {
    run_pb2.RUN_STATE_SUCCEEDED,
    run_pb2.RUN_STATE_FAILED,
    run_pb2.RUN_STATE_CANCELLED,
    run_pb2.RUN_STATE_EXPIRED,
}


async def test_the_leader_is_killed(cluster: Cluster) -> None:
    async with Load(cluster, "killed") as load:
        await load.everybody_is_answered()
        leader, epoch = cluster.leader()
        cluster.signal(leader, signal.SIGKILL)
        took = await served_by_another(cluster, leader)
        assert took < 3 * LEASE
        await load.everybody_is_answered()
        assert cluster.leader()[1] > epoch
        # It comes back and stands by.
        cluster.start_scheduler(leader)
        cluster.wait_listening(leader)
        async with direct(leader) as read:

            async def named() -> str:
                with pytest.raises(NotLeader) as refused:
                    await read()
                return refused.value.metadata["leader"]

            assert await eventually(named) == cluster.leader()[0] != leader
    await check(cluster, load)


async def test_the_leader_is_frozen_and_woken(cluster: Cluster) -> None:
    async with Load(cluster, "frozen") as load:
        await load.everybody_is_answered()
        leader, _ = cluster.leader()
        async with direct(leader) as read:
            await read()
            cluster.signal(leader, signal.SIGSTOP)
            # These wait at its door, and are the first things that it hears when it wakes.
            asked = [asyncio.ensure_future(read()) for _ in range(5)]
            asked.append(asyncio.ensure_future(write_directly(leader)))
            took = await served_by_another(cluster, leader)
            assert took < 3 * LEASE
            await load.everybody_is_answered()
            now_leads, epoch = cluster.leader()
            assert now_leads != leader
            for each in asked:
                # On a machine so slow that the connection was given up first, nobody was answered.
                assert not each.done() or isinstance(each.exception(), Unreachable)
            cluster.signal(leader, signal.SIGCONT)
            for refusal in await asyncio.gather(*asked, return_exceptions=True):
                assert isinstance(refusal, NotLeader | Unreachable), refusal
            await load.everybody_is_answered()
            with pytest.raises(NotLeader) as refused:
                await read()
            assert refused.value.metadata["leader"] == now_leads
        assert cluster.leader() == (now_leads, epoch), "the woken one changed nothing"
        assert "another scheduler leads" in cluster.said(leader)
    history = await check(cluster, load)
    assert all(row.session_key != UNHEARD for row in history.runs.values())


async def test_the_leader_drains(cluster: Cluster) -> None:
    async with Load(cluster, "drained") as load:
        await load.everybody_is_answered()
        leader, _ = cluster.leader()
        stopping = asyncio.create_task(asyncio.to_thread(cluster.signal, leader, signal.SIGTERM))
        took = await served_by_another(cluster, leader)
        assert took < LEASE, "at once, not when its lease would have ended"
        await stopping
        await load.everybody_is_answered()
        cluster.start_scheduler(leader)
        cluster.wait_listening(leader)
    await check(cluster, load)
