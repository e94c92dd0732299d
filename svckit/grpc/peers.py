"""Several processes that serve the same thing, one of which leads, and how to know which.

Three sources say who leads, and none is trusted alone. Health: each peer's watch says `SERVING`
the moment it takes the lead; that reaches us without a call of ours, also when the old leader
hangs and will never say anything again. `NOT_LEADER`: a standby names its leader. Failure: who
does not answer is not asked next. A wrong guess costs one refused call.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from svckit.backoff import full_jitter
from svckit.errors import NotLeader
from svckit.grpc import deadline
from svckit.grpc.status import from_rpc_error
from svckit.logging import get_logger

T = TypeVar("T")
C = TypeVar("C", bound=aio.Call)

_log = get_logger("svckit.grpc.peers")


class Peer:
    """One address, its channel, and the calls that wait there."""

    def __init__(self, address: str, channel: aio.Channel) -> None:
        self.address = address
        self.channel = channel
        self.waiting: set[Any] = set()
        # How often it was left: what began before is not waited for any more.
        self.times_left = 0
        # It said that it does not lead, and has not said otherwise since.
        self.refused = False

    def leave(self) -> None:
        """End all calls that wait: a leader that hangs would keep them until their deadlines."""
        self.times_left += 1
        for call in list(self.waiting):
            call.cancel()


class Try(Generic[C]):
    """A call that was begun with one peer."""

    def __init__(self, peer: Peer, call: C) -> None:
        self.peer = peer
        self.call = call
        self._times_left = peer.times_left

    async def wait(self, answer: Awaitable[T]) -> T:
        """Await an `answer` of the call. Raises `AioRpcError` also when the peer is left."""
        waiting = self.peer.waiting
        waiting.add(self.call)
        try:
            if self._left:
                self.call.cancel()
            return await answer
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._left or (task is not None and task.cancelling()):
                raise
            raise unavailable(f"{self.peer.address} does not lead any more") from None
        finally:
            waiting.discard(self.call)

    @property
    def _left(self) -> bool:
        return self._times_left != self.peer.times_left


class Peers:
    """The addresses of one service. `close` it."""

    def __init__(
        self, addresses: Sequence[str], open_channel: Callable[[str], aio.Channel], health: str
    ) -> None:
        self._peers = [Peer(address, open_channel(address)) for address in addresses]
        self._health = health
        self.current = self._peers[0]
        """Who leads, as far as we know."""
        self._news = asyncio.Event()
        self._watches = [
            deadline.spawn(self._watch(peer), name=f"health of {peer.address}")
            for peer in self._peers
        ]

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._peers)

    async def close(self, grace: float | None) -> None:
        """Close all channels."""
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        for peer in self._peers:
            await peer.channel.close(grace)

    def passing(self, peer: Peer, err: aio.AioRpcError) -> aio.AioRpcError | None:
        """Learn from a failed call: None when `err` is the answer, else what a caller is told if
        no other try has a better outcome. Nobody has a use for who does not lead."""
        told = err
        if err.code() is grpc.StatusCode.FAILED_PRECONDITION:
            refused = from_rpc_error(err)
            if not isinstance(refused, NotLeader):
                return None
            told = unavailable(f"{peer.address} does not lead")
            peer.refused = True
            named = refused.metadata.get("leader", "")
            # Only addresses of the configuration: an answer must not send us anywhere it likes.
            leader = next((p for p in self._peers if p.address == named), None)
            if leader is not None and leader is not peer:
                if self.current is peer:
                    # A leader that was started anew is named until its lease ends, and refuses.
                    self._lead(leader, news=not leader.refused)
                return told
        elif err.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            return None
        if self.current is peer:
            self.current = self._peers[(self._peers.index(peer) + 1) % len(self._peers)]
        return told

    async def pause(self, seconds: float) -> None:
        """Wait before another try, but not longer than until somebody takes the lead."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()
                # Told once; if that try fails too, the pauses grow as without news.
                self._news.clear()

    def _lead(self, leader: Peer, *, news: bool = True) -> None:
        left, self.current = self.current, leader
        if left is not leader:
            _log.info("another leader is followed", leader=leader.address, left=left.address)
            for peer in self._peers:
                if peer is not leader:
                    peer.leave()
        if news:
            self._news.set()

    async def _watch(self, peer: Peer) -> None:
        stub = health_pb2_grpc.HealthStub(peer.channel)
        pauses = full_jitter(0.1, 1.0)
        while True:
            call = stub.Watch(health_pb2.HealthCheckRequest(service=self._health))
            with contextlib.suppress(aio.AioRpcError):
                async for answer in call:
                    pauses = full_jitter(0.1, 1.0)
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        peer.refused = False
                        self._lead(peer)
            await asyncio.sleep(next(pauses))


def unavailable(details: str) -> aio.AioRpcError:
    """An error as of a call that nobody answered."""
    return aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, aio.Metadata(), aio.Metadata(), details=details
    )
