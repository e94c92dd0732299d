"""The address in a run's reply route: opaque to the suite, readable to the gateway alone."""

from __future__ import annotations

import json
from dataclasses import dataclass

MAX_ADDRESS_BYTES = 1024


@dataclass(frozen=True, slots=True)
class ReplyAddress:
    """A conversation or thread of a channel, never one message: equal routes can be collected."""

    channel: str
    peer: str
    thread: str = ""

    @property
    def recipient(self) -> str:
        """Whose deliveries keep their order among each other."""
        return encode_address(self)


def encode_address(address: ReplyAddress) -> str:
    """Return the text for `ReplyRoute.address`. Equal addresses give equal texts."""
    content = {"channel": address.channel, "peer": address.peer}
    if address.thread:
        content["thread"] = address.thread
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False)


def decode_address(text: str) -> ReplyAddress | None:
    """Read a stored address. `None` for what is empty or was not written by this gateway."""
    try:
        content = json.loads(text)
        channel, peer = content["channel"], content["peer"]
        thread = content.get("thread", "")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not all(isinstance(value, str) for value in (channel, peer, thread)):
        return None
    return ReplyAddress(channel=channel, peer=peer, thread=thread)
