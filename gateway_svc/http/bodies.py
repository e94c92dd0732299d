"""Requests as people write them: short message bodies, and filters in the query."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, TypeVar
from urllib.parse import unquote

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from conveyor.gateway.v1 import gateway_service_pb2 as gw
from gateway_svc.http.wire import to_message
from svckit.errors import invalid_field
from svckit.ids import new_ulid

M = TypeVar("M", bound=Message)

_TRUE = frozenset({"1", "true", "yes", ""})
_FALSE = frozenset({"0", "false", "no"})


IDEMPOTENCY_KEY = "Idempotency-Key"


def plain(segment: str) -> str:
    """Decode a path segment, which the edge leaves as it was sent."""
    try:
        return unquote(segment, errors="strict")
    except UnicodeDecodeError:
        raise invalid_field("path", "must be UTF-8, percent-encoded") from None


def request_id_of(header: str | None, body: dict[str, Any]) -> str:
    """Return the idempotency key, from `Idempotency-Key` or `request_id`; made up when absent.

    Takes it out of `body`. Raises `InvalidField` when both are given and differ.
    """
    in_body = body.pop("request_id", None)
    if in_body is not None and not isinstance(in_body, str):
        raise invalid_field("request_id", "must be a text")
    if header and in_body and header != in_body:
        raise invalid_field("request_id", "differs from the header Idempotency-Key")
    return header or in_body or new_ulid()


def send_request(
    session_key: str, header: str | None, body: dict[str, Any]
) -> gw.SendMessageRequest:
    """Read the body of a message: `{"text": …}`, an inbound message, or the whole request."""
    request_id = request_id_of(header, body)
    inbound = body.pop("inbound", None)
    if inbound is None:
        inbound = body
    elif body:
        raise invalid_field(next(iter(body)), "does not belong beside `inbound`")
    if not isinstance(inbound, dict):
        raise invalid_field("inbound", "must be an object")
    inbound = dict(inbound)
    expand_text(inbound)
    shorten_enums(inbound, gw.InboundMessage)
    message = to_message(inbound, gw.InboundMessage(), "inbound.")
    if message.session_key not in ("", session_key):
        raise invalid_field("inbound.session_key", "differs from the session in the path")
    message.session_key = session_key
    return gw.SendMessageRequest(inbound=message, request_id=request_id)


def steer_request(run_id: str, header: str | None, body: dict[str, Any]) -> gw.SteerRunRequest:
    """Read the body of a steering message: `{"text": …}` or `{"message": …}`."""
    request_id = request_id_of(header, body)
    expand_text(body)
    request = to_message(body, gw.SteerRunRequest())
    if request.run_id not in ("", run_id):
        raise invalid_field("run_id", "differs from the run in the path")
    request.run_id = run_id
    request.request_id = request_id
    return request


def from_query(pairs: Iterable[tuple[str, str]], request: M) -> M:
    """Fill a list request, and its filter, from query parameters of the same names.

    Lists are given by repeating a name, maps as `name=key=value`, enums as their whole name or its
    last words in small letters (`states=running`). Raises `InvalidField`.
    """
    content: dict[str, Any] = {}
    own = request.DESCRIPTOR.fields_by_name
    filters: Any = own["filter"].message_type if "filter" in own else None
    inner = filters.fields_by_name if filters is not None else {}
    for name, value in pairs:
        if name in own and name != "filter":
            _put(content, own[name], value)
        elif name in inner:
            _put(content.setdefault("filter", {}), inner[name], value)
        else:
            raise invalid_field(name[:64], "is not a parameter of this list")
    return to_message(content, request)


def truth(name: str, value: str | None) -> bool:
    """Read a yes-or-no parameter; a name without value means yes, no name means no."""
    if value is None:
        return False
    if value.lower() in _TRUE:
        return True
    if value.lower() in _FALSE:
        return False
    raise invalid_field(name, "must be 1 or 0")


def shorten_enums(content: dict[str, Any], kind: type[Message]) -> None:
    """Replace, in place, enum values given in short by their whole names."""
    for name, field in kind.DESCRIPTOR.fields_by_name.items():
        value = content.get(name)
        if field.enum_type is not None and isinstance(value, str):
            content[name] = _short_enum(field, value)


def _short_enum(field: Any, text: str) -> str:
    """Return the whole name of an enum value given in short."""
    enum = field.enum_type
    if text in enum.values_by_name:
        return text
    prefix = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", enum.name).upper()
    return f"{prefix}_{text.upper().replace('-', '_')}"


def expand_text(body: dict[str, Any]) -> None:
    """Turn `text` into a message, also inside `message`."""
    message = body.get("message")
    if "text" in body:
        if message is not None:
            raise invalid_field("text", "cannot stand beside `message`")
        body["message"] = {"text": body.pop("text")}
    message = body.get("message")
    if isinstance(message, dict) and "text" in message:
        if "parts" in message:
            raise invalid_field("message.text", "cannot stand beside `parts`")
        message = dict(message)
        text = message.pop("text")
        if not isinstance(text, str):
            raise invalid_field("text", "must be a text")
        message["parts"] = [{"text": text}]
        body["message"] = message
    if isinstance(message, dict):
        message.setdefault("role", "ROLE_USER")


def _put(content: dict[str, Any], field: Any, value: str) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, equals, item = value.partition("=")
        if not equals:
            raise invalid_field(field.name, "must be given as key=value")
        content.setdefault(field.name, {})[key] = item
        return
    plain: Any = value
    if field.type == FieldDescriptor.TYPE_BOOL:
        plain = truth(field.name, value)
    elif field.enum_type is not None:
        plain = _short_enum(field, value)
    if field.is_repeated:
        content.setdefault(field.name, []).append(plain)
    else:
        content[field.name] = plain
