"""Reads the result of a tool call as text: what is no text is described."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcp_types import CallToolResult


def text_of(result: CallToolResult) -> str:
    """All parts, joined by blank lines."""
    texts = [_text(block) for block in result.content]
    if not any(texts) and result.structured_content is not None:
        texts = [json.dumps(result.structured_content, ensure_ascii=False)]
    return "\n\n".join(text for text in texts if text).replace("\0", "")


def _text(block: Any) -> str:
    if block.type == "text":
        return str(block.text)
    if block.type in ("image", "audio"):
        return f"[{block.type}, {block.mime_type}, {_size(block.data)}: not shown]"
    if block.type == "resource_link":
        return f"[resource {block.name}: {block.uri}]"
    if block.type == "resource":
        inner = block.resource
        if (text := getattr(inner, "text", None)) is not None:
            return f"[resource {inner.uri}]\n{text}"
        kind = inner.mime_type or "unknown kind"
        return f"[resource {inner.uri}, {kind}, {_size(inner.blob)}: not shown]"
    return f"[{block.type}: not shown]"


def _size(base64: str) -> str:
    return f"{len(base64) * 3 // 4} bytes"
