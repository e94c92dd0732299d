"""Which sessions are shut in, and what of the file system they may change."""

from __future__ import annotations

from acp_svc.domain.permissions import PermissionMode


def needs_sandbox(mode: PermissionMode) -> bool:
    """Return whether reading only is also to be enforced from outside the harness.

    Not when people are asked: what they allow has to work.
    """
    return mode in (PermissionMode.APPROVE_READS, PermissionMode.DENY_ALL)
