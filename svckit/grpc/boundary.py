"""The server interceptor: span, deadline, errors and cleanup of every handler, in one place.

Handlers raise `ServiceError` and never touch status codes. Whatever else they raise is logged here
with a request id, and the peer is told that id and nothing more.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from grpc import aio
from opentelemetry import context as otel_context
from opentelemetry import propagate, trace

from svckit.errors import Internal, NotImplementedYet, ServiceError
from svckit.grpc import deadline, methods
from svckit.grpc.client import ERROR_CODES
from svckit.grpc.status import code_of, from_rpc_error, to_proto, to_trailers
from svckit.ids import new_ulid
from svckit.logging import get_logger

_log = get_logger("svckit.grpc")

_FACTORIES: dict[tuple[bool, bool], Callable[..., Any]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class ServerBoundary(aio.ServerInterceptor):
    """Wraps all four kinds of handlers, and streams of both styles (generator and `write`)."""

    def __init__(self, tracer: trace.Tracer) -> None:
        self._tracer = tracer
        self._active: set[asyncio.Task[Any]] = set()

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
        try:
            handler = await continuation(handler_call_details)
        except Exception as err:
            # An interceptor inside this one refused: answer as if the handler had.
            return grpc.unary_unary_rpc_method_handler(self._refusal(handler_call_details, err))
        if handler is None:
            return None
        inner = (
            handler.unary_unary
            or handler.unary_stream
            or handler.stream_unary
            or handler.stream_stream
        )
        drive = self._stream if handler.response_streaming else self._unary
        factory = _FACTORIES[handler.request_streaming, handler.response_streaming]
        return factory(
            drive(inner, handler_call_details.method),
            handler.request_deserializer,
            handler.response_serializer,
        )

    def _unary(self, inner: Any, method: str) -> Callable[..., Awaitable[Any]]:
        async def behavior(request: Any, context: aio.ServicerContext[Any, Any]) -> Any:
            async with self._scope(method, context):
                result = inner(request, context)
                return await result if inspect.isawaitable(result) else result

        return behavior

    def _stream(self, inner: Any, method: str) -> Callable[..., Awaitable[None]]:
        async def behavior(request: Any, context: aio.ServicerContext[Any, Any]) -> None:
            async with self._scope(method, context):
                result = inner(request, context)
                if inspect.isawaitable(result):
                    await result
                    return
                # Left to itself, grpc.aio would finalise a cancelled generator in another task.
                async with contextlib.aclosing(result) as responses:
                    async for response in responses:
                        await context.write(response)

        return behavior

    def _refusal(self, details: grpc.HandlerCallDetails, err: Exception) -> Any:
        async def refuse(_: bytes, context: aio.ServicerContext[Any, Any]) -> bytes:
            async with self._scope(details.method, context):
                raise err

        return refuse

    @contextlib.asynccontextmanager
    async def _scope(
        self, method: str, context: aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[None]:
        task = asyncio.current_task()
        assert task is not None
        self._active.add(task)
        metadata = context.invocation_metadata() or ()
        parent = propagate.extract({k: v for k, v in metadata if isinstance(v, str)})
        span: trace.Span = trace.INVALID_SPAN
        if methods.is_traced(method):
            span = self._tracer.start_span(
                method.lstrip("/"),
                context=parent,
                kind=trace.SpanKind.SERVER,
                attributes={"rpc.system": "grpc", "rpc.method": method},
            )
            token = otel_context.attach(trace.set_span_in_context(span, parent))
        else:
            token = otel_context.attach(parent)
        code = grpc.StatusCode.OK
        try:
            with deadline.scope(context.time_remaining()):
                yield
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
                span.record_exception(err)
                _log.error("call failed", method=method, request_id=request_id, exc_info=err)
            status = to_proto(mapped, request_id=request_id)
            code = code_of(status)
            span.set_attribute("error.type", mapped.reason)
            await context.abort(code, status.message, to_trailers(status))
        finally:
            self._active.discard(task)
            span.set_attribute("rpc.response.status_code", code.name)
            if code in ERROR_CODES:
                span.set_status(trace.StatusCode.ERROR, code.name)
            otel_context.detach(token)
            span.end()


def _as_service_error(
    err: Exception, method: str, context: aio.ServicerContext[Any, Any]
) -> ServiceError | None:
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


def _set_code(context: aio.ServicerContext[Any, Any]) -> grpc.StatusCode | None:
    code: Any = context.code()
    if isinstance(code, grpc.StatusCode):
        return code
    return next((known for known in grpc.StatusCode if known.value[0] == code), None)


def _cancelled_code(context: aio.ServicerContext[Any, Any]) -> grpc.StatusCode:
    left = context.time_remaining()
    if left is not None and left <= 0:
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return grpc.StatusCode.CANCELLED
