"""What was said, as `telemetry.capture_content` puts it into spans: JSON of the GenAI conventions.

An attribute is bounded, since a collector refuses a whole batch for one span that is too large: of
a long text the beginning is kept, of a long conversation its end.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from conveyor.common.v1 import content_pb2
from svckit.content import cut

Part: TypeAlias = dict[str, Any]
Message: TypeAlias = dict[str, Any]

PART_BYTES = 8_000
ATTRIBUTE_BYTES = 32_000
LEFT_OUT = "left out: too long for a span"


def text(content: str) -> Part:
    """What was said in words."""
    return {"type": "text", "content": _cut(content, PART_BYTES)}


def attachment(kind: str) -> Part:
    """Something else, of which only the media type is told."""
    return {"type": kind or "attachment"}


def tool_call(call_id: str, name: str, arguments: str) -> Part:
    """A model calls a tool. `arguments` is the JSON text that it wrote."""
    part: Part = {"type": "tool_call", "name": name, "arguments": _read(arguments)}
    return {**part, "id": call_id} if call_id else part


def tool_result(call_id: str, content: str) -> Part:
    """What a call came to."""
    return {"type": "tool_call_response", "id": call_id, "result": _cut(content, PART_BYTES)}


def message(role: str, parts: Iterable[Part], *, finish_reason: str = "") -> Message:
    """One message: `role` is user, assistant, system or tool."""
    found: Message = {"role": role, "parts": list(parts)}
    return {**found, "finish_reason": finish_reason} if finish_reason else found


def dump(messages: Sequence[Message]) -> str:
    """Write messages down, oldest first; the oldest are left out where there are too many."""
    kept: list[str] = []
    room = ATTRIBUTE_BYTES
    for said in reversed(messages):
        line = _clean(_written(said))
        room -= len(line.encode())
        if room < 0:
            kept.append(json.dumps(message("system", [text(LEFT_OUT)])))
            break
        kept.append(line)
    return f"[{', '.join(reversed(kept))}]"


def spoken(role: str, said: content_pb2.Message, *, finish_reason: str = "") -> Message:
    """A message of the contract."""
    parts = [
        text(part.text)
        if part.WhichOneof("part") == "text"
        else attachment(part.blob.media_type or part.resource.media_type)
        for part in said.parts
    ]
    return message(role, parts, finish_reason=finish_reason)


def words(*said: content_pb2.Message) -> str:
    """The texts of messages of the contract, as a person reads them."""
    found = (part.text for one in said for part in one.parts if part.text)
    return plain("\n\n".join(found))


def plain(content: str) -> str:
    """A text by itself."""
    return _cut(content, ATTRIBUTE_BYTES)


def _cut(content: str, limit: int) -> str:
    return cut(_clean(content), limit)


def _clean(content: str) -> str:
    """Half a surrogate pair, which models do write, would make a whole batch unsendable."""
    return content.encode(errors="replace").decode()


def _written(said: Message) -> str:
    try:
        return json.dumps(said, ensure_ascii=False)
    except RecursionError:  # arguments of a call that are nested deeper than we can follow
        return json.dumps(message(said["role"], [text(LEFT_OUT)]))


def _read(arguments: str) -> Any:
    arguments = _clean(arguments)
    if len(arguments.encode()) > PART_BYTES:
        return cut(arguments, PART_BYTES)
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
