"""Faults on purpose, at a chosen call of a chosen method, on either side of the wire."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import grpc
from grpc import aio

from svckit.errors import ServiceError, Unreachable
from svckit.grpc.status import to_proto, to_trailers

Kind = Literal["fail", "delay", "drop_response"]


@dataclass
class Fault:
    """One fault. `hits` counts how often it struck; `release` ends a delay early."""

    method: str
    kind: Kind
    calls: range
    error: ServiceError = field(default_factory=lambda: Unreachable("injected fault"))
    seconds: float = 0.0
    hits: int = 0
    release: asyncio.Event = field(default_factory=asyncio.Event)


class FaultInjector:
    """Holds the faults and counts calls. Use `server` and `client` with the helpers of tests.

    Methods are named without their service, for example `CompleteRuns`. Calls count from 1, per
    method and side. Counts go on over restarts of a server, since the injector lives in the test.
    Channels repeat calls that fail as unreachable, and each repetition counts.
    """

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self.seen: Counter[tuple[str, str]] = Counter()
        """Calls so far, by side (`server`, `client`) and method."""

    def fail(
        self, method: str, *, nth: int = 1, times: int = 1, error: ServiceError | None = None
    ) -> Fault:
        """Fail calls before anything happens; as if unreachable, unless `error` says otherwise."""
        return self._add(method, "fail", nth, times, error=error)

    def drop_response(self, method: str, *, nth: int = 1, times: int = 1) -> Fault:
        """Let the handler do its work, and lose the answer. Not for streams."""
        return self._add(method, "drop_response", nth, times)

    def delay(self, method: str, seconds: float, *, nth: int = 1, times: int = 1) -> Fault:
        """Hold calls back before the handler starts, until the time or `Fault.release`."""
        return self._add(method, "delay", nth, times, seconds=seconds)

    def clear(self) -> None:
        """Remove all faults; calls that are held back go on."""
        for fault in self._faults:
            fault.release.set()
        self._faults.clear()

    @property
    def server(self) -> aio.ServerInterceptor:
        """Interceptor for `make_server` or `in_process`."""
        return _ServerFaults(self)

    @property
    def client(self) -> list[aio.ClientInterceptor]:
        """Interceptors for `make_channel`, for unary calls and server streams."""
        return [_UnaryFaults(self), _StreamFaults(self)]

    def _add(
        self,
        method: str,
        kind: Kind,
        nth: int,
        times: int,
        *,
        error: ServiceError | None = None,
        seconds: float = 0.0,
    ) -> Fault:
        fault = Fault(method, kind, range(nth, nth + times), seconds=seconds)
        if error is not None:
            fault.error = error
        self._faults.append(fault)
        return fault

    async def strike(self, side: str, method: str) -> Fault | None:
        """Count a call. Raises or waits as told; returns the fault that loses the answer."""
        name = method.rpartition("/")[2]
        self.seen[side, name] += 1
        number = self.seen[side, name]
        lose = None
        for fault in list(self._faults):
            if fault.method != name or number not in fault.calls:
                continue
            fault.hits += 1
            if fault.kind == "fail":
                raise fault.error
            if fault.kind == "delay":
                try:
                    async with asyncio.timeout(fault.seconds):
                        await fault.release.wait()
                except TimeoutError:
                    pass
            else:
                lose = fault
        return lose


class _ServerFaults(aio.ServerInterceptor):
    def __init__(self, faults: FaultInjector) -> None:
        self._faults = faults

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        lost = await self._faults.strike("server", handler_call_details.method)
        handler = await continuation(handler_call_details)
        if lost is None or handler is None or handler.unary_unary is None:
            return handler

        async def lose(request: Any, context: Any) -> Any:
            await handler.unary_unary(request, context)
            raise lost.error

        return grpc.unary_unary_rpc_method_handler(
            lose, handler.request_deserializer, handler.response_serializer
        )


def _rpc_error(error: ServiceError) -> aio.AioRpcError:
    code = grpc.StatusCode[error.grpc_code]
    trailers = aio.Metadata(*to_trailers(to_proto(error)))
    return aio.AioRpcError(code, aio.Metadata(), trailers, details=error.message)


class _UnaryFaults(aio.UnaryUnaryClientInterceptor):
    def __init__(self, faults: FaultInjector) -> None:
        self._faults = faults

    async def intercept_unary_unary(
        self, continuation: Any, client_call_details: Any, request: Any
    ) -> Any:
        try:
            lost = await self._faults.strike("client", _name(client_call_details))
        except ServiceError as err:
            raise _rpc_error(err) from None
        call = await continuation(client_call_details, request)
        if lost is not None:
            await call
            raise _rpc_error(lost.error)
        return call


class _StreamFaults(aio.UnaryStreamClientInterceptor):
    def __init__(self, faults: FaultInjector) -> None:
        self._faults = faults

    async def intercept_unary_stream(
        self, continuation: Any, client_call_details: Any, request: Any
    ) -> Any:
        try:
            await self._faults.strike("client", _name(client_call_details))
        except ServiceError as err:
            raise _rpc_error(err) from None
        return await continuation(client_call_details, request)


def _name(details: Any) -> str:
    method = details.method
    return method.decode() if isinstance(method, bytes) else str(method)
