"""Messages as the transcript keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

Role = Literal["user", "agent", "system"]

QUOTE_CHARS = 160


class Part(msgspec.Struct, frozen=True, omit_defaults=True):
    """One piece of content: text, inline bytes with a media type, or a reference by URI."""

    text: str = ""
    media_type: str = ""
    data: bytes = b""
    uri: str = ""


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One message of a conversation. `create_us` is microseconds since 1970, 0 when unknown."""

    message_id: str
    role: Role
    parts: tuple[Part, ...]
    create_us: int = 0

    @property
    def text(self) -> str:
        """The text parts, joined by blank lines."""
        return "\n\n".join(part.text for part in self.parts if part.text)


class Input(msgspec.Struct, frozen=True, omit_defaults=True):
    """A message that a run has to answer, with the request id that brought it."""

    request_id: str
    message: Message


def text_message(message_id: str, role: Role, text: str, create_us: int = 0) -> Message:
    """Build a message of one text part."""
    return Message(message_id, role, (Part(text=text),), create_us)


def excerpt(text: str, limit: int = QUOTE_CHARS) -> str:
    """Cut `text` to one line of at most `limit` characters, for quotes and lists."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1].rstrip() + "…"


def quote(inputs: Sequence[Input]) -> str:
    """Quote what the customer said in one line. Empty when nothing was said in text."""
    return excerpt(" / ".join(item.message.text for item in inputs if item.message.text))
