"""One way to a gateway: repeats what may be repeated, follows a leader, resumes streams.

Everything above calls through `Connection` and sees either an answer or an exception of
`svckit.errors`, never an error of the transport.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

import grpc.aio

from conveyor.gateway.v1 import gateway_service_pb2_grpc as gateway_grpc
from conveyor_client.credentials import Tls
from svckit.backoff import full_jitter
from svckit.errors import (
    PASSING,
    NotImplementedYet,
    NotLeader,
    PeerError,
    ServiceError,
    Unreachable,
)
from svckit.grpc.channel import make_channel
from svckit.grpc.status import from_rpc_error

if TYPE_CHECKING:
    Stub = gateway_grpc.GatewayServiceAsyncStub
else:
    Stub = gateway_grpc.GatewayServiceStub

Request = TypeVar("Request")
Response = TypeVar("Response")

SILENCE_SECONDS = 45.0
"""A stream that says nothing for this long is opened again: servers send progress every 15 s."""

Metadata = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to go on trying while a suite does not answer. Times in seconds."""

    first: float = 2.0
    """To reach anything at all: a suite that is not running is said so soon."""
    later: float = 30.0
    """After that: long enough for a service to be started again."""
    longest_pause: float = 1.0
    """Between two tries."""


class Connection:
    """A channel to `address` that heals itself.

    A standby that names its leader moves the connection there; when the leader cannot be reached
    any more, it goes back to `address`.
    """

    def __init__(
        self,
        address: str,
        *,
        metadata: Metadata = (),
        patience: Patience,
        tls: Tls | None = None,
    ) -> None:
        self.home = address
        self.address = address
        self._metadata = tuple(metadata)
        self.patience = patience
        self._credentials = tls.credentials() if tls else None
        self._server_name = tls.server_name if tls else ""
        self._reached = False
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._stubs: dict[str, Stub] = {}

    async def close(self) -> None:
        """End all calls and close all channels."""
        channels, self._channels, self._stubs = self._channels, {}, {}
        for channel in channels.values():
            await channel.close(None)

    async def call(
        self,
        method: Callable[[Stub], grpc.aio.UnaryUnaryMultiCallable[Request, Response]],
        request: Request,
        *,
        repeat: bool = True,
        timeout: float | None = None,
    ) -> Response:
        """Call once, or until it is answered or patience ends.

        `repeat=False` is for what must not be done twice: it is sent once, whatever comes back.
        `timeout` is of one try, in seconds; None means the method's own. Raises `ServiceError`.
        """
        await self._reach()
        tries = _Tries(self, repeat)
        while True:
            try:
                answer = await method(self._stub())(
                    request, timeout=timeout, metadata=self._metadata
                )
            except grpc.aio.AioRpcError as error:
                await tries.failed(self.error(error))
            else:
                return answer

    async def stream(
        self,
        method: Callable[[Stub], grpc.aio.UnaryStreamMultiCallable[Request, Response]],
        request_after: Callable[[str], Request],
        token_of: Callable[[Response], str],
        *,
        resume_token: str = "",
    ) -> AsyncGenerator[Response, None]:
        """Yield what the stream holds, opening it again after the last token when it ends.

        Goes on for ever: a stream that ends well means "reconnect". Leave it with `aclosing`, which
        also ends the call. Patience counts from the last message that came. Raises `ServiceError`.
        """
        await self._reach()
        token = resume_token
        tries = _Tries(self, repeat=True)
        while True:
            call = method(self._stub())(request_after(token), metadata=self._metadata)
            try:
                while True:
                    async with asyncio.timeout(SILENCE_SECONDS):
                        message = await call.read()
                    if message is grpc.aio.EOF:
                        break
                    tries = _Tries(self, repeat=True)
                    yield cast("Response", message)
                    token = token_of(cast("Response", message)) or token
                await tries.ended()
            except TimeoutError:
                await tries.ended()
            except grpc.aio.AioRpcError as error:
                await tries.failed(self.error(error))
            finally:
                # Leaving the loop does not end a call by itself.
                call.cancel()

    async def stream_once(
        self,
        method: Callable[[Stub], grpc.aio.UnaryStreamMultiCallable[Request, Response]],
        request: Request,
    ) -> AsyncGenerator[Response, None]:
        """Yield what one stream holds. For what must not be done twice. Raises `ServiceError`."""
        await self._reach()
        call = method(self._stub())(request, metadata=self._metadata)
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise self.error(error) from error
        finally:
            call.cancel()

    async def _reach(self) -> None:
        """Wait for the first connection: the retries of a channel take too long to say no."""
        if self._reached:
            return
        self._stub()
        try:
            async with asyncio.timeout(self.patience.first):
                await self._channels[self.address].channel_ready()
        except TimeoutError:
            raise Unreachable(f"{self._who} does not answer") from None
        self._reached = True

    def _stub(self) -> Stub:
        stub = self._stubs.get(self.address)
        if stub is None:
            channel = make_channel(
                self.address, credentials=self._credentials, server_name=self._server_name
            )
            self._channels[self.address] = channel
            stub = gateway_grpc.GatewayServiceStub(channel)
            self._stubs[self.address] = stub
        return stub

    def follow(self, error: ServiceError) -> bool:
        """Choose the address of the next try. Returns False when trying again has no point."""
        if isinstance(error, NotLeader):
            # Empty during an election: ask the same one again.
            self.address = error.metadata.get("leader") or self.address
            return True
        if self.address != self.home and (_unavailable(error) or self._is_no_gateway(error)):
            self.address = self.home
            return True
        return _unavailable(error)

    def _is_no_gateway(self, error: ServiceError) -> bool:
        # What the status module makes of a call that the server has never heard of.
        return isinstance(error, NotImplementedYet) and error.metadata.get("feature") == self._who

    def error(self, failure: grpc.aio.AioRpcError) -> ServiceError:
        """Return the exception for a failed call."""
        return from_rpc_error(failure, service=self._who)

    @property
    def _who(self) -> str:
        return f"the gateway at {self.address}"


class _Tries:
    """The tries of one call, or of one stream since its last message."""

    def __init__(self, connection: Connection, repeat: bool) -> None:
        self._connection = connection
        self._repeat = repeat
        self._pauses: Iterator[float] = full_jitter(0.1, connection.patience.longest_pause)
        self._deadline: float | None = None

    async def failed(self, error: ServiceError) -> None:
        """Wait before the next try, or raise `error` when there is none."""
        if not self._repeat or not self._connection.follow(error):
            raise error
        await self._pause(error)

    async def ended(self) -> None:
        """Wait before a stream that ended well is opened again."""
        await self._pause(Unreachable(f"{self._connection.address} ends every stream at once"))

    async def _pause(self, error: ServiceError) -> None:
        now = time.monotonic()
        if self._deadline is None:
            self._deadline = now + self._connection.patience.later
        pause = next(self._pauses)
        if error.retry_after is not None:
            pause = max(pause, min(error.retry_after, self._connection.patience.longest_pause) / 2)
        if now + pause > self._deadline:
            raise error
        await asyncio.sleep(pause)


def _unavailable(error: ServiceError) -> bool:
    """Whether the suite did not answer. That a model or a harness is away is an answer."""
    if isinstance(error, PeerError):
        return error.grpc_code == "UNAVAILABLE"
    return isinstance(error, PASSING)
