"""A neighbour that says what the test told it to, over real gRPC."""

from __future__ import annotations

import contextlib
import inspect
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from grpc import aio
from opentelemetry import trace

from svckit.grpc.channel import make_channel
from svckit.grpc.server import bind, make_server

Answer: TypeAlias = Any
"""A message, a list of messages (for a stream), an exception to raise, or a callable that takes the
request and returns one of these, an awaitable of one, or an async iterator of messages."""


class ScriptedServicer:
    """Serves one service of the contract from a script.

    `queue` adds an answer that is used once; `always` sets the one used when none is queued. A call
    without an answer fails `UNIMPLEMENTED`. `calls` holds every request by method, in order. Method
    names are checked, and `verify` fails when a queued answer was not asked for.

    The stub's module must be imported, so that the service is known.
    """

    def __init__(self, service: str) -> None:
        self.service = service
        found = descriptor_pool.Default().FindServiceByName(service)
        self._methods: dict[str, MethodDescriptor] = {m.name: m for m in found.methods}
        self._queued: dict[str, list[Answer]] = defaultdict(list)
        self._always: dict[str, Answer] = {}
        self.calls: dict[str, list[Any]] = defaultdict(list)

    def queue(self, method: str, *answers: Answer) -> None:
        """Answer the next calls of `method` with `answers`, one each."""
        self._known(method)
        self._queued[method].extend(answers)

    def always(self, method: str, answer: Answer) -> None:
        """Answer every call of `method` that finds nothing queued."""
        self._known(method)
        self._always[method] = answer

    def verify(self) -> None:
        """Fail when a queued answer was never used."""
        left = {method: len(answers) for method, answers in self._queued.items() if answers}
        if left:
            raise AssertionError(f"{self.service}: answers never asked for: {left}")

    def add_to(self, server: aio.Server) -> None:
        """Register the service; fits `svckit.service.Registered`."""
        handlers = {name: self._handler(method) for name, method in self._methods.items()}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(self.service, handlers),)
        )

    def _known(self, method: str) -> None:
        if method not in self._methods:
            raise ValueError(f"{self.service} has no method {method}: {sorted(self._methods)}")

    def _handler(self, method: MethodDescriptor) -> Any:
        read = message_factory.GetMessageClass(method.input_type).FromString

        def write(message: Message) -> bytes:
            return message.SerializeToString()

        if method.client_streaming:
            raise NotImplementedError("the contract has no client streams")
        if method.server_streaming:

            async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
                answer = await self._answer(method.name, request, context)
                if hasattr(answer, "__aiter__"):
                    async with contextlib.aclosing(answer) as messages:
                        async for message in messages:
                            yield message
                else:
                    for message in answer if isinstance(answer, list) else [answer]:
                        yield message

            return grpc.unary_stream_rpc_method_handler(
                stream, request_deserializer=read, response_serializer=write
            )

        async def unary(request: Any, context: Any) -> Any:
            return await self._answer(method.name, request, context)

        return grpc.unary_unary_rpc_method_handler(
            unary, request_deserializer=read, response_serializer=write
        )

    async def _answer(self, method: str, request: Any, context: Any) -> Any:
        self.calls[method].append(request)
        queued = self._queued[method]
        answer = queued.pop(0) if queued else self._always.get(method)
        if callable(answer) and not isinstance(answer, Message | type):
            answer = answer(request)
        if inspect.isawaitable(answer):
            answer = await answer
        if isinstance(answer, BaseException):
            raise answer
        if answer is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"no answer scripted for {method}")
        return answer


@contextlib.asynccontextmanager
async def scripted_server(
    *servicers: ScriptedServicer,
    address: str = "127.0.0.1:0",
    channel_options: Callable[[str], aio.Channel] = make_channel,
    verify: bool = True,
    tracer: trace.Tracer | None = None,
) -> AsyncIterator[tuple[str, aio.Channel]]:
    """Serve `servicers` for the block; yields the address and a channel to it.

    Its calls have spans, and its errors name their trace, with a `tracer` only.

    With `verify`, leaving the block without an error checks that the scripts were used up.
    """
    server = make_server(tracer=tracer)
    for servicer in servicers:
        servicer.add_to(server)
    port = bind(server, address)
    await server.start()
    bound = address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"
    channel = channel_options(bound)
    try:
        yield bound, channel
    finally:
        await channel.close()
        await server.stop(None)
    if verify:
        for servicer in servicers:
            servicer.verify()
