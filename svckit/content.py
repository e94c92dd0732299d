"""Texts and arguments within the limits of the contract: what is over is cut, never refused."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from google.protobuf import struct_pb2

from conveyor.common.v1 import content_pb2

PART_BYTES = 256 * 1024
MESSAGE_BYTES = 1024 * 1024
EVENT_BYTES = 8 * 1024
# Each level of JSON is three of the message, and parsers of messages stop at a hundred.
EVENT_DEPTH = 20


def spoken(
    message_id: str, text: str, role: content_pb2.Role.ValueType = content_pb2.ROLE_AGENT
) -> content_pb2.Message:
    """Build a message of text within the limits of the contract; what is over is cut."""
    parts = list(_pieces(text.encode()[:MESSAGE_BYTES]))
    return content_pb2.Message(
        message_id=message_id,
        role=role,
        parts=[content_pb2.ContentPart(text=part) for part in parts],
    )


def arguments_struct(arguments: str) -> struct_pb2.Struct:
    """Write a call's arguments for an event, cut to 8 KiB.

    What is no JSON object, or none that an event can hold, is written as text: the model is told
    what is wrong with it, and whoever watches sees what it wrote.
    """
    out = struct_pb2.Struct()
    try:
        if len(arguments.encode()) <= EVENT_BYTES:
            # Stricter than the json module, which takes NaN and half surrogate pairs.
            raw = msgspec.json.decode(arguments or "{}")
            if isinstance(raw, dict) and _depth(raw) <= EVENT_DEPTH:
                out.update(raw)
                return out
    except (msgspec.DecodeError, RecursionError, OverflowError):
        out.Clear()
    out.update({"text": cut(arguments, EVENT_BYTES)})
    return out


def cut(text: str, limit: int) -> str:
    """Cut a text to at most `limit` bytes of UTF-8."""
    raw = text.encode()
    return text if len(raw) <= limit else raw[:limit].decode(errors="ignore")


def _depth(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)


def _pieces(raw: bytes) -> Iterable[str]:
    """Split UTF-8 into parts that stay within the limit, never inside a character."""
    while raw:
        piece = raw[:PART_BYTES].decode(errors="ignore")
        if not piece:
            return
        yield piece
        raw = raw[len(piece.encode()) :]
