"""Client interceptors: deadline, trace context and one span per call; and error mapping.

They await nothing but the continuation. Anything else breaks cancellation (the server would never
be told) or the end of the span; see the done callback below.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc
from grpc import aio
from opentelemetry import propagate, trace

from svckit import failpoints
from svckit.grpc import deadline, methods
from svckit.grpc.status import from_rpc_error

T = TypeVar("T")

ERROR_CODES = frozenset(
    {
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
    }
)
"""Codes that mean a fault of the server rather than an answer to the caller."""

_finishing: set[asyncio.Task[None]] = set()


@asynccontextmanager
async def mapped_errors(service: str = "") -> AsyncIterator[None]:
    """Turn a failed call inside the block into its `ServiceError`."""
    try:
        yield
    except aio.AioRpcError as err:
        raise from_rpc_error(err, service=service) from err


async def call(rpc: Awaitable[T], *, service: str = "") -> T:
    """Await a unary call; a failure is raised as its `ServiceError`."""
    try:
        return await rpc
    except aio.AioRpcError as err:
        raise from_rpc_error(err, service=service) from err


def interceptors(
    tracer: trace.Tracer, timeout_of: Callable[[str, Any], float | None]
) -> list[aio.ClientInterceptor]:
    """One interceptor per call shape, since grpc.aio takes no common one."""
    shared = _Calls(tracer, timeout_of)
    return [_UnaryUnary(shared), _UnaryStream(shared), _StreamUnary(shared), _StreamStream(shared)]


class _Calls:
    """Starts calls of any shape."""

    def __init__(
        self, tracer: trace.Tracer, timeout_of: Callable[[str, Any], float | None]
    ) -> None:
        self._tracer = tracer
        self._timeout_of = timeout_of

    async def start(self, continuation: Any, details: Any, request: Any, *, streams: bool) -> Any:
        raw: Any = details.method  # bytes or text, whatever the stubs say
        method: str = raw.decode() if isinstance(raw, bytes) else raw
        # A timeout given by the caller, also a long one, beats the default of the method.
        timeout = details.timeout
        if timeout is None and not streams:
            timeout = self._timeout_of(method, request)
        metadata = aio.Metadata(*(details.metadata or ()))
        span, carrier = None, dict[str, str]()
        if methods.is_traced(method):
            span = self._tracer.start_span(
                method.lstrip("/"),
                kind=trace.SpanKind.CLIENT,
                attributes={"rpc.system": "grpc", "rpc.method": method},
            )
            propagate.inject(carrier, context=trace.set_span_in_context(span))
        else:
            propagate.inject(carrier)
        for key, value in carrier.items():
            metadata.add(key, value)
        details = details._replace(metadata=metadata, timeout=deadline.tightest(timeout))
        place = failpoints.present()
        if place:
            failpoints.failpoint(_point(method, "unsent"))
        try:
            started = await continuation(details, request)
        except BaseException:
            if span is not None:
                span.end()
            raise
        if span is not None:
            ends = span  # narrowed for the closure
            started.add_done_callback(lambda _: _end_span(ends, started))
        if place:
            # The answer is here, and whoever waits for it does not know yet.
            answered = _point(method, "answered")
            started.add_done_callback(lambda _: failpoints.failpoint(answered, place))
        return started


def _point(method: str, moment: str) -> str:
    return f"call.{method.rpartition('/')[2]}.{moment}"


def _end_span(span: trace.Span, done: Any) -> None:
    """End the span of a finished call: success, error, cancellation and deadline alike.

    The code of a call is only to be had from a coroutine. That of a finished call answers without
    waiting, so one step is enough and the span ends now, not in a task that a closing loop drops.
    """
    first = done.code()
    try:
        first.send(None)
    except StopIteration as answer:
        _record(span, answer.value)
        return
    first.close()

    async def later() -> None:
        _record(span, await done.code())

    task = asyncio.get_running_loop().create_task(later())
    _finishing.add(task)
    task.add_done_callback(_finishing.discard)


def _record(span: trace.Span, code: grpc.StatusCode) -> None:
    span.set_attribute("rpc.response.status_code", code.name)
    if code is not grpc.StatusCode.OK:
        span.set_status(trace.StatusCode.ERROR, code.name)
    span.end()


class _UnaryUnary(aio.UnaryUnaryClientInterceptor):
    def __init__(self, calls: _Calls) -> None:
        self._calls = calls

    async def intercept_unary_unary(
        self, continuation: Any, client_call_details: Any, request: Any
    ) -> Any:
        return await self._calls.start(continuation, client_call_details, request, streams=False)


class _UnaryStream(aio.UnaryStreamClientInterceptor):
    def __init__(self, calls: _Calls) -> None:
        self._calls = calls

    async def intercept_unary_stream(
        self, continuation: Any, client_call_details: Any, request: Any
    ) -> Any:
        return await self._calls.start(continuation, client_call_details, request, streams=True)


class _StreamUnary(aio.StreamUnaryClientInterceptor):
    def __init__(self, calls: _Calls) -> None:
        self._calls = calls

    async def intercept_stream_unary(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        return await self._calls.start(
            continuation, client_call_details, request_iterator, streams=True
        )


class _StreamStream(aio.StreamStreamClientInterceptor):
    def __init__(self, calls: _Calls) -> None:
        self._calls = calls

    async def intercept_stream_stream(
        self, continuation: Any, client_call_details: Any, request_iterator: Any
    ) -> Any:
        return await self._calls.start(
            continuation, client_call_details, request_iterator, streams=True
        )
