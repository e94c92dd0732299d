"""What the boundary promises, over real servers and channels: cancellation reaches the other side,
spans end once, deadlines are passed on inside one request only, and errors carry details and no
secrets. Messages are plain bytes; what is promised does not depend on the contract."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
from grpc import aio
from opentelemetry.trace import format_trace_id

from svckit.errors import (
    Internal,
    InvalidField,
    LaneFull,
    NotImplementedYet,
    ServiceError,
    Unreachable,
    invalid_field,
)
from svckit.grpc import deadline
from svckit.grpc.boundary import ServerBoundary
from svckit.grpc.channel import make_channel
from svckit.grpc.client import call
from svckit.grpc.server import PortInUse, bind, make_server
from svckit.grpc.status import DETAILS_KEY, from_proto, from_rpc_error, to_proto
from svckit.testing import eventually, memory_tracer, span_tree

KINDS = {
    "uu": grpc.unary_unary_rpc_method_handler,
    "us": grpc.unary_stream_rpc_method_handler,
    "su": grpc.stream_unary_rpc_method_handler,
    "ss": grpc.stream_stream_rpc_method_handler,
}


class Peer:
    """A server of the given handlers and a channel to it, with one exporter for both."""

    def __init__(self) -> None:
        self.tracer, self.exporter = memory_tracer()
        self.boundary = ServerBoundary(self.tracer)
        self.address = ""
        self.channel: aio.Channel

    def unary(self, name: str, **options: Any) -> Any:
        return self.channel.unary_unary(f"/test.Test/{name}")(b"", **options)

    def stream(self, name: str, **options: Any) -> Any:
        return self.channel.unary_stream(f"/test.Test/{name}")(b"", **options)

    def spans(self) -> str:
        return span_tree(self.exporter, attributes=["rpc.response.status_code"])


@contextlib.asynccontextmanager
async def peer(
    handlers: dict[str, tuple[str, Any]], interceptors: list[aio.ServerInterceptor] | None = None
) -> AsyncIterator[Peer]:
    made = Peer()
    server = make_server(boundary=made.boundary, interceptors=interceptors or [])
    methods = {name: KINDS[kind](fn) for name, (kind, fn) in handlers.items()}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", methods),))
    made.address = f"127.0.0.1:{bind(server, '127.0.0.1:0')}"
    await server.start()
    made.channel = make_channel(made.address, tracer=made.tracer)
    try:
        yield made
    finally:
        await made.channel.close()
        await server.stop(None)
        await made.boundary.settled(1)


class Held:
    """A handler that waits for ever and remembers how it ended."""

    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self.same_task = False

    async def unary(self, _: bytes, __: Any) -> bytes:
        await self._wait()
        return b""

    async def generate(self, _: bytes, __: Any) -> AsyncIterator[bytes]:
        mine = asyncio.current_task()
        try:
            yield b"first"
            self.started.set()
            while True:
                yield b"x" * 100_000  # blocks in a write as soon as nobody reads
        finally:
            await asyncio.sleep(0)  # cleanup may await
            self.same_task = asyncio.current_task() is mine
            self.ended.set()

    async def write(self, _: bytes, context: Any) -> None:
        mine = asyncio.current_task()
        try:
            await context.write(b"first")
            self.started.set()
            while True:
                await context.write(b"x" * 100_000)
        finally:
            self.same_task = asyncio.current_task() is mine
            self.ended.set()

    async def _wait(self) -> None:
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()


async def arrived(held: Held) -> None:
    async with asyncio.timeout(30):
        await held.ended.wait()


# Cancellation


@pytest.mark.parametrize("how", ["task", "call", "timeout"])
async def test_cancelling_a_unary_call_reaches_the_server(how: str) -> None:
    held = Held()
    async with peer({"Hold": ("uu", held.unary)}) as p:
        rpc = p.unary("Hold", timeout=30)
        waiting = asyncio.ensure_future(call(rpc))
        await held.started.wait()
        if how == "task":
            waiting.cancel()
        elif how == "call":
            rpc.cancel()
        else:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await asyncio.shield(waiting)
            waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await arrived(held)
        await eventually(lambda: len(p.exporter.get_finished_spans()) == 2)
    assert p.spans() == (
        "CLIENT Test/Hold rpc.response.status_code=CANCELLED ERROR\n"
        "  SERVER Test/Hold rpc.response.status_code=CANCELLED"
    )


@pytest.mark.parametrize("style", ["generate", "write"])
@pytest.mark.parametrize("how", ["cancel", "task"])
async def test_leaving_a_stream_reaches_the_server(style: str, how: str) -> None:
    held = Held()
    async with peer({"Hold": ("us", getattr(held, style))}) as p:
        rpc = p.stream("Hold")

        async def read() -> None:
            async for _ in rpc:
                if held.started.is_set():
                    await asyncio.Event().wait()

        reader = asyncio.create_task(read())
        await held.started.wait()
        if how == "cancel":
            rpc.cancel()
            reader.cancel()
        else:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            rpc.cancel()
        await arrived(held)
        await asyncio.gather(reader, return_exceptions=True)
        await eventually(lambda: len(p.exporter.get_finished_spans()) == 2)
    assert held.same_task, "cleanup of a handler must run in its own task"
    assert p.spans() == (
        "CLIENT Test/Hold rpc.response.status_code=CANCELLED ERROR\n"
        "  SERVER Test/Hold rpc.response.status_code=CANCELLED"
    )


async def test_a_call_cancelled_before_it_was_sent_has_no_span() -> None:
    async with peer({"Hold": ("uu", Held().unary)}) as p:
        rpc = p.unary("Hold")
        rpc.cancel()
        with pytest.raises(asyncio.CancelledError):
            await rpc
    assert p.spans() == ""


# Deadlines


async def test_the_deadline_cancels_the_handler_and_both_spans_say_so() -> None:
    held = Held()
    async with peer({"Hold": ("uu", held.unary)}) as p:
        with pytest.raises(Unreachable, match="in time"):
            await call(p.unary("Hold", timeout=0.2), service="test")
        await arrived(held)
        await eventually(lambda: len(p.exporter.get_finished_spans()) == 2)
    assert "CLIENT Test/Hold rpc.response.status_code=DEADLINE_EXCEEDED ERROR" in p.spans()


async def test_a_call_without_a_timeout_gets_the_default_and_a_stream_none() -> None:
    left: list[float | None] = []

    async def unary(_: bytes, context: Any) -> bytes:
        left.append(context.time_remaining())
        return b""

    async def stream(_: bytes, context: Any) -> AsyncIterator[bytes]:
        left.append(context.time_remaining())
        yield b""

    async with peer({"U": ("uu", unary), "S": ("us", stream)}) as p:
        await call(p.unary("U"))
        assert [m async for m in p.stream("S")] == [b""]
        await call(p.unary("U", timeout=60))
    assert left[0] is not None
    assert 4 < left[0] < 6
    assert left[1] is None
    assert left[2] is not None
    assert 55 < left[2] < 61


class Middle:
    """Calls a leaf that tells its time left, from the handler and from background work."""

    def __init__(self) -> None:
        self.leaf: Callable[..., Any]
        self.left: asyncio.Queue[tuple[str, float | None]] = asyncio.Queue()
        self.handled = asyncio.Event()
        self.background: list[asyncio.Task[None]] = []
        self.queue: asyncio.Queue[str] = asyncio.Queue()

    async def tell(self, who: str, **options: Any) -> None:
        answer: bytes = await call(self.leaf(b"", **options))
        self.left.put_nowait((who, None if answer == b"none" else float(answer)))

    async def handle(self, _: bytes, __: Any) -> bytes:
        await self.tell("handler")
        await asyncio.gather(self.tell("child task"))
        self.background = [
            deadline.spawn(self.tell("spawned", timeout=60), name="spawned"),
            asyncio.create_task(self.later()),
        ]
        self.queue.put_nowait("queued")
        return b""

    async def later(self) -> None:
        await self.handled.wait()
        await self.tell("outlived", timeout=60)

    async def consume(self) -> None:
        await self.tell(await self.queue.get(), timeout=60)


async def test_deadlines_are_passed_on_inside_one_request_only() -> None:
    async def leaf(_: bytes, context: Any) -> bytes:
        remaining = context.time_remaining()
        return b"none" if remaining is None else str(remaining).encode()

    middle = Middle()
    handlers = {"Leaf": ("uu", leaf), "Middle": ("uu", middle.handle)}
    async with peer(handlers) as p:
        middle.leaf = p.channel.unary_unary("/test.Test/Leaf")
        consumer = asyncio.create_task(middle.consume())
        await call(p.unary("Middle", timeout=3))
        middle.handled.set()
        await asyncio.gather(consumer, *middle.background)
    left = dict(middle.left.get_nowait() for _ in range(middle.left.qsize()))
    assert set(left) == {"handler", "child task", "spawned", "outlived", "queued"}
    for who, remaining in left.items():
        assert remaining is not None
        if who in ("handler", "child task"):
            assert remaining < 4, who
        else:
            assert remaining > 50, f"{who} inherited a deadline that is not its own"


# Errors


def raising(err: Exception) -> Callable[..., Any]:
    async def handler(_: bytes, __: Any) -> bytes:
        raise err

    return handler


async def failure(p: Peer, name: str) -> tuple[ServiceError, aio.AioRpcError]:
    with pytest.raises(aio.AioRpcError) as caught:
        await p.unary(name)
    return from_rpc_error(caught.value), caught.value


async def test_service_errors_arrive_whole() -> None:
    sent = LaneFull("the lane is full", metadata={"cap": "50"}, retry_after=3)
    handlers = {"Full": ("uu", raising(sent)), "Bad": ("uu", raising(invalid_field("a", "is b")))}
    async with peer(handlers) as p:
        full, rpc = await failure(p, "Full")
        bad, _ = await failure(p, "Bad")
    assert isinstance(full, LaneFull)
    assert (full.message, full.metadata, full.retry_after) == (sent.message, {"cap": "50"}, 3.0)
    assert rpc.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert isinstance(bad, InvalidField)
    assert bad.field_violations == (("a", "is b"),)


async def test_an_error_carries_the_trace_of_its_call() -> None:
    handlers = {"Full": ("uu", raising(LaneFull("full"))), "Watch": ("us", raising(LaneFull("f")))}
    async with peer(handlers) as p:
        for name, kind in (("Full", p.unary), ("Watch", p.stream)):
            with p.tracer.start_as_current_span("asked") as span:
                with pytest.raises(aio.AioRpcError) as caught:
                    await (kind(name) if name == "Full" else kind(name).read())
                told = from_rpc_error(caught.value)
            # A watch has no span of its own, and still belongs to the trace of whoever watches.
            assert told.trace_id == format_trace_id(span.get_span_context().trace_id), name


def test_what_is_no_trace_id_is_not_taken_for_one() -> None:
    """A server that is not ours may put anything there, also what would drive a terminal."""
    for said in ("", "x" * 32, "A" * 32, "a" * 33, "\x1b[2J"):
        assert from_proto(to_proto(LaneFull("full"), trace_id=said)).trace_id == ""
    assert from_proto(to_proto(LaneFull("full"), trace_id="ab" * 16)).trace_id == "ab" * 16


async def test_exception_text_never_leaves_nor_is_traced_but_its_place_is_known_by_the_id(
    caplog: pytest.LogCaptureFixture,
) -> None:
    handlers = {
        "Boom": ("uu", raising(ValueError("secret"))),
        "Own": ("uu", raising(Internal("secret"))),
    }
    async with peer(handlers) as p:
        for name in handlers:
            caplog.clear()
            with caplog.at_level(logging.ERROR, logger="svckit.grpc"):
                mapped, rpc = await failure(p, name)
            assert isinstance(mapped, Internal)
            trailers = dict(rpc.trailing_metadata() or ())
            assert b"RequestInfo" in trailers[DETAILS_KEY]
            assert "secret" not in repr(rpc) + repr(trailers)
            logged = caplog.records[0].getMessage()
            request_id = logged.partition("'request_id': '")[2][:26]
            assert request_id.encode() in trailers[DETAILS_KEY]
        await eventually(lambda: len(p.exporter.get_finished_spans()) == 4)
    assert p.spans().count("INTERNAL ERROR") == 4
    boom, own = (e for span in p.exporter.get_finished_spans() for e in span.events)
    for event, kind in ((boom, "ValueError"), (own, "Internal")):
        assert event.attributes is not None
        assert event.attributes["exception.type"] == kind
        assert "in handler" in str(event.attributes)
        assert "secret" not in str(event.attributes)


@pytest.mark.parametrize("style", ["generate", "write"])
async def test_errors_after_the_first_message_of_a_stream(style: str) -> None:
    async def generate(_: bytes, __: Any) -> AsyncIterator[bytes]:
        yield b"one"
        raise LaneFull("full")

    async def write(_: bytes, context: Any) -> None:
        await context.write(b"one")
        raise LaneFull("full")

    async with peer({"S": ("us", generate if style == "generate" else write)}) as p:
        rpc = p.stream("S")
        assert await rpc.read() == b"one"
        with pytest.raises(aio.AioRpcError) as caught:
            await rpc.read()
    assert isinstance(from_rpc_error(caught.value), LaneFull)


async def test_an_error_of_a_neighbour_is_passed_on_and_its_internals_are_not() -> None:
    async with peer(
        {"Full": ("uu", raising(LaneFull("full"))), "Boom": ("uu", raising(OSError()))}
    ) as far:

        async def relay(request: bytes, _: Any) -> bytes:
            answer: bytes = await far.channel.unary_unary(f"/test.Test/{request.decode()}")(b"")
            return answer

        async with peer({"Relay": ("uu", relay)}) as near:
            ask = near.channel.unary_unary("/test.Test/Relay")
            with pytest.raises(LaneFull):
                await call(ask(b"Full"))
            with pytest.raises(Internal, match="internal error"):
                await call(ask(b"Boom"))
            with pytest.raises(NotImplementedYet):
                await call(ask(b"Missing"))
            await far.channel.close()


async def test_a_refusal_by_an_inner_interceptor_is_an_answer_too() -> None:
    class Refuse(aio.ServerInterceptor):
        async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
            raise LaneFull("full")

    held = Held()
    handlers = {"U": ("uu", held.unary), "S": ("us", held.generate)}
    async with peer(handlers, interceptors=[Refuse()]) as p:
        with pytest.raises(LaneFull):
            await call(p.unary("U"))
        with pytest.raises(aio.AioRpcError) as caught:
            await p.stream("S").read()
    assert isinstance(from_rpc_error(caught.value), LaneFull)
    assert not held.started.is_set()


async def test_a_server_that_is_not_there_is_unreachable() -> None:
    async with peer({}) as p:
        address = p.address
    channel = make_channel(address)
    with pytest.raises(Unreachable, match="scheduler does not answer"):
        await call(channel.unary_unary("/test.Test/U")(b""), service="scheduler")
    await channel.close()


# Shapes and traces


async def test_all_four_kinds_of_handlers() -> None:
    async def uu(request: bytes, _: Any) -> bytes:
        return request + b"!"

    async def us(request: bytes, _: Any) -> AsyncIterator[bytes]:
        for _n in range(2):
            yield request

    async def su(requests: AsyncIterator[bytes], _: Any) -> bytes:
        return b"".join([r async for r in requests])

    async def ss(requests: AsyncIterator[bytes], context: Any) -> None:
        async for request in requests:
            await context.write(request.upper())

    async def two() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    handlers = {"UU": ("uu", uu), "US": ("us", us), "SU": ("su", su), "SS": ("ss", ss)}
    async with peer(handlers) as p:
        c = p.channel
        assert await c.unary_unary("/test.Test/UU")(b"a") == b"a!"
        assert [m async for m in c.unary_stream("/test.Test/US")(b"a")] == [b"a", b"a"]
        assert await c.stream_unary("/test.Test/SU")(two()) == b"ab"
        assert [m async for m in c.stream_stream("/test.Test/SS")(two())] == [b"A", b"B"]
        await eventually(lambda: len(p.exporter.get_finished_spans()) == 8)
    assert p.spans() == "\n".join(
        f"CLIENT Test/{n} rpc.response.status_code=OK\n"
        f"  SERVER Test/{n} rpc.response.status_code=OK"
        for n in handlers
    )


async def test_calls_of_a_handler_are_below_its_span() -> None:
    async def leaf(_: bytes, __: Any) -> bytes:
        return b""

    async def middle(_: bytes, __: Any) -> bytes:
        await p.unary("Leaf")
        return b""

    async with peer({"Leaf": ("uu", leaf), "Middle": ("uu", middle)}) as p:
        await p.unary("Middle")
        await eventually(lambda: len(p.exporter.get_finished_spans()) == 4)
    assert span_tree(p.exporter) == (
        "CLIENT Test/Middle\n  SERVER Test/Middle\n    CLIENT Test/Leaf\n      SERVER Test/Leaf"
    )


# Ports


async def test_a_port_in_use_is_said_clearly() -> None:
    async with peer({}) as p:
        second = make_server()
        with pytest.raises(PortInUse, match=f"cannot listen on {p.address}: another process"):
            bind(second, p.address)
        await second.stop(None)


async def test_what_a_service_does_by_itself_begins_no_trace() -> None:
    """Nor for whom it calls: only work that it brings does, and what belongs to a request."""
    tracer, exporter = memory_tracer()
    seen: list[dict[str, str]] = []

    async def handler(request: Any, context: Any) -> Any:
        seen.append(dict(context.invocation_metadata()))
        return request

    server = make_server(boundary=ServerBoundary(tracer))
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(handler) for name in ("GetRun", "EnqueueRuns")
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = make_channel(f"127.0.0.1:{port}", tracer=tracer, begins_traces=False)
    try:
        for name in ("GetRun", "EnqueueRuns"):
            await channel.unary_unary(f"/t.T/{name}")(b"")
        with tracer.start_as_current_span("request"):
            await channel.unary_unary("/t.T/GetRun")(b"")
        await eventually(lambda: len(exporter.get_finished_spans()) == 5)
    finally:
        await channel.close()
        await server.stop(None)
    assert [m["traceparent"][-2:] for m in seen] == ["00", "01", "01"]
    assert span_tree(exporter) == "\n".join(
        [
            "CLIENT T/EnqueueRuns",
            "  SERVER T/EnqueueRuns",
            "INTERNAL request",
            "  CLIENT T/GetRun",
            "    SERVER T/GetRun",
        ]
    )
