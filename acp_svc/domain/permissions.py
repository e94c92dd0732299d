"""What a harness may do: how a permission that it asks for is decided, and how people are asked."""

from __future__ import annotations

from enum import Enum


class PermissionMode(Enum):
    """What happens when a harness asks for permission. Values as in the configuration."""

    APPROVE_READS = "approve-reads"
    """Reading is allowed, everything else is rejected."""
    APPROVE_ALL = "approve-all"
    DENY_ALL = "deny-all"
    ASK = "ask"
    """People are asked; without an answer in time it is rejected."""
