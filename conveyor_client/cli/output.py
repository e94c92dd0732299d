"""How the command line shows things: JSON for programs, tables and words for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2  # noqa: F401  (what an `Any` holds must be known)

from conveyor.acp.v1 import task_pb2 as _acp_task  # noqa: F401
from conveyor.agent.v1 import task_pb2 as _agent_task  # noqa: F401
from conveyor.common.v1 import content_pb2 as content_pb
from conveyor.common.v1 import usage_pb2 as usage_pb
from conveyor.scheduler.v1 import run_pb2 as run_pb
from conveyor_client.cli.arguments import more

if TYPE_CHECKING:
    from google.protobuf.any_pb2 import Any as AnyProto
    from rich.console import Console

    from conveyor.gateway.v1 import gateway_service_pb2 as gateway_pb
    from conveyor.scheduler.v1 import flow_service_pb2 as flow_pb
    from conveyor.scheduler.v1 import scheduler_service_pb2 as scheduler_pb

    Listed = (
        gateway_pb.ListAcpSessionsResponse
        | gateway_pb.ListQuestionsResponse
        | gateway_pb.ListSessionsResponse
        | flow_pb.ListFlowsResponse
        | scheduler_pb.ListLanesResponse
        | scheduler_pb.ListRunsResponse
    )

AnyMessage = TypeVar("AnyMessage", bound=Message)

STATES = {
    run_pb.RUN_STATE_QUEUED: ("queued", "yellow", "○"),
    run_pb.RUN_STATE_RUNNING: ("running", "cyan", "◐"),
    run_pb.RUN_STATE_SUSPENDED: ("waiting", "blue", "◌"),
    run_pb.RUN_STATE_CANCELLING: ("cancelling", "magenta", "◍"),
    run_pb.RUN_STATE_SUCCEEDED: ("succeeded", "green", "✓"),
    run_pb.RUN_STATE_FAILED: ("failed", "red", "✗"),
    run_pb.RUN_STATE_CANCELLED: ("cancelled", "magenta", "■"),
    run_pb.RUN_STATE_EXPIRED: ("expired", "red", "⌛"),
}
"""Word, colour and sign of each run state."""

TERMINAL = frozenset(
    {
        run_pb.RUN_STATE_SUCCEEDED,
        run_pb.RUN_STATE_FAILED,
        run_pb.RUN_STATE_CANCELLED,
        run_pb.RUN_STATE_EXPIRED,
    }
)


def as_json(message: Message, *, indent: int | None = None) -> str:
    """Return the proto JSON of `message` with its snake_case names, on one line by default."""
    try:
        data = json_format.MessageToDict(message, preserving_proto_field_name=True)
    except TypeError:
        # An `Any` of a newer server: leave out what cannot be read rather than show nothing.
        readable = type(message)()
        readable.CopyFrom(message)
        _drop_unknown(readable)
        data = json_format.MessageToDict(readable, preserving_proto_field_name=True)
    return json.dumps(data, ensure_ascii=False, indent=indent)


def _drop_unknown(message: Message) -> None:
    from google.protobuf import descriptor_pool

    pool = descriptor_pool.Default()
    if message.DESCRIPTOR.full_name == "google.protobuf.Any":
        packed: AnyProto = message  # type: ignore[assignment]
        try:
            pool.FindMessageTypeByName(packed.type_url.rpartition("/")[2])
        except KeyError:
            packed.Clear()
        return
    for field, value in message.ListFields():
        if field.type != field.TYPE_MESSAGE:
            continue
        entries: Iterable[object]
        if field.message_type and field.message_type.GetOptions().map_entry:
            entries = list(value.values())
        elif isinstance(value, Message):
            entries = [value]
        else:
            entries = list(value)
        for entry in entries:
            if isinstance(entry, Message):
                _drop_unknown(entry)


def print_json(message: Message) -> None:
    """Print one JSON document: indented on a terminal, on one line elsewhere."""
    print(as_json(message, indent=2 if sys.stdout.isatty() else None), flush=True)


def print_json_line(message: Message) -> None:
    """Print one JSON document on one line, at once."""
    print(as_json(message), flush=True)


def console() -> Console:
    """Return a console for standard output."""
    from rich.console import Console

    # Into a pipe nothing is folded to the width of a terminal that is not there.
    return Console(highlight=False, width=None if sys.stdout.isatty() else 10_000)


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    empty: str,
    *,
    whole: str = "",
    give_way: Sequence[str] = (),
) -> None:
    """Print a table, or `empty` when there are no rows. Cells hold rich markup.

    Where a terminal is too narrow, the columns in `give_way` are left out, the first one first,
    until the rest fits. What still does not fit is folded, but never the column `whole`: an id in
    two halves cannot be copied.
    """
    target = console()
    cells = [list(row) for row in rows]
    if not cells:
        target.print(empty)
        return
    widths = {
        column: max(measured(text) for text in (column, *(row[index] for row in cells)))
        for index, column in enumerate(columns)
    }
    shown = fitting(widths, target.width, give_way)
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in shown:
        no_wrap = column == whole or not sys.stdout.isatty()
        table.add_column(column, overflow="fold", no_wrap=no_wrap)
    for row in cells:
        by_column = dict(zip(columns, row, strict=True))
        table.add_row(*(by_column[column] for column in shown))
    target.print(table)


def print_page(
    found: Listed,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    empty: str,
    *,
    json: bool,
    whole: str = "",
    give_way: Sequence[str] = (),
) -> None:
    """Print one page of a list: its JSON, or a table of `rows` with how to get the next page."""
    if json:
        print_json(found)
        return
    print_table(columns, rows, empty, whole=whole, give_way=give_way)
    more(found.next_page_token)


def measured(markup: str) -> int:
    """Return how many places a cell takes on a terminal."""
    from rich.text import Text

    return max((line.cell_len for line in Text.from_markup(markup).split()), default=0)


def fitting(widths: Mapping[str, int], room: int, give_way: Sequence[str]) -> list[str]:
    """Return the columns to show: all but as many of `give_way` as it takes to fit into `room`."""
    shown = list(widths)
    for column in give_way:
        gaps = 2 * (len(shown) - 1)
        if sum(widths[name] for name in shown) + gaps <= room:
            break
        shown.remove(column)
    return shown


def plain(text: str) -> str:
    """Make text from elsewhere harmless inside rich markup and on a terminal."""
    from rich.markup import escape

    return escape(printable(text))


def printable(text: str) -> str:
    """Drop control characters (an answer must not be able to drive the terminal)."""
    return "".join(c for c in text if c in "\n\t" or (c >= " " and not "\x7f" <= c <= "\x9f"))


def state_markup(state: run_pb.RunState.ValueType) -> str:
    """Return sign and word of a run state, coloured."""
    word, colour, sign = STATES.get(state, ("unknown", "white", "?"))
    return f"[{colour}]{sign} {word}[/]"


def state_word(state: run_pb.RunState.ValueType) -> str:
    """Return the word for a run state."""
    return STATES.get(state, ("unknown", "", ""))[0]


def when(stamp: Timestamp) -> str:
    """Return a point in time in local time, or a dash when unset."""
    if not (stamp.seconds or stamp.nanos):
        return "-"
    from datetime import UTC

    return stamp.ToDatetime(tzinfo=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def seconds(duration: Duration) -> float:
    """Return a duration in seconds."""
    return duration.seconds + duration.nanos / 1e9


def between(start: Timestamp, end: Timestamp) -> float:
    """Return the seconds from one point in time to another."""
    return (end.seconds - start.seconds) + (end.nanos - start.nanos) / 1e9


def tokens(usage: usage_pb.Usage) -> str:
    """Return token use as people say it, with cost when it is known."""
    total = usage.input_tokens + usage.output_tokens
    words = f"{total:,} tokens"
    if usage.cost_micros_usd:
        more = "≥ " if usage.unpriced_calls else ""
        words += f", {more}${usage.cost_micros_usd / 1e6:.4f}"
    return words


def text_of(message: content_pb.Message) -> str:
    """Return the text of a message; other parts are named."""
    words = []
    for part in message.parts:
        kind = part.WhichOneof("part")
        if kind == "text":
            words.append(part.text)
        elif kind == "blob":
            words.append(f"[{part.blob.media_type}, {len(part.blob.data)} bytes]")
        elif kind == "resource":
            words.append(f"[{part.resource.uri}]")
    return "\n".join(words)
