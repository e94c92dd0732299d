"""What a session key says about its session.

Conversations are named `agent:<agent>:<channel>:<scope>:<peer>`; a child's key is its parent's,
then `:subagent:<run id>` or `:acp:<run id>`; an ACP session of its own is `agent:<agent>:acp:<id>`.
Any other text without spaces is a conversation that some client named itself.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from conveyor.gateway.v1 import session_pb2
from svckit.errors import invalid_field

MAX_KEY_LENGTH = 256
# A child's key grows with its depth: its parent's, and the kind and id of the child.
MAX_CHILD_KEY_LENGTH = 1024
MAX_CUSTOMER_LENGTH = 128
DEFAULT_CHANNEL = "http"
_SUBAGENT = ":subagent:"
_ACP = ":acp:"


@dataclass(frozen=True, slots=True)
class SessionKey:
    """A session key, taken apart. `agent_id` is empty when the key does not name one."""

    text: str
    kind: session_pb2.SessionKind.ValueType
    agent_id: str = ""
    channel: str = ""
    peer: str = ""
    parent: str = ""

    @property
    def is_conversation(self) -> bool:
        """True for what a customer may write to."""
        return self.kind == session_pb2.SESSION_KIND_CONVERSATION


def parse_key(text: str, field: str = "session_key") -> SessionKey:
    """Take `text` apart; raises `InvalidField` naming `field` when it can name no session."""
    child = _parse_child(text)
    longest = MAX_KEY_LENGTH if child is None else MAX_CHILD_KEY_LENGTH
    if not 1 <= len(text) <= longest:
        raise invalid_field(field, f"must have 1 to {longest} characters")
    if not text.isprintable() or any(character.isspace() for character in text):
        raise invalid_field(field, "must hold printable characters only, and no spaces")
    if child is not None:
        return child
    parts = text.split(":", 4)
    if len(parts) == 5 and parts[0] == "agent" and all(parts):
        return SessionKey(
            text=text,
            kind=session_pb2.SESSION_KIND_CONVERSATION,
            agent_id=parts[1],
            channel=parts[2],
            peer=parts[4],
        )
    agent_id = parts[1] if len(parts) > 1 and parts[0] == "agent" else ""
    return SessionKey(
        text=text,
        kind=session_pb2.SESSION_KIND_CONVERSATION,
        agent_id=agent_id,
        channel=DEFAULT_CHANNEL,
        peer=text,
    )


def is_child_run(text: str) -> bool:
    """True for the key of a child run's session, not of an ACP session with a lane of its own."""
    key = _parse_child(text)
    return key is not None and bool(key.parent)


def _parse_child(text: str) -> SessionKey | None:
    subagent, acp = text.rfind(_SUBAGENT), text.rfind(_ACP)
    if subagent < 0 and acp < 0:
        return None
    at, marker = (subagent, _SUBAGENT) if subagent > acp else (acp, _ACP)
    kind = (
        session_pb2.SESSION_KIND_SUBAGENT if marker == _SUBAGENT else session_pb2.SESSION_KIND_ACP
    )
    parent = text[:at]
    segments = parent.split(":")
    # `agent:<agent>:acp:<id>` opened on its own: what stands before the marker is no session.
    standalone = marker == _ACP and len(segments) == 2 and segments[0] == "agent"
    # An agent's worker spawns with its own agent unless it says otherwise; the run knows better.
    agent_id = segments[1] if segments[0] == "agent" and len(segments) > 1 else ""
    return SessionKey(
        text=text,
        kind=kind,
        agent_id=agent_id,
        parent="" if standalone else parent,
    )


def own_key(agent_id: str, peer: str, channel: str = DEFAULT_CHANNEL, account: str = "") -> str:
    """Return the key of a peer's own session with an agent.

    What a peer says to two accounts of a channel are two conversations. Raises `ValueError` for an
    account that would read as another part of the key.
    """
    if ":" in account:
        raise ValueError("an account must not hold a colon")
    scope = f"direct@{account}" if account else "direct"
    return f"agent:{agent_id}:{channel}:{scope}:{peer}"


def default_customer(key: SessionKey) -> str:
    """Return the customer of a new session, channel and peer, when nobody named one."""
    customer = f"{key.channel}:{key.peer}"
    if len(customer) <= MAX_CUSTOMER_LENGTH:
        return customer
    # Cut, but never so that two people become one customer.
    digest = hashlib.blake2b(customer.encode(), digest_size=8).hexdigest()
    return f"{customer[: MAX_CUSTOMER_LENGTH - 17]}~{digest}"
