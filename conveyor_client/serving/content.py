"""Content between the Agent Client Protocol and the suite. Pure.

https://agentclientprotocol.com/protocol/content
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from acp.helpers import image_block, resource_link_block, text_block
from acp.schema import (
    AudioContentBlock,
    EmbeddedResourceContentBlock,
    ImageContentBlock,
    ResourceContentBlock,
    TextContentBlock,
    TextResourceContents,
)

from conveyor.common.v1 import content_pb2 as content_pb

Block: TypeAlias = (
    TextContentBlock
    | ImageContentBlock
    | AudioContentBlock
    | ResourceContentBlock
    | EmbeddedResourceContentBlock
)


class BadContent(ValueError):
    """A prompt that the suite cannot take. The text says what to change."""


def message_of(prompt: Sequence[Block]) -> content_pb.Message:
    """Return a prompt as a message. Raises `BadContent`."""
    message = content_pb.Message(role=content_pb.ROLE_USER)
    message.parts.extend(_part(block) for block in prompt)
    return message


def _part(block: Block) -> content_pb.ContentPart:
    match block:
        case TextContentBlock():
            return content_pb.ContentPart(text=block.text)
        case ImageContentBlock() | AudioContentBlock():
            return _bytes(block.mime_type, block.data)
        case ResourceContentBlock():
            link = content_pb.Resource(uri=block.uri, media_type=block.mime_type or "")
            return content_pb.ContentPart(resource=link)
        case EmbeddedResourceContentBlock(resource=TextResourceContents() as file):
            return content_pb.ContentPart(text=f"{file.uri}:\n\n{file.text}")
        case EmbeddedResourceContentBlock():
            return _bytes(block.resource.mime_type or "", block.resource.blob)


def _bytes(media_type: str, data: str) -> content_pb.ContentPart:
    try:
        raw = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise BadContent("inline data must be base64") from None
    media = media_type or "application/octet-stream"
    return content_pb.ContentPart(blob=content_pb.Blob(media_type=media, data=raw))


def blocks_of(message: content_pb.Message) -> Iterator[Block]:
    """Yield a message's parts as a client shows them."""
    for part in message.parts:
        match part.WhichOneof("part"):
            case "text":
                yield text_block(part.text)
            case "blob":
                data = base64.b64encode(part.blob.data).decode()
                if part.blob.media_type.startswith("image/"):
                    yield image_block(data, part.blob.media_type)
                else:
                    yield text_block(f"({part.blob.media_type}, {len(part.blob.data)} bytes)")
            case "resource":
                uri = part.resource.uri
                name = uri.rsplit("/", 1)[-1] or uri
                yield resource_link_block(name, uri, mime_type=part.resource.media_type or None)
