"""The server interceptor: span, deadline, errors and cleanup of every handler, in one place.

Handlers raise `ServiceError` and never touch status codes. Whatever else they raise is logged here
with a request id, and the peer is told that id and nothing more.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import grpc
from grpc import aio
from opentelemetry import context as otel_context
from opentelemetry import trace

from svckit import conventions, tracecontext
from svckit.errors import PASSING, Internal, NotImplementedYet, ServiceError
from svckit.grpc import deadline, methods
from svckit.grpc.client import ERROR_CODES
from svckit.grpc.status import code_of, from_rpc_error, to_proto, to_trailers
from svckit.ids import new_ulid
from svckit.logging import get_logger, where
from svckit.metrics import NOBODY, Metrics, definitions

_log = get_logger("svckit.grpc")

ServicerContext: TypeAlias = "aio.ServicerContext[Any, Any]"

_FACTORIES: dict[tuple[bool, bool], Callable[..., Any]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class ServerBoundary(aio.ServerInterceptor):
    """Wraps all four kinds of handlers, and streams of both styles (generator and `write`)."""

    def __init__(self, tracer: trace.Tracer, metrics: Metrics = NOBODY) -> None:
        self._tracer = tracer
        self._metrics = metrics
        self._calls = metrics.counter(definitions.GRPC_CALLS)
        self._seconds = metrics.histogram(definitions.GRPC_SECONDS)
        self._open = metrics.gauge(definitions.GRPC_OPEN)
        self.knows: Callable[[Sequence[str]], bool] | None = None
        """Tells by a call's `authorization` whether it may say to which trace it belongs."""
        self._active: set[asyncio.Task[Any]] = set()
        # Wrapped once, not per call: method -> (handler, the same inside the boundary).
        self._wrapped: dict[str, tuple[Any, Any]] = {}

    async def settled(self, timeout: float) -> None:
        """Wait until no handler runs: `Server.stop` does not wait for those already aborted."""
        if self._active:
            await asyncio.wait(set(self._active), timeout=timeout)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the handler of the call, wrapped; None when the method is unknown."""
        method = handler_call_details.method
        try:
            handler = await continuation(handler_call_details)
        except Exception as err:
            # An interceptor inside this one refused: answer as if the handler had.
            return grpc.unary_unary_rpc_method_handler(self._refusal(method, err))
        if handler is None:
            return None
        known, wrapped = self._wrapped.get(method, (None, None))
        if known is not handler:
            wrapped = self._wrap(handler, method)
            self._wrapped[method] = (handler, wrapped)
        return wrapped

    def _wrap(self, handler: Any, method: str) -> Any:
        inner = (
            handler.unary_unary
            or handler.unary_stream
            or handler.stream_unary
            or handler.stream_stream
        )
        factory = _FACTORIES[handler.request_streaming, handler.response_streaming]
        return factory(
            self._inside(
                _streaming(inner) if handler.response_streaming else inner,
                method,
                streams=handler.request_streaming or handler.response_streaming,
            ),
            handler.request_deserializer,
            handler.response_serializer,
        )

    def _refusal(self, method: str, err: Exception) -> Any:
        async def refuse(_: bytes, context: ServicerContext) -> bytes:
            raise err

        return self._inside(refuse, method)

    def _inside(
        self,
        inner: Callable[[Any, ServicerContext], Any],
        method: str,
        *,
        streams: bool = False,
    ) -> Callable[[Any, ServicerContext], Awaitable[Any]]:
        traced = methods.is_traced(method)
        label = methods.short_name(method)
        timed = self._metrics.listening and not streams and methods.ends_soon(method)
        name = conventions.rpc_span(method)
        attributes = {conventions.RPC_SYSTEM: "grpc", conventions.RPC_METHOD: method}

        async def behavior(request: Any, context: ServicerContext) -> Any:
            task = asyncio.current_task()
            assert task is not None
            self._active.add(task)
            scope, links = self._parent(context)
            span: trace.Span = trace.INVALID_SPAN
            if traced:
                span = self._tracer.start_span(
                    name,
                    context=scope,
                    kind=trace.SpanKind.SERVER,
                    attributes=attributes,
                    links=links,
                )
                scope = trace.set_span_in_context(span, scope)
            token = otel_context.attach(scope)
            code = grpc.StatusCode.OK
            began = time.perf_counter() if timed else 0.0
            self._open.add(label)
            try:
                with deadline.scope(context.time_remaining()):
                    result = inner(request, context)
                    return await result if inspect.isawaitable(result) else result
            except asyncio.CancelledError:
                code = _cancelled_code(context)
                raise
            except aio.AbortError:
                code = _set_code(context) or grpc.StatusCode.UNKNOWN
                raise
            except Exception as err:
                if context.done() or type(err).__name__ == "ExecuteBatchError":
                    # The client went away in the middle of a write.
                    code = _cancelled_code(context)
                    raise asyncio.CancelledError from err
                request_id = ""
                mapped = _as_service_error(err, method, context)
                if mapped is None:
                    mapped, request_id = Internal("internal error"), new_ulid()
                    # Not `record_exception`: it writes the exception's text into the span.
                    span.add_event(conventions.EXCEPTION, _of_exception(err))
                    _log.error("call failed", method=method, request_id=request_id, exc_info=err)
                trace_id = tracecontext.current_id(scope)
                status = to_proto(mapped, request_id=request_id, trace_id=trace_id)
                code = code_of(status)
                span.set_attribute(conventions.ERROR_TYPE, mapped.reason)
                # Whoever answers that something else is away need not be asked again at once.
                trailers = to_trailers(status, final=not isinstance(mapped, PASSING))
                await context.abort(code, status.message, trailers)
            finally:
                self._active.discard(task)
                self._open.add(label, by=-1)
                self._calls.add(label, code.name)
                if timed:
                    self._seconds.observe(time.perf_counter() - began, label)
                span.set_attribute(conventions.RPC_STATUS_CODE, code.name)
                if code in ERROR_CODES:
                    span.set_status(trace.StatusCode.ERROR, code.name)
                otel_context.detach(token)
                span.end()

        return behavior

    def _parent(self, context: ServicerContext) -> tuple[otel_context.Context, list[trace.Link]]:
        """What the caller sent of its trace, if it may."""
        sent = [(k, v) for k, v in context.invocation_metadata() or () if isinstance(v, str)]
        headers = dict(sent)
        if self.knows is None or "traceparent" not in headers:
            return tracecontext.caller_of(headers), []
        known = self.knows([value for name, value in sent if name == "authorization"])
        return (tracecontext.caller_of(headers), []) if known else tracecontext.stranger_of(headers)


def _streaming(inner: Any) -> Callable[[Any, ServicerContext], Awaitable[None]]:
    """A stream of either style, as a coroutine."""

    async def drive(request: Any, context: ServicerContext) -> None:
        result = inner(request, context)
        if inspect.isawaitable(result):
            await result
            return
        # Left to itself, grpc.aio would finalise a cancelled generator in another task.
        async with contextlib.aclosing(result) as responses:
            async for response in responses:
                await context.write(response)

    return drive


def _of_exception(err: Exception) -> conventions.Attributes:
    return {
        conventions.EXCEPTION_TYPE: type(err).__qualname__,
        conventions.EXCEPTION_STACKTRACE: where(err),
    }


def _as_service_error(err: Exception, method: str, context: ServicerContext) -> ServiceError | None:
    """What the peer may know of `err`; None when that is nothing."""
    if isinstance(err, ServiceError):
        return None if isinstance(err, Internal) else err
    if isinstance(err, aio.AioRpcError):
        mapped = from_rpc_error(err)
        return None if isinstance(mapped, Internal) else mapped
    if isinstance(err, NotImplementedError) and _set_code(context) is grpc.StatusCode.UNIMPLEMENTED:
        # The generated base class: a method of the contract that this release does not have.
        name = method.rpartition("/")[2]
        return NotImplementedYet(
            f"{name} is not available in this release", metadata={"feature": name}
        )
    return None


def _set_code(context: ServicerContext) -> grpc.StatusCode | None:
    code: Any = context.code()
    if isinstance(code, grpc.StatusCode):
        return code
    return next((known for known in grpc.StatusCode if known.value[0] == code), None)


def _cancelled_code(context: ServicerContext) -> grpc.StatusCode:
    left = context.time_remaining()
    if left is not None and left <= 0:
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return grpc.StatusCode.CANCELLED
