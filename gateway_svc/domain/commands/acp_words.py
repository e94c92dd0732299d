"""How coding agents are called, and how their states and errors are said."""

from __future__ import annotations

from google.rpc import error_details_pb2, status_pb2

from conveyor.acp.v1 import session_pb2 as acp
from svckit.contract_words import PERMISSION_MODES, SESSION_STATES
from svckit.words import last_lines, shorten

_LABEL = 40
_ENDED = frozenset({acp.ACP_SESSION_STATE_CLOSED, acp.ACP_SESSION_STATE_FAILED})
_PERMISSIONS = {mode: word for word, mode in PERMISSION_MODES.items()}

MEANINGS = {
    acp.PERMISSION_MODE_APPROVE_READS: "it may read; what else it asks for is refused",
    acp.PERMISSION_MODE_APPROVE_ALL: "it may do everything and nobody is asked",
    acp.PERMISSION_MODE_DENY_ALL: "everything it asks for is refused",
    acp.PERMISSION_MODE_ASK: "it may read; you are asked about the rest",
}
"""What a permission mode comes to."""


def live(session: acp.AcpSession) -> bool:
    """True until the session has ended."""
    return session.state not in _ENDED


def name_of(session: acp.AcpSession) -> str:
    """Return what people call a session: its label, else its harness."""
    return shorten(session.spec.label, _LABEL) or session.spec.harness_id or "the coding agent"


def full_name(session: acp.AcpSession) -> str:
    """Return its label with its harness behind it."""
    label, harness = shorten(session.spec.label, _LABEL), session.spec.harness_id
    return f"{label} ({harness})" if label and label != harness else name_of(session)


def state_of(session: acp.AcpSession) -> str:
    """Return where it is in its life."""
    return SESSION_STATES.get(session.state, "unknown")


def permissions_of(session: acp.AcpSession) -> str:
    """Return its permission mode as it is typed."""
    return _PERMISSIONS.get(session.spec.permission_mode, "as configured")


def place_of(session: acp.AcpSession) -> str:
    """Return the last part of its directory."""
    path = session.spec.cwd.rstrip("/")
    return f"…/{path.rpartition('/')[2]}" if path.count("/") > 1 else path or "/"


def last_words(error: status_pb2.Status, most: int = 3) -> list[str]:
    """Return the last lines that a harness wrote before it failed, newest last."""
    info = error_details_pb2.ErrorInfo()
    for detail in error.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            detail.Unpack(info)
    return last_lines(info.metadata["lastWords"], most)
