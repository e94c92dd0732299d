"""The order of the doctor's checks, what one failure means for the next, and for the whole.

Looking at the machine is done elsewhere, so every path through the order can be tried without one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
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
    SANDBOX = "sandbox"


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


@dataclass(frozen=True, slots=True)
class Made:
    """One line of the report. `harness_id` is empty for checks of the whole service."""

    check: Check
    harness_id: str
    finding: Finding
    seconds: float = 0.0


HARNESS_CHECKS = (
    Check.COMMAND_FOUND,
    Check.VERSION,
    Check.STARTS,
    Check.INITIALIZE,
    Check.AUTHENTICATION,
    Check.PERMISSION_MODE,
)
"""Checks made for each harness; `ENABLED` before, the others after them are of the service."""
MISSING = "ACP_BACKEND_MISSING"


def blocked(by: Check) -> Finding:
    """Return the finding for a check that an earlier failure made pointless."""
    return Finding(Status.SKIPPED, f"not checked, because the check before failed: {by.value}")


def completed(harness_id: str, made: Sequence[Made], blocker: Check | None = None) -> list[Made]:
    """Return all lines of a harness, given those made up to the first failure.

    `blocker` is a check of the service that failed before.
    """
    known = {one.check: one for one in made}
    lines = []
    for check in HARNESS_CHECKS:
        line = known.get(check)
        if blocker is not None and line is None:
            line = Made(check, harness_id, blocked(blocker))
        assert line is not None, f"{check} was neither made nor blocked"
        if line.finding.status is Status.FAILED and blocker is None:
            blocker = check
        lines.append(line)
    return lines


def excused(made: Sequence[Made], wanted: Iterable[str]) -> list[Made]:
    """Return the report with missing harnesses as a warning, where one may do without them.

    That is so for those that nobody named, while another one is good: the registry holds many
    harnesses, and nobody has all of them.
    """
    missing = {one.harness_id for one in made if one.finding.code == MISSING}
    fails = {one.harness_id for one in made if one.finding.status is Status.FAILED}
    some_good = any(one.harness_id and one.harness_id not in fails for one in made)
    optional = missing - set(wanted) if some_good else set()
    return [
        replace(one, finding=replace(one.finding, status=Status.WARNING))
        if one.harness_id in optional and one.finding.status is Status.FAILED
        else one
        for one in made
    ]


def healthy(made: Sequence[Made]) -> bool:
    """Return whether a report is good: nothing failed, and nothing was left out for a failure."""
    excuses = {one.harness_id for one in made if one.finding.code == MISSING}
    return bool(made) and not any(
        one.finding.status is Status.FAILED
        or (one.finding.status is Status.SKIPPED and one.harness_id not in excuses)
        for one in made
    )
