"""Spans as the bytes that a collector takes, put together by hand where it pays.

What every span has (ids, times, plain attributes) is written straight in protobuf's wire format,
which takes a third of the time of filling in messages, as many as a span has attributes. What few
have (events, links, lists, an error) is left to the library: fields of a message that are written
one after another are one message, whoever wrote them.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, SpanFlags
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage
from opentelemetry.proto.trace.v1.trace_pb2 import Status as StatusMessage
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, SpanKind, StatusCode

from svckit import conventions as c
from svckit.logging import get_logger

_log = get_logger("svckit.telemetry")


def _tag(field: Any, wire_type: int) -> bytes:
    return _number(field.number << 3 | wire_type)


@lru_cache(1024)
def _number(value: int) -> bytes:
    """A number as it stands in messages: seven bits a byte, negative ones as 64 bits."""
    left = value & 0xFFFF_FFFF_FFFF_FFFF
    found = bytearray()
    while left > 0x7F:
        found.append(left & 0x7F | 0x80)
        left >>= 7
    found.append(left)
    return bytes(found)


_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
"""Wire types."""
_SPAN = SpanMessage.DESCRIPTOR.fields_by_name
_VALUE = AnyValue.DESCRIPTOR.fields_by_name
_ENTRY = KeyValue.DESCRIPTOR.fields_by_name
_SCOPE_SPANS = _tag(ResourceSpans.DESCRIPTOR.fields_by_name["scope_spans"], _BYTES)
_SPANS = _tag(ScopeSpans.DESCRIPTOR.fields_by_name["spans"], _BYTES)
_RESOURCE_SPANS = _tag(
    ExportTraceServiceRequest.DESCRIPTOR.fields_by_name["resource_spans"], _BYTES
)
_ATTRIBUTE = _tag(_SPAN["attributes"], _BYTES)
_KEY = _tag(_ENTRY["key"], _BYTES)
_ENTRY_VALUE = _tag(_ENTRY["value"], _BYTES)
_TEXT = _tag(_VALUE["string_value"], _BYTES)
_INT = _tag(_VALUE["int_value"], _VARINT)
_TRUE = _tag(_VALUE["bool_value"], _VARINT) + b"\x01"
_FALSE = _tag(_VALUE["bool_value"], _VARINT) + b"\x00"
_DOUBLE = _tag(_VALUE["double_value"], _EIGHT)
_NAME = _tag(_SPAN["name"], _BYTES)
_KIND = _tag(_SPAN["kind"], _VARINT)
_TRACE_ID = _tag(_SPAN["trace_id"], _BYTES) + b"\x10"
_SPAN_ID = _tag(_SPAN["span_id"], _BYTES) + b"\x08"
_PARENT_ID = _tag(_SPAN["parent_span_id"], _BYTES) + b"\x08"
_START = _tag(_SPAN["start_time_unix_nano"], _EIGHT)
_END = _tag(_SPAN["end_time_unix_nano"], _EIGHT)
_NO_STATUS = _tag(_SPAN["status"], _BYTES) + b"\x00"
_FLAGS = _tag(_SPAN["flags"], _FOUR)

_IS_REMOTE = SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK
_HAS_IS_REMOTE = SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
_REMOTE = _FLAGS + struct.pack("<I", _HAS_IS_REMOTE | _IS_REMOTE)
_LOCAL = _FLAGS + struct.pack("<I", _HAS_IS_REMOTE)
_times = struct.Struct(f"<{len(_START)}sQ{len(_END)}sQ").pack
_double = struct.Struct("<d").pack

_KINDS = {kind: getattr(SpanMessage, f"SPAN_KIND_{kind.name}") for kind in SpanKind}
# A text's length, and what is around it, for texts that are short: almost all.
_SHORT = 100
_LENGTHS = [_number(length) for length in range(256)]
_SHORT_TEXTS = [
    _ENTRY_VALUE + _number(len(_TEXT) + 1 + length) + _TEXT + _number(length)
    for length in range(_SHORT)
]


def request_of(spans: Sequence[ReadableSpan], service: str) -> tuple[bytes, int]:
    """Return the `ExportTraceServiceRequest` that tells a collector of spans, all of one provider,
    and of how many it tells: one that cannot be put into words must not take the others along.

    Every span says in attributes what some UIs do not keep otherwise: its service, kind and links.
    """
    if not spans:
        return b"", 0
    told = 0
    scope = ScopeSpans(scope=InstrumentationScope(name=c.TRACER)).SerializeToString()
    parts = [scope]
    for span in spans:
        try:
            one = _span(span, service)
        except Exception as err:
            _log.error("a span could not be put into words", span=span.name, exc_info=err)
            continue
        parts += (_SPANS, _number(len(one)), one)
        told += 1
    of_scope = b"".join(parts)
    resource = spans[0].resource
    of_resource = b"".join(
        (
            ResourceSpans(
                resource=Resource(attributes=_entries(resource.attributes)),
                schema_url=resource.schema_url,
            ).SerializeToString(),
            _SCOPE_SPANS,
            _number(len(of_scope)),
            of_scope,
        )
    )
    return b"".join((_RESOURCE_SPANS, _number(len(of_resource)), of_resource)), told


def _span(span: ReadableSpan, service: str) -> bytes:
    context, parent, attributes = span.context, span.parent, span.attributes
    assert context is not None
    parts = [
        _TRACE_ID,
        context.trace_id.to_bytes(16, "big"),
        _SPAN_ID,
        context.span_id.to_bytes(8, "big"),
    ]
    if parent is None:
        parts.append(_LOCAL)
    else:
        flags = _REMOTE if parent.is_remote else _LOCAL
        parts += (_PARENT_ID, parent.span_id.to_bytes(8, "big"), flags)
    chain = not attributes or c.OPENINFERENCE_SPAN_KIND not in attributes
    parts += (
        _times(_START, span.start_time or 0, _END, span.end_time or 0),
        _alike(span.name, span.kind, service, chain),
    )
    if attributes:
        _add(parts, attributes)
    status = span.status
    if (
        context.trace_state
        or span.events
        or span.links
        or status.status_code is not StatusCode.UNSET
        or span.dropped_attributes
    ):
        parts.append(_rare(span, context))
    return b"".join(parts)


@lru_cache(1024)
def _alike(name: str, kind: SpanKind, service: str, chain: bool) -> bytes:
    """What is the same in all spans of a name."""
    text = name.encode(errors="replace")
    parts = [_NAME, _number(len(text)), text, _KIND, _number(_KINDS[kind]), _NO_STATUS]
    _add(parts, {c.SERVICE_NAME: service, c.SPAN_KIND: kind.name})
    if chain:
        _add(parts, {c.OPENINFERENCE_SPAN_KIND: c.CHAIN})
    return b"".join(parts)


def _add(parts: list[bytes], attributes: Mapping[str, Any]) -> None:
    """Add the entries of a span's attributes."""
    for key, value in attributes.items():
        length, start = _key(key)
        if type(value) is str:
            text = value.encode(errors="replace")  # a half of a pair is no reason to lose a batch
            if len(text) < _SHORT and length < _SHORT:
                around = _SHORT_TEXTS[len(text)]
                length += len(around) + len(text)
                parts += (_ATTRIBUTE, _LENGTHS[length], start, around, text)
                continue
            told = _TEXT + _number(len(text)) + text
        else:
            told = _value(value)
        size = _number(len(told))
        length += len(_ENTRY_VALUE) + len(size) + len(told)
        parts += (_ATTRIBUTE, _number(length), start, _ENTRY_VALUE, size, told)


@lru_cache(1024)
def _key(key: str) -> tuple[int, bytes]:
    """The beginning of an entry, and its length."""
    text = key.encode()
    start = _KEY + _number(len(text)) + text
    return len(start), start


def _value(value: Any) -> bytes:
    # A truth value is a number too.
    if isinstance(value, bool):
        return _TRUE if value else _FALSE
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        return _INT + _number(value)
    if isinstance(value, float):
        return _DOUBLE + _double(value)
    return _any(value).SerializeToString()


# -- Left to the library --------------------------------------------------------------------------


def _rare(span: ReadableSpan, context: SpanContext) -> bytes:
    """What few spans have."""
    message = SpanMessage(
        trace_state=context.trace_state.to_header() if context.trace_state else "",
        dropped_attributes_count=span.dropped_attributes,
        dropped_events_count=span.dropped_events,
        dropped_links_count=span.dropped_links,
        events=[
            SpanMessage.Event(
                name=event.name,
                time_unix_nano=event.timestamp,
                attributes=_entries(event.attributes),
            )
            for event in span.events
        ],
    )
    status = span.status
    if status.status_code is not StatusCode.UNSET:
        code: Any = status.status_code.value
        message.status.CopyFrom(StatusMessage(code=code, message=status.description or ""))
    names = []
    for link in span.links:
        to = link.context
        message.links.add(
            trace_id=to.trace_id.to_bytes(16, "big"),
            span_id=to.span_id.to_bytes(8, "big"),
            flags=_HAS_IS_REMOTE | _IS_REMOTE if to.is_remote else _HAS_IS_REMOTE,
            attributes=_entries(link.attributes),
        )
        names.append(f"{to.trace_id:032x}:{to.span_id:016x}")
    if names:
        message.attributes.extend(_entries({c.LINKS: names}))
    return message.SerializeToString()


def _entries(attributes: Mapping[str, Any] | None) -> list[KeyValue]:
    return [KeyValue(key=key, value=_any(value)) for key, value in (attributes or {}).items()]


def _any(value: Any) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        found = AnyValue()
        found.array_value.SetInParent()
        found.array_value.values.extend(_any(part) for part in value)
        return found
    return AnyValue(string_value=str(value).encode(errors="replace").decode())
