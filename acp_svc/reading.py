"""Reads what the protocol's library hands over into the records that the rules work on.

Everything is cut here already: what a harness sends in one update may be larger than all that is
ever shown of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from acp import schema

from acp_svc.domain import toolcalls as t
from acp_svc.domain import updates as u
from acp_svc.domain.cutting import bounded, clean
from acp_svc.domain.metering import Totals
from acp_svc.domain.permissions import Option
from svckit.usage import believable

ID_CHARS = 128
MICROS = 1_000_000


def update(given: object, cwd: str) -> u.Update | None:
    """Read an update of a session in `cwd`; None for one that tells nothing to people."""
    match given:
        case schema.AgentMessageChunk():
            return u.Said(text_of(given.content, u.MESSAGE_BYTES), given.message_id or "")
        case schema.AgentThoughtChunk():
            return u.Thought(text_of(given.content, u.THOUGHT_BYTES), given.message_id or "")
        case schema.AgentPlanUpdate():
            return _plan(given.entries)
        case schema.AgentPlanContentUpdate(plan=schema.PlanUpdateItems() as plan):
            return _plan(plan.entries)
        case schema.ToolCallStart() | schema.ToolCallUpdate():
            return patch(given, cwd)
    return None


def patch(given: schema.ToolCall | schema.ToolCallUpdate, cwd: str) -> t.Patch:
    """Read what is said of a tool call."""
    texts: tuple[str, ...] | None = None
    diffs: tuple[t.Diff, ...] | None = None
    if given.content is not None:
        parts = given.content[: t.MOST_PARTS]
        texts = tuple(
            text_of(part.content, t.SHOWN_BYTES)
            for part in parts
            if isinstance(part, schema.ContentToolCallContent)
        )
        diffs = tuple(
            _diff(part, cwd) for part in parts if isinstance(part, schema.FileEditToolCallContent)
        )
    locations: tuple[str, ...] | None = None
    if given.locations is not None:
        locations = t.absolute([place.path for place in given.locations], cwd)
    return t.Patch(
        call_id=clean(given.tool_call_id, ID_CHARS),
        title=None if given.title is None else clean(given.title, 4 * t.TITLE_CHARS),
        kind=given.kind,
        status=given.status,
        locations=locations,
        texts=texts,
        diffs=diffs,
        arguments=_kept(given.raw_input),
        output=_kept(given.raw_output),
    )


def options(given: Sequence[schema.PermissionOption]) -> tuple[Option, ...]:
    """Read what a permission request may be answered with."""
    return tuple(Option(one.option_id, one.name, one.kind) for one in given)


def text_of(block: Any, limit: int) -> str:
    """Say a piece of content in text."""
    match block:
        case schema.TextContentBlock():
            return clean(block.text, limit)
        case schema.ResourceContentBlock():
            return clean(f"[{block.title or block.name}]({block.uri})", limit)
        case schema.EmbeddedResourceContentBlock(resource=schema.TextResourceContents() as inner):
            return clean(inner.text, limit)
        case schema.EmbeddedResourceContentBlock():
            return clean(f"[{block.resource.uri}]", limit)
        case schema.ImageContentBlock() | schema.AudioContentBlock():
            return clean(f"[{block.mime_type}]", limit)
    return ""


def usage(given: schema.UsageUpdate) -> tuple[int, int | None]:
    """Read tokens in the context, and the cost of the session in millionths of a US dollar."""
    cost = given.cost
    if cost is None or cost.currency.upper() != "USD" or not 0 <= cost.amount < 1e6:
        return believable(given.used), None
    return believable(given.used), round(cost.amount * MICROS)


def totals(given: schema.Usage | None) -> Totals | None:
    """Read what the end of a prompt says that it used."""
    if given is None:
        return None
    cached = believable(given.cached_read_tokens or 0)
    written_to_cache = believable(given.cached_write_tokens or 0)
    return Totals(
        read=believable(given.input_tokens) + cached + written_to_cache,
        written=believable(given.output_tokens) + believable(given.thought_tokens or 0),
        cached=cached,
    )


def _plan(entries: Sequence[schema.PlanEntry]) -> u.Planned:
    return u.Planned(
        tuple(
            u.Entry(clean(entry.content, 4 * u.ENTRY_CHARS), entry.status)
            for entry in entries[: u.MOST_ENTRIES]
        )
    )


def _diff(given: schema.FileEditToolCallContent, cwd: str) -> t.Diff:
    path = t.absolute([given.path], cwd)
    old = None if given.old_text is None else clean(given.old_text, t.KEPT_BYTES)
    return t.Diff(path[0] if path else "", old, clean(given.new_text, t.KEPT_BYTES))


def _kept(value: object) -> object:
    return None if value is None else bounded(value, t.KEPT_BYTES)
