"""Lets only the leader answer: an interceptor around every method of the contract.

An answer is checked twice, before its work and right before it leaves: in between the process may
have been stopped, or may have lost the lead, and then what it found is of yesterday.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from grpc import aio

from scheduler_svc.leadership import Leadership
from scheduler_svc.rpc import CallContext

_OURS = "/conveyor."


class LeaderGuard(aio.ServerInterceptor):
    """Answers for a standby. Health and reflection are not touched."""

    def __init__(self, leadership: Leadership) -> None:
        self._leadership = leadership
        self._guarded: dict[str, tuple[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Return the handler of the call, guarded."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(_OURS):
            return handler
        # The same object for every call of a method, so that others can tell that it is the same.
        known, guarded = self._guarded.get(method, (None, None))
        if known is not handler:
            guarded = self._guard(handler)
            self._guarded[method] = (handler, guarded)
        return guarded

    def _guard(self, handler: Any) -> Any:
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._stream(handler.unary_stream),
                handler.request_deserializer,
                handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(handler.unary_unary),
            handler.request_deserializer,
            handler.response_serializer,
        )

    def _unary(self, inner: Any) -> Callable[..., Awaitable[Any]]:
        check = self._leadership.check

        async def behavior(request: Any, context: CallContext) -> Any:
            began = check()
            try:
                response = await inner(request, context)
            except Exception:
                check(began)  # what went wrong for one that leads no more is no answer either
                raise
            check(began)
            return response

        return behavior

    def _stream(self, inner: Any) -> Callable[..., AsyncIterator[Any]]:
        check = self._leadership.check

        async def behavior(request: Any, context: CallContext) -> AsyncIterator[Any]:
            began = check()
            try:
                async with contextlib.aclosing(inner(request, context)) as responses:
                    async for response in responses:
                        check(began)
                        yield response
            except Exception:
                check(began)
                raise
            check(began)

        return behavior
