"""The comments of the contract are the table of errors; code follows them, row by row."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2

from conveyor.common.v1 import error_reason_pb2
from svckit import errors
from svckit.errors import BY_REASON, ServiceError
from svckit.grpc.status import MAX_TRAILER_BYTES, from_proto, to_proto, to_trailers

PROTO = Path(__file__).parents[2] / "protos/conveyor/common/v1/error_reason.proto"
TABLE = BY_REASON
# Python has a built-in of that name.
OTHER_NAMES = {"NOT_IMPLEMENTED": "NotImplementedYet", "SERVICE_UNREACHABLE": "Unreachable"}


@dataclass(frozen=True)
class Row:
    reason: str
    code: str
    http_status: int
    retry_info: bool
    metadata: tuple[str, ...]


def read_rows() -> list[Row]:
    rows, comment = [], ""
    for line in PROTO.read_text("utf-8").splitlines():
        text = line.strip()
        if text.startswith("//"):
            comment += " " + text.removeprefix("//").strip()
        elif found := re.match(r"ERROR_REASON_(\w+) = \d+;", text):
            if found[1] != "UNSPECIFIED":
                rows.append(parse(found[1], comment))
            comment = ""
        else:
            comment = ""
    return rows


def parse(reason: str, comment: str) -> Row:
    head = re.search(r"`([A-Z_]+)`, HTTP (\d{3})", comment)
    assert head, f"{reason}: the comment must start with code and HTTP status"
    tail = re.search(r"Metadata: (.*)$", comment)
    assert tail, f"{reason}: the comment must end with the metadata keys"
    keys = re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", tail[1]))
    assert keys or tail[1].startswith("none"), f"{reason}: no metadata keys and not `none`"
    retry = re.search(r"\bwith `google.rpc.RetryInfo`", comment) is not None
    return Row(reason, head[1], int(head[2]), retry, tuple(keys))


ROWS = read_rows()


def test_every_value_of_the_enum_is_read() -> None:
    values = {
        n.removeprefix("ERROR_REASON_")
        for n in error_reason_pb2.ErrorReason.DESCRIPTOR.values_by_name
    }
    assert {row.reason for row in ROWS} == values - {"UNSPECIFIED"}


def test_code_and_contract_have_the_same_reasons() -> None:
    assert {row.reason for row in ROWS} == set(TABLE)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.reason)
def test_row(row: Row) -> None:
    error = TABLE[row.reason]
    assert (error.grpc_code, error.http_status) == (row.code, row.http_status)
    assert set(error.metadata_keys) == set(row.metadata)
    assert (error.default_retry_after is not None) == row.retry_info
    camel = "".join(word.capitalize() for word in row.reason.split("_"))
    assert error.__name__ == OTHER_NAMES.get(row.reason, camel)
    assert getattr(errors, error.__name__) is error


@pytest.mark.parametrize("error", TABLE.values(), ids=lambda error: error.reason)
def test_round_trip(error: type[ServiceError]) -> None:
    sent = error(
        "what and how to fix",
        metadata={key: f"value of {key}" for key in error.metadata_keys},
        retry_after=2.5,
        field_violations=[("a.b", "must be c")],
    )
    got = from_proto(to_proto(sent))
    assert type(got) is error
    assert (got.message, got.metadata, got.retry_after, got.field_violations) == (
        sent.message,
        sent.metadata,
        2.5,
        (("a.b", "must be c"),),
    )


@pytest.mark.parametrize("error", TABLE.values(), ids=lambda error: error.reason)
def test_default_pause_travels(error: type[ServiceError]) -> None:
    assert from_proto(to_proto(error("x"))).retry_after == error.default_retry_after


@pytest.mark.parametrize("text", ["x", "ü", "😀"])
@pytest.mark.parametrize("length", [10, 1000, 100_000])
@pytest.mark.parametrize("many", [0, 3, 200])
def test_trailers_stay_small(text: str, length: int, many: int) -> None:
    """Peers drop a call whose trailers pass 8 KiB, so long texts are cut, not sent."""
    err = errors.InvalidField(
        text * length,
        metadata={f"key{i}": text * length for i in range(many)},
        field_violations=[(f"field{i}", text * length) for i in range(many)],
    )
    status = to_proto(err, request_id="r" * 26)
    key, value = to_trailers(status)[0]
    encoded_message = sum(1 if b < 0x7F else 3 for b in status.message.encode())
    assert len(key) + len(value) * 4 / 3 + encoded_message < MAX_TRAILER_BYTES
    got = from_proto(status)
    assert isinstance(got, errors.InvalidField)
    assert got.message[:10] == (text * length)[:10]


def test_short_texts_are_not_cut() -> None:
    err = errors.invalid_field("field", "x" * 500)
    assert from_proto(to_proto(err)).message == f"field: {'x' * 500}"


def test_details_have_the_types_that_clients_look_for() -> None:
    err = errors.LaneFull("full", metadata={"cap": "50"}, field_violations=[("a", "b")])
    kinds: tuple[type[Message], ...] = (
        error_details_pb2.ErrorInfo,
        error_details_pb2.BadRequest,
        error_details_pb2.RetryInfo,
        error_details_pb2.RequestInfo,
    )
    details = to_proto(err, request_id="abc").details
    assert [d.type_url.rpartition("/")[2] for d in details] == [
        kind.DESCRIPTOR.full_name for kind in kinds
    ]
    info = error_details_pb2.ErrorInfo()
    details[0].Unpack(info)
    assert (info.domain, info.reason) == ("conveyor.dev", "LANE_FULL")
