"""`errors.md`: the table of error reasons, from the comments in `error_reason.proto`."""

from __future__ import annotations

import re
from pathlib import Path

from docgen import NOTE, cell, descriptors

PREFIX = "ERROR_REASON_"
COMMENT = re.compile(
    r"`(?P<code>[A-Z_]+)`, HTTP (?P<http>\d+)"
    r"(?P<retry>, with(?P<out>out)? `google\.rpc\.RetryInfo`)?"
    r"\.\s(?P<text>.*?)\s*Metadata:\s(?P<metadata>.*)\.$",
    re.DOTALL,
)

INTRO = """# Error reasons

Every error of the suite is a `google.rpc.Status` whose details hold a `google.rpc.ErrorInfo` with
`domain` `conveyor.dev`, one of these reasons, and the metadata named here (all values are strings).
`INVALID_FIELD` also holds `google.rpc.BadRequest`; reasons marked *retry* hold `google.rpc.RetryInfo`
with the time to wait. Over HTTP the same comes as JSON with the HTTP status beside it. In Python the
exception is `svckit.errors.<Reason in CamelCase>`. *Stored* reasons are found in `Run.error`; code and
status are how a caller who waits for the run sees them. An error of a call that belongs to a trace holds its
id: `google.rpc.RequestInfo.serving_data`, over HTTP `trace_id` (with `trace_url` where `[telemetry] ui_url` is
set), in Python `trace_id` of the exception.

| Reason | gRPC code | HTTP | Retry | Meaning | Metadata |
|---|---|---|---|---|---|
"""


def render(image: Path) -> str:
    """The document."""
    file = next(f for f in descriptors.files(image) if f.name.endswith("/error_reason.proto"))
    _, values = descriptors.enum_comments(file, "ErrorReason")
    rows = []
    for name, comment in values.items():
        if name == PREFIX + "UNSPECIFIED":
            continue
        found = COMMENT.match(comment)
        if found is None:
            raise SystemExit(f"error_reason.proto: the comment of {name} has not the agreed form")
        retry = "yes" if found["retry"] and not found["out"] else ""
        reason = name.removeprefix(PREFIX)
        text, metadata = cell(found["text"]), cell(found["metadata"])
        rows.append(
            f"| `{reason}` | `{found['code']}` | {found['http']} | {retry} | {text} | {metadata} |\n"
        )
    return NOTE + INTRO + "".join(rows)
