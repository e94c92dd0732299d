"""`ServiceError` to `google.rpc.Status` and back, and what a failed call means."""

from __future__ import annotations

import re
import urllib.parse
from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from svckit.errors import (
    BY_REASON,
    DOMAIN,
    Internal,
    NotImplementedYet,
    PeerError,
    ServiceError,
    Unreachable,
)

DETAILS_KEY = "grpc-status-details-bin"
MAX_TRAILER_BYTES = 4096
"""Peers reject trailers from 8 KiB on, at random; what others add needs room too."""

_TRACE_ID = re.compile("[0-9a-f]{32}")
_NO_RETRY = ("grpc-retry-pushback-ms", "-1")

_NO_ANSWER = {
    grpc.StatusCode.UNAVAILABLE: "does not answer",
    grpc.StatusCode.DEADLINE_EXCEEDED: "did not answer in time",
    grpc.StatusCode.CANCELLED: "cut the call off",
}


def to_proto(err: ServiceError, *, request_id: str = "", trace_id: str = "") -> status_pb2.Status:
    """Build the wire form: `ErrorInfo`, and `BadRequest`, `RetryInfo`, `RequestInfo` if they apply.

    `trace_id`, of the call that failed, is the `serving_data` of the `RequestInfo`.
    Long texts are cut so that message and details stay below `MAX_TRAILER_BYTES` on the wire.
    """
    served = error_details_pb2.RequestInfo(request_id=request_id, serving_data=trace_id)
    for cut in (1000, 300, 100, 30):
        status = _build(err, served, cut)
        if _wire_bytes(status) < MAX_TRAILER_BYTES:
            return status
    # Only a flood of metadata gets here, and a status without it still says what happened.
    return _build(err, served, 30, metadata=False)


def _build(
    err: ServiceError, served: error_details_pb2.RequestInfo, cut: int, *, metadata: bool = True
) -> status_pb2.Status:
    status = status_pb2.Status(
        code=code_pb2.Code.Value(err.grpc_code), message=_cut(err.message, cut)
    )
    info = error_details_pb2.ErrorInfo(reason=err.reason, domain=DOMAIN)
    if metadata:
        info.metadata.update({k: _cut(str(v), cut) for k, v in err.metadata.items()})
    details: list[Message] = [info]
    if err.field_violations:
        violations = [
            error_details_pb2.BadRequest.FieldViolation(
                field=_cut(field, 100), description=_cut(text, cut)
            )
            for field, text in err.field_violations[: max(1, cut // 20)]
        ]
        details.append(error_details_pb2.BadRequest(field_violations=violations))
    if err.retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMicroseconds(round(err.retry_after * 1_000_000))
        details.append(retry)
    if served.ByteSize():
        details.append(served)
    for detail in details:
        status.details.add().Pack(detail)
    return status


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _wire_bytes(status: status_pb2.Status) -> int:
    """Size in the trailers: the message is percent-encoded, the details are base64."""
    message = len(urllib.parse.quote(status.message, safe=" "))
    return message + int(status.ByteSize()) * 4 // 3 + 100


def from_proto(status: status_pb2.Status, *, service: str = "") -> ServiceError:
    """Rebuild the error of a peer or of a stored run.

    An unknown reason of the suite becomes `PeerError`; a status that is not of the suite becomes
    what its code means here: `Unreachable`, `NotImplementedYet`, else `Internal`.
    """
    info = error_details_pb2.ErrorInfo()
    served = error_details_pb2.RequestInfo()
    retry_after: float | None = None
    violations: list[tuple[str, str]] = []
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            detail.Unpack(info)
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            retry_after = retry.retry_delay.ToMicroseconds() / 1_000_000
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            violations = [(v.field, v.description) for v in bad.field_violations]
        elif detail.Is(error_details_pb2.RequestInfo.DESCRIPTOR):
            detail.Unpack(served)
    err = _from_details(status, service, info, retry_after, violations)
    # A peer that is not ours puts there what it likes.
    err.trace_id = served.serving_data if _TRACE_ID.fullmatch(served.serving_data) else ""
    return err


def _from_details(
    status: status_pb2.Status,
    service: str,
    info: error_details_pb2.ErrorInfo,
    retry_after: float | None,
    violations: list[tuple[str, str]],
) -> ServiceError:
    if info.domain != DOMAIN or not info.reason:
        return _without_reason(status, service)
    given: dict[str, Any] = {
        "metadata": dict(info.metadata),
        "retry_after": retry_after,
        "field_violations": violations,
    }
    if info.reason in BY_REASON:
        return BY_REASON[info.reason](status.message, **given)
    return PeerError(status.message, reason=info.reason, grpc_code=_code_name(status), **given)


def _code_name(status: status_pb2.Status) -> str:
    known = status.code in code_pb2.Code.values()
    return code_pb2.Code.Name(code_pb2.Code.ValueType(status.code)) if known else "UNKNOWN"


def _without_reason(status: status_pb2.Status, service: str) -> ServiceError:
    name = _code_name(status)
    code = grpc.StatusCode[name]
    who = service or "the service"
    if code in _NO_ANSWER:
        return Unreachable(f"{who} {_NO_ANSWER[code]}", metadata={"service": service})
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return NotImplementedYet(f"{who} does not have this call", metadata={"feature": service})
    # The text may be anything, secrets of a library included, so it is not passed on.
    return Internal(f"{who} failed with {name}")


def from_rpc_error(err: grpc.aio.AioRpcError, *, service: str = "") -> ServiceError:
    """Map a failed call. `service` names the callee in messages, for example `scheduler`.

    The result has `err` as its `__cause__`, for logs; raise it `from err` all the same.
    """
    for key, value in err.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            status = status_pb2.Status.FromString(value)
            break
    else:
        status = status_pb2.Status(code=err.code().value[0], message=err.details() or "")
    mapped = from_proto(status, service=service)
    mapped.__cause__ = err
    return mapped


def to_trailers(
    status: status_pb2.Status, *, final: bool = False
) -> tuple[tuple[str, str | bytes], ...]:
    """Trailing metadata that carries `status`, for `context.abort`.

    `final` tells channels not to repeat the call by themselves, whatever its code.
    """
    details: tuple[str, str | bytes] = (DETAILS_KEY, status.SerializeToString())
    if final and status.code == code_pb2.UNAVAILABLE:
        return (details, _NO_RETRY)
    return (details,)


def code_of(status: status_pb2.Status) -> grpc.StatusCode:
    """gRPC code of a status; `UNKNOWN` when the number is not a code."""
    return grpc.StatusCode[_code_name(status)]
