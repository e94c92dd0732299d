"""What a hook does with a signed call, decided by its settings and the document that came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from conveyor.acp.v1 import session_pb2 as acp_session
from conveyor.scheduler.v1 import lane_pb2
from gateway_svc.domain.keys import own_key
from gateway_svc.domain.principals import Principal
from gateway_svc.domain.signatures import Scheme
from gateway_svc.domain.templates import NoValue, Template, for_key, value_at
from svckit.errors import InvalidField, invalid_field

CHANNEL = "hook"
Action = Literal["message", "spawn", "steer"]


@dataclass(frozen=True, slots=True)
class Hook:
    """One configured hook. `keys` are those that calls may be signed with."""

    name: str
    keys: Sequence[bytes] = field(repr=False)
    scheme: Scheme
    tolerance: float
    principal: Principal
    action: Action
    text: Template
    only: Mapping[str, Sequence[str]]
    agent_id: str = ""
    session_key: Template | None = None
    queue_mode: lane_pb2.QueueMode.ValueType = lane_pb2.QUEUE_MODE_UNSPECIFIED
    harness_id: str = ""
    cwd: str = ""
    permission_mode: acp_session.PermissionMode.ValueType = acp_session.PERMISSION_MODE_UNSPECIFIED
    label: Template | None = None
    run_id: Template | None = None
    acp_session_id: Template | None = None

    def wants(self, values: Mapping[str, Any]) -> bool:
        """True for a call that is one of those the hook is for."""
        return all(value_at(way, values) in allowed for way, allowed in self.only.items())

    def own_session(self, agent_id: str) -> str:
        """Return the conversation of a hook that names none."""
        return own_key(self.agent_id or agent_id, self.name, CHANNEL)


def filled(template: Template | None, values: Mapping[str, Any], *, is_key: bool = False) -> str:
    """Return a text of a hook with the values of a call; raises `InvalidField` for one missing."""
    if template is None:
        return ""
    try:
        return template.fill(values, for_key if is_key else str)
    except NoValue as missing:
        raise _missing(str(missing)) from None


def _missing(way: str) -> InvalidField:
    return invalid_field(f"body.{way[:128]}", "is needed by this hook and is not there")
