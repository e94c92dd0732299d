"""JSON on the wire: proto JSON with the contract's own snake_case names, and typed errors."""

from __future__ import annotations

import json
import math
import re
from typing import Any, TypeVar

from google.protobuf import any_pb2, json_format
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from starlette.responses import Response

from conveyor.acp.v1 import task_pb2 as acp_task_pb2
from conveyor.agent.v1 import task_pb2 as agent_task_pb2
from svckit import tracecontext
from svckit.errors import ServiceError, Unauthenticated, invalid_field

M = TypeVar("M", bound=Message)

# Imported so that what travels as `Any` can be written out: tasks, results and error details.
KNOWN_ANY = (agent_task_pb2, acp_task_pb2, error_details_pb2)

_NO_FIELD = re.compile(r'no field named "([^"]{1,64})"')
_BAD_FIELD = re.compile(r"Failed to parse (\w{1,64}) field")


def to_dict(message: Message) -> dict[str, Any]:
    """Return the proto JSON of a message; an `Any` that this build does not know is left out."""
    try:
        return _to_dict(message)
    except TypeError:
        copy = type(message)()
        copy.CopyFrom(message)
        _clear_unknown_any(copy)
        return _to_dict(copy)


def respond(message: Message, status: int = 200) -> Response:
    """Return an HTTP response that holds a message."""
    body = json.dumps(to_dict(message), ensure_ascii=False, separators=(",", ":"))
    return Response(body, status, media_type="application/json")


def error_body(error: ServiceError, trace_url_template: str = "") -> dict[str, Any]:
    """Return the JSON of an error: reason, message, metadata and the fields that are wrong.

    With the id of the trace that the request belongs to, if any, and with a template the page that
    shows it.
    """
    told: dict[str, Any] = {
        "reason": error.reason,
        "message": error.message,
        "metadata": dict(error.metadata),
        "fields": [
            {"field": field, "problem": problem} for field, problem in error.field_violations
        ],
    }
    if trace_id := tracecontext.current_id() or error.trace_id:
        told["trace_id"] = trace_id
        if trace_url_template:
            told["trace_url"] = tracecontext.page(trace_url_template, trace_id)
    return {"error": told}


def error_response(
    error: ServiceError, status: int | None = None, trace_url_template: str = ""
) -> Response:
    """Return the HTTP response of an error, with `Retry-After` where repeating helps."""
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    return Response(
        json.dumps(error_body(error, trace_url_template), ensure_ascii=False),
        status or error.http_status,
        headers=headers,
        media_type="application/json",
    )


def parse_json(raw: bytes) -> dict[str, Any]:
    """Read a request body; empty means `{}`. Raises `InvalidField`."""
    if not raw.strip():
        return {}
    try:
        # Decoded here: left to the library it may be UTF-16, or halves of surrogate pairs.
        content = json.loads(raw.decode("utf-8-sig"))
        if b"\\u" in raw:
            # Half of a surrogate pair is no character: nothing could store it or say it back.
            json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise invalid_field("body", "must be JSON in UTF-8") from None
    if not isinstance(content, dict):
        raise invalid_field("body", "must be a JSON object")
    return content


def to_message(content: dict[str, Any], message: M, path: str = "") -> M:
    """Fill `message` from proto JSON and return it; raises `InvalidField` naming the field."""
    try:
        json_format.ParseDict(content, message)
    except (json_format.ParseError, RecursionError, ValueError, TypeError) as error:
        text = str(error)
        if unknown := _NO_FIELD.search(text):
            raise invalid_field(path + unknown[1], "is not a field of this message") from None
        if bad := _BAD_FIELD.search(text):
            raise invalid_field(path + bad[1], "has a value that does not fit") from None
        raise invalid_field(path.rstrip(".") or "body", "does not fit the message") from None
    return message


def _to_dict(message: Message) -> dict[str, Any]:
    content: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return content


def _clear_unknown_any(message: Message) -> None:
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if field.message_type.GetOptions().map_entry:
            continue  # maps of the contract hold plain values
        values = value if field.is_repeated else [value]
        if isinstance(value, any_pb2.Any) or (values and isinstance(values[0], any_pb2.Any)):
            if any(not _is_known(item) for item in values):
                message.ClearField(field.name)
            continue
        for item in values:
            _clear_unknown_any(item)


def _is_known(packed: any_pb2.Any) -> bool:
    try:
        json_format.MessageToDict(packed)
    except TypeError:
        return False
    return True
