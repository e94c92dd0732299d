"""A tracing backend of our own: an OTLP receiver that shares nothing with what it is sent by.

It keeps every span in its own words, puts traces together, and finds what does not belong. Told
to, it is the backend that nobody wants: away, refusing, slow, or never answering.
"""

from __future__ import annotations

import random
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_grpc
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2

SOON = {"OTEL_BSP_SCHEDULE_DELAY": "200"}
"""Environment of services whose spans a test waits for; the default is five seconds."""

Attributes = dict[str, Any]


@dataclass(frozen=True)
class Link:
    """What a span names besides its parent. Ids are hexadecimal."""

    trace_id: str
    span_id: str
    attributes: Attributes


@dataclass(frozen=True)
class Moment:
    """An event on a span."""

    name: str
    time: int
    attributes: Attributes


@dataclass(frozen=True)
class Span:
    """One span as it arrived. Ids are hexadecimal, times nanoseconds; a root has no parent id."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: str
    start: int
    end: int
    failed: bool
    attributes: Attributes
    links: tuple[Link, ...]
    events: tuple[Moment, ...]
    service: str
    instance: str
    scope: str
    """Who made it."""

    @property
    def seconds(self) -> float:
        """How long it lasted."""
        return (self.end - self.start) / 1e9


@dataclass(frozen=True)
class Trace:
    """Everything that arrived of one trace, in order of start."""

    spans: Sequence[Span]
    by_id: dict[str, Span] = field(init=False)
    below: dict[str, list[Span]] = field(init=False)

    def __post_init__(self) -> None:
        ordered = sorted(self.spans, key=lambda span: (span.start, span.end))
        by_id = {span.span_id: span for span in ordered}
        below: dict[str, list[Span]] = defaultdict(list)
        for span in ordered:
            below[span.parent_id].append(span)
        for name, value in (("spans", ordered), ("by_id", by_id), ("below", below)):
            object.__setattr__(self, name, value)

    @property
    def roots(self) -> list[Span]:
        """The spans without a parent."""
        return list(self.below[""])

    @property
    def orphans(self) -> list[Span]:
        """The spans whose parent did not arrive."""
        return [span for span in self.spans if span.parent_id and span.parent_id not in self.by_id]

    @property
    def repeated(self) -> list[str]:
        """The ids of spans that arrived more than once."""
        return [name for name, n in Counter(s.span_id for s in self.spans).items() if n > 1]

    def named(self, name: str, **attributes: Any) -> list[Span]:
        """The spans of a name, with these attributes (`conveyor_depth=1` is `conveyor.depth`)."""
        wanted = {key.replace("_", "."): value for key, value in attributes.items()}
        return [s for s in self.spans if s.name == name and wanted.items() <= s.attributes.items()]

    def ancestors(self, span: Span) -> list[Span]:
        """The way from the root to the span's parent."""
        found: list[Span] = []
        while (parent := self.by_id.get(span.parent_id)) is not None:
            found.append(parent)
            span = parent
        return found[::-1]

    def descendants(self, span: Span) -> Iterator[Span]:
        """Everything below a span."""
        for child in self.below[span.span_id]:
            yield child
            yield from self.descendants(child)

    def services_to(self, span: Span) -> list[str]:
        """The services on the way from the root to a span, each change once."""
        found: list[str] = []
        for step in [*self.ancestors(span), span]:
            if step.service not in found[-1:]:
                found.append(step.service)
        return found

    def edges(self) -> set[tuple[str, str]]:
        """The borders between services that the trace crosses, from parent to child."""
        pairs = {
            (self.by_id[span.parent_id].service, span.service)
            for span in self.spans
            if span.parent_id in self.by_id
        }
        return {(above, below) for above, below in pairs if above != below}

    def tree(self, *, attributes: Sequence[str] = ()) -> str:
        """Indented lines `service KIND name [key=value ...] [-> n links] [ERROR]`.

        Children stand below their parent in order of start; orphans come last, marked.
        """
        lines: list[str] = []

        def add(span: Span, depth: int, mark: str = "") -> None:
            shown = "".join(
                f" {key}={span.attributes[key]}" for key in attributes if key in span.attributes
            )
            linked = f" -> {len(span.links)} links" if span.links else ""
            failed = " ERROR" if span.failed else ""
            lines.append(
                f"{'  ' * depth}{mark}{span.service} {span.kind} {span.name}{shown}{linked}{failed}"
            )
            for child in self.below[span.span_id]:
                add(child, depth + 1)

        for root in self.roots:
            add(root, 0)
        for orphan in self.orphans:
            add(orphan, 0, "ORPHAN ")
        return "\n".join(lines)


class Receiver(otlp_grpc.TraceServiceServicer):
    """Receives spans while it is up. The properties may be read from any thread.

    `delay` is how many seconds an answer takes; `hanging` answers nothing at all, `refusing` says
    UNAVAILABLE. `asked` counts the calls, answered or not.
    """

    def __init__(self) -> None:
        self.delay = 0.0
        self.hanging = False
        self.refusing = False
        self.asked = 0
        self._lock = threading.Lock()
        self._requests: list[bytes] = []
        self._spans: dict[str, list[Span]] = defaultdict(list)
        self._released = threading.Event()
        self._server: grpc.Server | None = None
        self._port = 0

    # Its life

    @property
    def endpoint(self) -> str:
        """What to set as `telemetry.otlp_endpoint`. Stays the same over `down` and `up`."""
        return f"http://127.0.0.1:{self._port}"

    def up(self) -> None:
        """Listen."""
        assert self._server is None
        self._released.clear()
        # Threads are taken for as long as an answer is held back.
        server = grpc.server(ThreadPoolExecutor(8, "otlp"))
        otlp_grpc.add_TraceServiceServicer_to_server(self, server)  # type: ignore[no-untyped-call]
        if self._port:
            assert server.add_insecure_port(f"127.0.0.1:{self._port}")
        else:
            # Below what systems give to outgoing connections: it must be free when we come back.
            while not self._port:
                self._port = _bound(server, random.randrange(10_000, 20_000))
        server.start()
        self._server = server

    def down(self) -> None:
        """Stop listening; whatever hangs is let go. Keeps what arrived."""
        if self._server is not None:
            self._released.set()
            self._server.stop(None).wait()
            self._server = None

    def Export(
        self, request: otlp.ExportTraceServiceRequest, context: Any
    ) -> otlp.ExportTraceServiceResponse:
        with self._lock:
            self.asked += 1
        if self.hanging:
            self._released.wait()
            context.abort(grpc.StatusCode.CANCELLED, "it never answered")
        if self.delay:
            self._released.wait(self.delay)
        if self.refusing:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        found = list(_spans_of(request))
        with self._lock:
            self._requests.append(request.SerializeToString())
            for span in found:
                self._spans[span.trace_id].append(span)
        return otlp.ExportTraceServiceResponse()

    # What arrived

    @property
    def spans(self) -> list[Span]:
        """All spans, by trace."""
        with self._lock:
            return [span for spans in self._spans.values() for span in spans]

    @property
    def raw(self) -> bytes:
        """Every request as it was on the wire: names, attributes, resources and all else."""
        with self._lock:
            return b"\n".join(self._requests)

    def clear(self) -> None:
        """Forget what arrived."""
        with self._lock:
            self._requests.clear()
            self._spans.clear()

    def trace(self, trace_id: str) -> Trace:
        """What arrived of one trace so far."""
        with self._lock:
            return Trace(list(self._spans.get(trace_id, ())))

    def traces(self) -> dict[str, Trace]:
        """Everything by trace."""
        with self._lock:
            return {trace_id: Trace(list(spans)) for trace_id, spans in self._spans.items()}


@contextmanager
def receiver() -> Iterator[Receiver]:
    """A receiver that is up inside the block."""
    made = Receiver()
    made.up()
    try:
        yield made
    finally:
        made.down()


def _bound(server: grpc.Server, port: int) -> int:
    try:
        return server.add_insecure_port(f"127.0.0.1:{port}")
    except RuntimeError:
        return 0


def _spans_of(request: otlp.ExportTraceServiceRequest) -> Iterator[Span]:
    for group in request.resource_spans:
        resource = _attributes(group.resource.attributes)
        for scope in group.scope_spans:
            for span in scope.spans:
                yield Span(
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    name=span.name,
                    kind=trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
                    start=span.start_time_unix_nano,
                    end=span.end_time_unix_nano,
                    failed=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
                    attributes=_attributes(span.attributes),
                    links=tuple(
                        Link(link.trace_id.hex(), link.span_id.hex(), _attributes(link.attributes))
                        for link in span.links
                    ),
                    events=tuple(
                        Moment(event.name, event.time_unix_nano, _attributes(event.attributes))
                        for event in span.events
                    ),
                    service=str(resource.get("service.name", "")),
                    instance=str(resource.get("service.instance.id", "")),
                    scope=scope.scope.name,
                )


def _attributes(items: Sequence[common_pb2.KeyValue]) -> Attributes:
    return {item.key: _value(item.value) for item in items}


def _value(value: common_pb2.AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {item.key: _value(item.value) for item in value.kvlist_value.values}
    return getattr(value, kind) if kind is not None else None
