"""A channel to several addresses that calls whoever leads, and goes along when the lead changes.

Stubs take it for any other channel. Unary calls are repeated elsewhere as far as the contract
allows (`svckit.grpc.methods`), until their time is over; the time in which nobody leads is given on
top of a method's own timeout, but never beyond the deadline of the request being served. A stream
is opened elsewhere until its first message has come; after that it fails as `UNAVAILABLE`, and
whoever follows it resumes from its position.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Sequence
from types import TracebackType
from typing import Any, NoReturn, cast

import grpc
from grpc import aio

from svckit.backoff import full_jitter
from svckit.grpc import deadline, methods
from svckit.grpc.peers import Peer, Peers, Try

ELECTION_SECONDS = 20.0
"""How much longer than usual a call goes on trying: more than it takes a standby to take over."""
LEADERS_OF = "conveyor.scheduler.v1.SchedulerService"
"""The service whose health says who leads."""


class FollowingChannel(aio.Channel):
    """See the module. `open_channel` opens a plain channel to one address, without retries."""

    def __init__(
        self, addresses: Sequence[str], open_channel: Callable[[str], aio.Channel]
    ) -> None:
        self._peers = Peers(addresses, open_channel, LEADERS_OF)

    @property
    def leader(self) -> str:
        """The address that is called now."""
        return self._peers.current.address

    async def __aenter__(self) -> FollowingChannel:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Close all connections; calls under way are cancelled."""
        await self._peers.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """State of the connection to the leader."""
        return self._peers.current.channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Wait for another state of the connection to the leader."""
        await self._peers.current.channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Wait for a connection to any of the addresses."""
        waiting = [asyncio.ensure_future(peer.channel.channel_ready()) for peer in self._peers]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    def unary_unary(self, method: Any, *how: Any, **named: Any) -> Any:
        """See `aio.Channel`."""
        name = _text(method)
        calls = {peer: peer.channel.unary_unary(method, *how, **named) for peer in self._peers}

        def start(request: Any, *, timeout: float | None = None, **options: Any) -> FollowedCall:
            return FollowedCall(_Tries(self._peers, calls, timeout), name, request, options)

        return start

    def unary_stream(self, method: Any, *how: Any, **named: Any) -> Any:
        """See `aio.Channel`."""
        calls = {peer: peer.channel.unary_stream(method, *how, **named) for peer in self._peers}

        def start(request: Any, *, timeout: float | None = None, **options: Any) -> FollowedStream:
            return FollowedStream(_Tries(self._peers, calls, timeout), request, options)

        return start

    def stream_unary(self, *_: Any, **__: Any) -> NoReturn:
        """Not for requests that are streams: they cannot be sent twice."""
        raise NotImplementedError("no method of the contract has a stream of requests")

    def stream_stream(self, *_: Any, **__: Any) -> NoReturn:
        """Not for requests that are streams: they cannot be sent twice."""
        raise NotImplementedError("no method of the contract has a stream of requests")


class _Tries:
    """The tries of one call: where, for how long, and whether another one makes sense."""

    def __init__(self, peers: Peers, calls: dict[Peer, Any], timeout: float | None) -> None:
        self._peers = peers
        self._calls = calls
        self._timeout = timeout
        self._pauses: Iterator[float] = full_jitter(0.05, 0.5)
        self._end = 0.0
        self._told: aio.AioRpcError | None = None

    def begin(self, once: float | None) -> None:
        """Count the time from now. `once`: what one try may take, if the caller did not say."""
        patience = self._timeout
        if patience is None:
            self._timeout = once
            patience = (once or 0.0) + ELECTION_SECONDS
        whole = deadline.tightest(patience)
        assert whole is not None
        self._end = self._now() + whole

    def start(self, request: Any, options: dict[str, Any]) -> Try[Any]:
        """Call whoever leads now, as far as we know."""
        peer = self._peers.current
        timeout = self._timeout
        if timeout is not None:
            timeout = min(timeout, max(0.0, self._end - self._now()))
        return Try(peer, self._calls[peer](request, timeout=timeout, **options))

    async def failed(self, peer: Peer, err: aio.AioRpcError, *, repeat: bool = True) -> None:
        """Wait for the next try. Raises what the caller is told when there is none."""
        told = self._peers.passing(peer, err)
        if told is None:
            raise err
        # What a leader said is worth more than that a standby does not lead.
        if told is err or self._told is None:
            self._told = told
        pause = next(self._pauses)
        if not repeat or self._now() + pause >= self._end:
            raise self._told from err
        await self._peers.pause(pause)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


class FollowedCall(aio.UnaryUnaryCall[Any, Any]):
    """A unary call. It begins when it is made, as all calls do."""

    def __init__(self, tries: _Tries, method: str, request: Any, options: dict[str, Any]) -> None:
        tries.begin(methods.default_timeout(method, request))
        self._last: aio.UnaryUnaryCall[Any, Any] | None = None
        self._task = asyncio.create_task(
            self._carry(tries, request, options, methods.is_repeatable(method)),
            name=f"call {method}",
        )
        # Heard: nobody has to await a call.
        self._task.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _carry(
        self, tries: _Tries, request: Any, options: dict[str, Any], repeat: bool
    ) -> Any:
        while True:
            current = tries.start(request, options)
            self._last = current.call
            try:
                return await current.wait(current.call)
            except aio.AioRpcError as err:
                await tries.failed(current.peer, err, repeat=repeat)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._task.__await__()

    def cancel(self) -> bool:
        """See `aio.Call`."""
        return self._task.cancel()

    def cancelled(self) -> bool:
        """See `aio.Call`."""
        return self._task.cancelled()

    def done(self) -> bool:
        """See `aio.Call`."""
        return self._task.done()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """See `aio.Call`."""
        self._task.add_done_callback(lambda _: callback(self))

    def time_remaining(self) -> float | None:
        """See `aio.Call`; of the present try."""
        return self._last.time_remaining() if self._last is not None else None

    async def wait_for_connection(self) -> None:
        """Return at once: the connection may be another one a moment later."""

    async def initial_metadata(self) -> aio.Metadata:
        """See `aio.Call`; of the last try, as the three below."""
        return await (await self._ended()).initial_metadata()

    async def trailing_metadata(self) -> aio.Metadata:
        """See `aio.Call`."""
        return await (await self._ended()).trailing_metadata()

    async def code(self) -> grpc.StatusCode:
        """See `aio.Call`."""
        return await (await self._ended()).code()

    async def details(self) -> str:
        """See `aio.Call`."""
        return await (await self._ended()).details()

    async def _ended(self) -> aio.UnaryUnaryCall[Any, Any]:
        await asyncio.wait([self._task])
        if self._last is None:
            raise asyncio.CancelledError  # before its first try
        return self._last


class FollowedStream(aio.UnaryStreamCall[Any, Any]):
    """A stream of responses, with one leader from its first message on."""

    def __init__(self, tries: _Tries, request: Any, options: dict[str, Any]) -> None:
        tries.begin(None)
        self._tries = tries
        self._request = request
        self._options = options
        self._begun = False
        self._cancelled = False
        self._try = tries.start(request, options)

    async def read(self) -> Any:
        """See `aio.UnaryStreamCall`."""
        while True:
            try:
                message = await self._try.wait(self._call.read())
            except aio.AioRpcError as err:
                await self._tries.failed(self._try.peer, err, repeat=not self._begun)
                if self._cancelled:
                    raise asyncio.CancelledError from None
                self._try = self._tries.start(self._request, self._options)
            else:
                self._begun = True
                return message

    @property
    def _call(self) -> aio.UnaryStreamCall[Any, Any]:
        return cast("aio.UnaryStreamCall[Any, Any]", self._try.call)

    async def _messages(self) -> AsyncIterator[Any]:
        while (message := await self.read()) is not aio.EOF:
            yield message

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._messages()

    def cancel(self) -> bool:
        """See `aio.Call`."""
        self._cancelled = True
        return self._call.cancel()

    def cancelled(self) -> bool:
        """See `aio.Call`."""
        return self._cancelled or self._call.cancelled()

    def done(self) -> bool:
        """See `aio.Call`."""
        return self._call.done()

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """See `aio.Call`; of the present try, as all below."""
        self._call.add_done_callback(lambda _: callback(self))

    def time_remaining(self) -> float | None:
        """See `aio.Call`."""
        return self._call.time_remaining()

    async def wait_for_connection(self) -> None:
        """See `aio.Call`."""
        await self._call.wait_for_connection()

    async def initial_metadata(self) -> aio.Metadata:
        """See `aio.Call`."""
        return await self._call.initial_metadata()

    async def trailing_metadata(self) -> aio.Metadata:
        """See `aio.Call`."""
        return await self._call.trailing_metadata()

    async def code(self) -> grpc.StatusCode:
        """See `aio.Call`."""
        return await self._call.code()

    async def details(self) -> str:
        """See `aio.Call`."""
        return await self._call.details()


def _text(method: Any) -> str:
    return method.decode() if isinstance(method, bytes) else str(method)
