"""What a harness is told: the messages of a run as content of the protocol."""

from __future__ import annotations

from collections.abc import Iterable

from acp import schema

from acp_svc.harness.types import Block
from conveyor.common.v1 import content_pb2
from conveyor.scheduler.v1 import run_pb2


def blocks_of(inputs: Iterable[run_pb2.RunInput]) -> list[Block]:
    """Return the messages among some inputs, in order.

    Every harness takes text and links. What is attached as bytes is named, so that nobody wonders.
    """
    return [
        block
        for item in inputs
        if item.HasField("message")
        for part in item.message.parts
        if (block := _block(part)) is not None
    ]


def _block(part: content_pb2.ContentPart) -> Block | None:
    match part.WhichOneof("part"):
        case "text" if part.text.strip():
            return schema.TextContentBlock(type="text", text=part.text)
        case "resource":
            uri = part.resource.uri
            return schema.ResourceContentBlock(
                type="resource_link",
                uri=uri,
                name=uri.rstrip("/").rpartition("/")[2] or uri,
                mime_type=part.resource.media_type or None,
            )
        case "blob":
            what = f"[an attachment of type {part.blob.media_type} is not passed on]"
            return schema.TextContentBlock(type="text", text=what)
    return None
