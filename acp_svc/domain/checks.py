"""The order of the doctor's checks and what one failure means for the next.

The rules say which check comes next and how a report is judged; looking at the machine is done by
a `Look` that the caller gives, so every path through the order can be tried without a machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum


class Check(Enum):
    """What a check looks at, in the order of checking."""

    ENABLED = "enabled"
    COMMAND_FOUND = "command found"
    VERSION = "version"
    STARTS = "starts"
    INITIALIZE = "initialize"
    AUTHENTICATION = "authentication"
    PERMISSION_MODE = "permission mode"
    WORKSPACE_ROOTS = "workspace roots"


class Status(Enum):
    """How a check went."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look found."""

    status: Status
    message: str
    code: str = ""
    """Error reason, for example `ACP_BACKEND_MISSING`. Empty when ok or skipped."""
    hint: str = ""
    """What to do about it. Empty when nothing."""


HARNESS_CHECKS = (
    Check.COMMAND_FOUND,
    Check.VERSION,
    Check.STARTS,
    Check.INITIALIZE,
    Check.AUTHENTICATION,
    Check.PERMISSION_MODE,
)
"""Checks made for each harness; `ENABLED` before and `WORKSPACE_ROOTS` after are of the service."""

LATER = frozenset(
    {Check.STARTS, Check.INITIALIZE, Check.AUTHENTICATION, Check.PERMISSION_MODE},
)
"""Checks that this release does not make. They are reported as skipped, so that nobody takes a
report for more than it is."""


def not_in_this_release(check: Check) -> Finding:
    """Return the finding for a check that does not exist yet."""
    return Finding(Status.SKIPPED, f"not in this release: {check.value}")


def blocked(by: Check) -> Finding:
    """Return the finding for a check that an earlier failure made pointless."""
    return Finding(Status.SKIPPED, f"not checked, because the check before failed: {by.value}")


def skipped(check: Check, failed: Check | None) -> Finding | None:
    """Return why `check` is not made, or None when it is to be made.

    `failed` is the first failed check that `check` depends on. A check that does not exist yet says
    so even when an earlier one failed: repairing that one would not bring it.
    """
    if check in LATER:
        return not_in_this_release(check)
    if failed is not None:
        return blocked(failed)
    return None


def healthy(statuses: Sequence[Status]) -> bool:
    """Return whether a report is good: something was checked, nothing failed or was skipped."""
    return bool(statuses) and not any(s in (Status.FAILED, Status.SKIPPED) for s in statuses)
