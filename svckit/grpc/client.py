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
from opentelemetry import trace

from svckit import conventions as c
from svckit import failpoints, tracecontext
from svckit.grpc import deadline, methods
from svckit.grpc.status import from_rpc_error
from svckit.spanids import SpanIds

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

_ids = SpanIds()
_NOT_SAMPLED = trace.TraceFlags(trace.TraceFlags.DEFAULT)
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
    tracer: trace.Tracer,
    timeout_of: Callable[[str, Any], float | None],
    *,
    begins_traces: bool = True,
) -> list[aio.ClientInterceptor]:
    """One interceptor per call shape, since grpc.aio takes no common one.

    Without `begins_traces` a call that belongs to no trace is none for whom it calls either, but
    for those that bring work: what a service looks after by itself is nobody's request.
    """
    shared = _Calls(tracer, timeout_of, begins_traces)
    return [_UnaryUnary(shared), _UnaryStream(shared), _StreamUnary(shared), _StreamStream(shared)]


class _Calls:
    """Starts calls of any shape."""

    def __init__(
        self,
        tracer: trace.Tracer,
        timeout_of: Callable[[str, Any], float | None],
        begins_traces: bool,
    ) -> None:
        self._tracer = tracer
        self._timeout_of = timeout_of
        self._begins_traces = begins_traces

    async def start(self, continuation: Any, details: Any, request: Any, *, streams: bool) -> Any:
        raw: Any = details.method  # bytes or text, whatever the stubs say
        method: str = raw.decode() if isinstance(raw, bytes) else raw
        # A timeout given by the caller, also a long one, beats the default of the method.
        timeout = details.timeout
        if timeout is None and not streams:
            timeout = self._timeout_of(method, request)
        metadata = aio.Metadata(*(details.metadata or ()))
        span = self._span_of(method)
        for key, value in tracecontext.headers_of(span or self._caller()).items():
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

    def _span_of(self, method: str) -> trace.Span | None:
        """The span of a call; None for one that has none."""
        if not methods.is_traced(method):
            return None
        if not (
            self._begins_traces
            or methods.begins_work(method)
            or trace.get_current_span().get_span_context().is_valid
        ):
            return None
        return self._tracer.start_span(
            c.rpc_span(method),
            kind=trace.SpanKind.CLIENT,
            attributes={c.RPC_SYSTEM: "grpc", c.RPC_METHOD: method},
        )

    def _caller(self) -> trace.Span:
        """What a call without a span belongs to."""
        current = trace.get_current_span()
        if self._begins_traces or current.get_span_context().is_valid:
            return current
        # Else whom it calls would take it for the beginning of something.
        return trace.NonRecordingSpan(
            trace.SpanContext(
                _ids.generate_trace_id(), _ids.generate_span_id(), False, _NOT_SAMPLED
            )
        )


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
    span.set_attribute(c.RPC_STATUS_CODE, code.name)
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
