"""Resume tokens: how far one watcher has read, as text that only the gateway understands.

A token names what it was issued for, so that it cannot be used to skip events of something else. It
holds one sequence for the session watched, one position per spawn tree that is followed beside it,
and one position for scopes that are not a session.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from svckit.errors import invalid_field

_VERSION = 1
_MAX_LENGTH = 16_384


@dataclass(frozen=True, slots=True)
class Positions:
    """How far a watcher is. `None` means that it has not begun."""

    sequence: int | None = None
    position: int | None = None
    flows: Mapping[str, int] = field(default_factory=dict)

    @property
    def begun(self) -> bool:
        """True when something of the main stream has been read."""
        return self.sequence is not None or self.position is not None

    def advanced(self, *, sequence: int = 0, position: int = 0) -> Positions:
        """Return where a watcher is that read on to these numbers; 0 says nothing."""
        return Positions(
            sequence=max(sequence, self.sequence or 0) or self.sequence,
            position=max(position, self.position or 0) or self.position,
            flows=self.flows,
        )


def session_subject(session_key: str) -> str:
    """Name a session as what a token is for."""
    return f"session {session_key}"


def flow_subject(flow_id: str) -> str:
    """Name a spawn tree as what a token is for."""
    return f"flow {flow_id}"


ALL_SESSIONS_SUBJECT = "all"


def encode_token(subject: str, positions: Positions) -> str:
    """Return the token of `positions`; deterministic, URL safe, without padding."""
    content: dict[str, object] = {"v": _VERSION, "of": _digest(subject)}
    if positions.sequence is not None:
        content["s"] = positions.sequence
    if positions.position is not None:
        content["p"] = [positions.position]  # one per scheduler shard
    if positions.flows:
        content["f"] = dict(positions.flows)
    raw = json.dumps(content, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decode_token(subject: str, token: str, field_name: str = "resume_token") -> Positions:
    """Read a token issued for `subject`. Empty gives empty positions.

    Raises `InvalidField` for anything that this gateway did not issue for `subject`.
    """
    if not token:
        return Positions()
    try:
        if len(token) > _MAX_LENGTH:
            raise ValueError
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        content = json.loads(raw)
        if content["v"] != _VERSION:
            raise ValueError
        of = content["of"]
        positions = Positions(
            sequence=_natural(content["s"]) if "s" in content else None,
            position=_natural(content["p"][0]) if "p" in content else None,
            flows={str(flow): _natural(at) for flow, at in content.get("f", {}).items()},
        )
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        raise invalid_field(field_name, "is not a token of this service") from None
    if of != _digest(subject):
        raise invalid_field(field_name, "was issued for something else")
    return positions


def _natural(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError
    return value


def _digest(subject: str) -> str:
    return hashlib.blake2b(subject.encode(), digest_size=6).hexdigest()
