"""The address in a run's reply route: opaque to the suite, readable to the gateway alone."""

from __future__ import annotations

import json
from dataclasses import dataclass

MAX_ADDRESS_BYTES = 1024


@dataclass(frozen=True, slots=True)
class ReplyAddress:
    """A conversation or thread of a channel, never one message: equal routes can be collected.

    `account` is the account of the channel that was written to, and that answers; empty when the
    channel has only one.
    """

    channel: str
    peer: str
    thread: str = ""
    account: str = ""

    @property
    def recipient(self) -> str:
        """Whose deliveries keep their order among each other."""
        return encode_address(self)


def encode_address(address: ReplyAddress) -> str:
    """Return the text for `ReplyRoute.address`. Equal addresses give equal texts."""
    content = {"channel": address.channel, "peer": address.peer}
    if address.thread:
        content["thread"] = address.thread
    if address.account:
        content["account"] = address.account
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False)


def decode_address(text: str) -> ReplyAddress | None:
    """Read a stored address. `None` for what is empty or was not written by this gateway."""
    try:
        content = json.loads(text)
        channel, peer = content["channel"], content["peer"]
        thread, account = content.get("thread", ""), content.get("account", "")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not all(isinstance(value, str) for value in (channel, peer, thread, account)):
        return None
    return ReplyAddress(channel=channel, peer=peer, thread=thread, account=account)
