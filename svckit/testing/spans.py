"""Traces as text, so that a test can compare a whole tree."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from svckit.recording import RecordingProvider


def memory_tracer(service: str = "test") -> tuple[trace.Tracer, InMemorySpanExporter]:
    """Return a tracer of its own, touching nothing global, and where its spans go."""
    exporter = InMemorySpanExporter()
    provider = RecordingProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider.get_tracer(service), exporter


def span_tree(
    exporter: InMemorySpanExporter,
    *,
    attributes: Sequence[str] = (),
    events: bool = False,
    without: Sequence[str] = (),
) -> str:
    """Return the ended spans as indented lines `KIND name [key=value ...] [ERROR]`.

    Children are below their parent, in order of start. Parents that were not exported count as
    roots. `attributes` names those to show, of spans and, with `events`, of what happened in them.
    `without` leaves out spans whose names hold one of these texts.
    """
    spans = sorted(
        (
            span
            for span in exporter.get_finished_spans()
            if not any(text in span.name for text in without)
        ),
        key=lambda s: s.start_time or 0,
    )
    known = {s.context.span_id for s in spans if s.context is not None}
    children: dict[int | None, list[ReadableSpan]] = defaultdict(list)
    for span in spans:
        parent = span.parent.span_id if span.parent is not None else None
        children[parent if parent in known else None].append(span)
    lines: list[str] = []

    def shown(given: Mapping[str, object] | None) -> str:
        found = dict(given or {})
        return "".join(f" {key}={found[key]}" for key in attributes if key in found)

    def add(span: ReadableSpan, depth: int) -> None:
        failed = " ERROR" if span.status.status_code is trace.StatusCode.ERROR else ""
        lines.append(f"{'  ' * depth}{span.kind.name} {span.name}{shown(span.attributes)}{failed}")
        if events:
            lines.extend(
                f"{'  ' * depth}  * {event.name}{shown(event.attributes)}" for event in span.events
            )
        if span.context is not None:
            for child in children[span.context.span_id]:
                add(child, depth + 1)

    for root in children[None]:
        add(root, 0)
    return "\n".join(lines)
