"""A channel to several schedulers calls the one that leads, and goes along when that changes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from grpc import aio

from conveyor.events.v1 import event_log_service_pb2 as log_pb2
from conveyor.events.v1 import event_log_service_pb2_grpc as log_grpc
from conveyor.scheduler.v1 import worker_service_pb2 as ws
from conveyor.scheduler.v1 import worker_service_pb2_grpc as ws_grpc
from svckit.errors import LaneFull, NotLeader, ServiceError, StoreUnavailable, Unreachable
from svckit.grpc import deadline, following, health
from svckit.grpc.channel import make_channel
from svckit.grpc.client import call
from svckit.grpc.following import FollowingChannel
from svckit.grpc.server import bind, make_server
from svckit.grpc.status import code_of, to_proto, to_trailers
from svckit.grpc.watch import follow
from svckit.testing import ScriptedServicer, eventually, free_port

LOG = "conveyor.events.v1.EventLogService"
WORKER = "conveyor.scheduler.v1.WorkerService"
SCHEDULER = "conveyor.scheduler.v1.SchedulerService"
ONE = log_pb2.ListEventsResponse(next_page_token="one")
TWO = log_pb2.ListEventsResponse(next_page_token="two")


class Node:
    """One scheduler, as far as channels can tell."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.log = ScriptedServicer(LOG)
        self.worker = ScriptedServicer(WORKER)
        self.health = health.Health([SCHEDULER])
        self._server: aio.Server | None = None

    async def start(self, *, leads: bool) -> None:
        await self.lead(leads)
        self._server = make_server()
        self.log.add_to(self._server)
        self.worker.add_to(self._server)
        health.add_to(self._server, self.health)
        bind(self._server, self.address)
        await self._server.start()

    async def lead(self, leads: bool) -> None:
        await self.health.set_serving(leads)

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(None)

    def refuses(self, *, leader: str) -> None:
        error = NotLeader("a standby", metadata={"leader": leader, "epoch": "7"})
        for method in ("ListEvents", "WatchEvents", "AppendEvents"):
            self.log.always(method, error)
        self.worker.always("LeaseRuns", error)


Pair = tuple[Node, Node, FollowingChannel]


@pytest.fixture
def addresses() -> list[str]:
    return [f"127.0.0.1:{free_port()}" for _ in range(2)]


@contextlib.asynccontextmanager
async def pair(addresses: list[str]) -> AsyncIterator[Pair]:
    """Two nodes that are not started, and a channel to both."""
    one, two = Node(addresses[0]), Node(addresses[1])
    channel = make_channel(",".join(addresses))
    assert isinstance(channel, FollowingChannel)
    try:
        yield one, two, channel
    finally:
        await channel.close()
        await one.stop()
        await two.stop()


def listed(channel: aio.Channel, **options: Any) -> Any:
    stub: Any = log_grpc.EventLogServiceStub(channel)
    return call(stub.ListEvents(log_pb2.ListEventsRequest(), **options), service="scheduler")


async def test_the_leader_that_a_standby_names_is_called(addresses: list[str]) -> None:
    async with pair(addresses) as (one, two, channel):
        one.refuses(leader=two.address)
        two.log.always("ListEvents", TWO)
        await one.start(leads=False)
        await two.start(leads=False)  # its health was not heard of yet
        assert (await listed(channel)).next_page_token == "two"
        assert (await listed(channel)).next_page_token == "two"
        assert len(one.log.calls["ListEvents"]) == 1, "the second call went there at once"


async def test_an_address_that_nobody_configured_is_not_called(addresses: list[str]) -> None:
    async with pair(addresses) as (one, two, channel):
        stranger = Node(f"127.0.0.1:{free_port()}")
        await stranger.start(leads=True)
        one.refuses(leader=stranger.address)
        two.log.always("ListEvents", TWO)
        await one.start(leads=False)
        await two.start(leads=False)
        assert (await listed(channel)).next_page_token == "two"
        assert not stranger.log.calls["ListEvents"]
        await stranger.stop()


async def test_a_call_waits_until_somebody_leads(addresses: list[str]) -> None:
    async with pair(addresses) as (one, two, channel):
        one.refuses(leader="")
        two.refuses(leader="")
        await one.start(leads=False)
        await two.start(leads=False)
        waiting = asyncio.ensure_future(listed(channel))
        await eventually(lambda: bool(one.log.calls["ListEvents"] and two.log.calls["ListEvents"]))
        two.log.always("ListEvents", TWO)
        await two.lead(True)
        assert (await waiting).next_page_token == "two"


async def test_a_leader_of_yesterday_that_is_still_named_cuts_no_pause_short(
    addresses: list[str],
) -> None:
    """One that was started anew refuses, while the others name it until its lease ends."""
    error = to_proto(NotLeader("a standby", metadata={"leader": addresses[1], "epoch": "7"}))
    refusal = aio.AioRpcError(
        code_of(error), aio.Metadata(), aio.Metadata(*to_trailers(error)), details=error.message
    )
    channel = make_channel(",".join(addresses))
    assert isinstance(channel, FollowingChannel)
    try:
        one, two = channel._peers
        channel._peers.passing(one, refusal)
        await asyncio.wait_for(channel._peers.pause(60), 30)  # news: the one named is asked at once
        channel._peers.passing(two, refusal)
        channel._peers.passing(one, refusal)
        assert channel.leader == two.address
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(channel._peers.pause(60), 0.1)
    finally:
        await channel.close()


async def test_nobody_leading_ends_with_the_time_of_the_call(addresses: list[str]) -> None:
    async with pair(addresses) as (one, two, channel):
        one.refuses(leader="")
        two.refuses(leader="")
        await one.start(leads=False)
        await two.start(leads=False)
        with pytest.raises(Unreachable):
            await listed(channel, timeout=0.5)


async def test_the_request_being_served_bounds_how_long_a_leader_is_waited_for(
    addresses: list[str],
) -> None:
    async with pair(addresses) as (_, _, channel):
        began = asyncio.get_running_loop().time()
        with deadline.scope(0.5), pytest.raises(Unreachable):
            await listed(channel)
        assert asyncio.get_running_loop().time() - began < following.ELECTION_SECONDS / 2


async def test_a_leader_that_hangs_is_left_when_another_takes_the_lead(
    addresses: list[str],
) -> None:
    """As after SIGSTOP: the connection stands, and nothing will ever be answered on it."""
    async with pair(addresses) as (one, two, channel):
        asked = asyncio.Event()
        never = asyncio.Event()

        async def hang(_: Any) -> Any:
            asked.set()
            await never.wait()

        for method in ("ListEvents", "WatchEvents"):
            one.log.always(method, hang)
        one.worker.always("LeaseRuns", hang)
        two.log.always("ListEvents", TWO)
        two.log.always("WatchEvents", log_pb2.WatchEventsResponse())
        await one.start(leads=True)
        await two.start(leads=False)
        waiting = asyncio.ensure_future(listed(channel))
        await asked.wait()
        stub: Any = log_grpc.EventLogServiceStub(channel)
        watch = stub.WatchEvents(log_pb2.WatchEventsRequest())
        reading = asyncio.ensure_future(watch.read())
        worker: Any = ws_grpc.WorkerServiceStub(channel)
        polling = asyncio.ensure_future(call(worker.LeaseRuns(ws.LeaseRunsRequest())))
        await eventually(lambda: bool(one.worker.calls["LeaseRuns"]))
        await two.lead(True)
        assert (await waiting).next_page_token == "two"
        assert isinstance(await reading, log_pb2.WatchEventsResponse)
        with pytest.raises(Unreachable):
            await polling  # its caller has to say anew what it holds
        assert not two.worker.calls["LeaseRuns"]
        assert channel.leader == two.address


async def test_a_dead_leader_is_left_for_the_next_one(addresses: list[str]) -> None:
    async with pair(addresses) as (one, two, channel):
        one.log.always("ListEvents", ONE)
        two.log.always("ListEvents", TWO)
        await one.start(leads=True)
        await two.start(leads=False)
        assert (await listed(channel)).next_page_token == "one"
        await one.stop()
        assert (await listed(channel)).next_page_token == "two"


async def test_an_answer_of_the_leader_is_not_asked_for_again(addresses: list[str]) -> None:
    async with pair(addresses) as (one, two, channel):
        one.log.always("ListEvents", LaneFull("full"))
        await one.start(leads=True)
        await two.start(leads=False)
        with pytest.raises(LaneFull):
            await listed(channel)
        assert len(one.log.calls["ListEvents"]) == 1


async def test_what_the_leader_said_beats_what_a_standby_says(addresses: list[str]) -> None:
    async with pair(addresses) as (one, two, channel):
        one.log.always("ListEvents", StoreUnavailable("the disk is full"))
        two.refuses(leader=one.address)
        await one.start(leads=False)
        await two.start(leads=False)
        with pytest.raises(StoreUnavailable):
            await listed(channel, timeout=1.0)


async def test_a_watch_goes_on_with_the_new_leader(addresses: list[str]) -> None:
    async with pair(addresses) as (one, two, channel):
        never = asyncio.Event()

        async def events(first: int) -> AsyncIterator[log_pb2.WatchEventsResponse]:
            for sequence in (first, first + 1):
                progress = log_pb2.WatchProgress(sequence=sequence)
                yield log_pb2.WatchEventsResponse(progress=progress)
            await never.wait()

        one.log.always("WatchEvents", lambda request: events(request.after_sequence + 1))
        two.log.always("WatchEvents", lambda request: events(request.after_sequence + 1))
        await one.start(leads=True)
        await two.start(leads=False)
        stub: Any = log_grpc.EventLogServiceStub(channel)
        seen: list[int] = []
        stream = follow(
            lambda after: stub.WatchEvents(log_pb2.WatchEventsRequest(after_sequence=after)),
            lambda message: message.progress.sequence,
            0,
        )
        async with contextlib.aclosing(stream) as messages:  # type: ignore[type-var]
            async for message in messages:
                seen.append(message.progress.sequence)
                if len(seen) == 2:
                    await two.lead(True)
                if len(seen) == 4:
                    break
        assert seen == [1, 2, 3, 4]
        assert two.log.calls["WatchEvents"][0].after_sequence == 2


async def test_cancelling_a_call_reaches_the_leader(addresses: list[str]) -> None:
    async with pair(addresses) as (one, two, channel):
        asked, cancelled = asyncio.Event(), asyncio.Event()

        async def hang(_: Any) -> Any:
            asked.set()
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        one.log.always("ListEvents", hang)
        await one.start(leads=True)
        await two.start(leads=False)
        waiting = asyncio.ensure_future(listed(channel))
        await asked.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.wait_for(cancelled.wait(), 30)


async def test_a_lease_is_not_repeated_but_the_next_goes_elsewhere(addresses: list[str]) -> None:
    async with pair(addresses) as (one, two, channel):
        one.refuses(leader=two.address)
        two.worker.always("LeaseRuns", ws.LeaseRunsResponse())
        await one.start(leads=False)
        await two.start(leads=False)
        worker: Any = ws_grpc.WorkerServiceStub(channel)
        with pytest.raises(ServiceError) as refused:
            await call(worker.LeaseRuns(ws.LeaseRunsRequest()))
        assert isinstance(refused.value, Unreachable)
        await call(worker.LeaseRuns(ws.LeaseRunsRequest()))
        assert len(one.worker.calls["LeaseRuns"]) == len(two.worker.calls["LeaseRuns"]) == 1
