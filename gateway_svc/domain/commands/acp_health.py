"""What `/acp doctor` and `/acp install` answer: which coding agents work here, and what to do."""

from __future__ import annotations

from collections.abc import Sequence

from conveyor.acp.v1 import acp_service_pb2 as service
from conveyor.acp.v1 import doctor_pb2 as doctor
from gateway_svc.domain.commands.problem import Problem, cut
from svckit.words import joined, shorten

_LINE, _HINT, _VERSION, _NOTES = 160, 200, 40, 320
_KINDS = {
    doctor.DOCTOR_CHECK_KIND_ENABLED: "switched on",
    doctor.DOCTOR_CHECK_KIND_COMMAND_FOUND: "installed",
    doctor.DOCTOR_CHECK_KIND_VERSION: "version",
    doctor.DOCTOR_CHECK_KIND_STARTS: "starts",
    doctor.DOCTOR_CHECK_KIND_INITIALIZE: "answers",
    doctor.DOCTOR_CHECK_KIND_AUTHENTICATION: "logged in",
    doctor.DOCTOR_CHECK_KIND_PERMISSION_MODE: "permissions",
    doctor.DOCTOR_CHECK_KIND_WORKSPACE_ROOTS: "directories",
}
_FAILURES = {
    doctor.DOCTOR_CHECK_KIND_ENABLED: "switched off",
    doctor.DOCTOR_CHECK_KIND_VERSION: "cannot be started",
    doctor.DOCTOR_CHECK_KIND_STARTS: "does not start",
    doctor.DOCTOR_CHECK_KIND_INITIALIZE: "does not answer",
    doctor.DOCTOR_CHECK_KIND_AUTHENTICATION: "opens no session",
    doctor.DOCTOR_CHECK_KIND_PERMISSION_MODE: "does not ask for permission",
}
_NOT_MADE = (doctor.DOCTOR_STATUS_FAILED, doctor.DOCTOR_STATUS_SKIPPED)
_BAD = (doctor.DOCTOR_STATUS_FAILED, doctor.DOCTOR_STATUS_WARNING)


def doctor_text(report: doctor.DoctorReport) -> str:
    """Return what `/acp doctor` says: a line or two for each harness, what is wrong first."""
    lines = [f"healthy: {'yes' if report.healthy else 'no'}"]
    by_harness: dict[str, list[doctor.DoctorCheck]] = {}
    for check in report.checks:
        by_harness.setdefault(check.harness_id, []).append(check)
    lines += [line for check in by_harness.pop("", []) for line in _told("", check)]
    good: list[str] = []
    for harness_id, checks in by_harness.items():
        told = [line for check in checks for line in _told(harness_id, check)]
        if not any(check.status in _NOT_MADE for check in checks):
            # What deserves a look stands behind it.
            good += [f"{harness_id}: works{_version(checks)}", *told]
        elif told:
            lines += told
        else:
            skipped = [c for c in checks if c.status == doctor.DOCTOR_STATUS_SKIPPED]
            lines.append(f"{harness_id}: {shorten(skipped[0].message, _LINE)}")
    return "\n".join([*lines[:1], *good, *lines[1:]])


def _told(harness_id: str, check: doctor.DoctorCheck) -> list[str]:
    """Return what is said of one check: nothing of those that went well or were not made."""
    if check.status not in _BAD:
        return []
    hint = shorten(check.hint, _HINT)
    code = f" ({check.code})" if check.code else ""
    if check.code == "ACP_BACKEND_MISSING":
        # An address to open is no command.
        how = hint if hint.startswith("open ") else f"`{hint}`"
        return [f"{harness_id}: not installed{code}: {how}"]
    what = _KINDS.get(check.kind, "check")
    who = f"{harness_id}: " if harness_id else ""
    if check.status == doctor.DOCTOR_STATUS_WARNING:
        # Its code is that of a failure, which it is not.
        what, code = f"look at {what}", ""
    else:
        what = _FAILURES.get(check.kind, f"{what} failed")
    line = f"{who}{what}{code}: {shorten(check.message, _LINE)}"
    return [f"{line}. {hint}" if hint else line]


def _version(checks: Sequence[doctor.DoctorCheck]) -> str:
    for check in checks:
        is_version = check.kind == doctor.DOCTOR_CHECK_KIND_VERSION
        if is_version and check.status == doctor.DOCTOR_STATUS_OK:
            return f", {shorten(check.message, _VERSION)}"
    return ""


def install_text(harnesses: Sequence[service.Harness], harness_id: str) -> str | Problem:
    """Return what `/acp install` says, about one harness or about all that may be spawned."""
    allowed = [harness for harness in harnesses if harness.allowed]
    if harness_id:
        for harness in allowed:
            if harness.harness_id == harness_id.lower():
                return _how(harness)
        there = (
            joined([f"`{harness.harness_id}`" for harness in allowed], "or") if allowed else "none"
        )
        return Problem(
            f"no harness is called “{cut(harness_id)}”: there is {there}, "
            f"for example `/acp install {allowed[0].harness_id if allowed else 'claude'}`"
        )
    present = [harness.harness_id for harness in allowed if harness.installed]
    missing = [harness for harness in allowed if not harness.installed]
    lines = [f"Installed: {', '.join(present)}" if present else "None is installed yet"]
    lines += [f"{harness.harness_id}: {_command(harness)}" for harness in missing]
    if missing:
        lines.append("Run it where Conveyor runs, then `/acp doctor`.")
    return "\n".join(lines)


def _how(harness: service.Harness) -> str:
    notes = f"\n{shorten(harness.notes, _NOTES)}" if harness.notes else ""
    if harness.installed:
        return (
            f"{harness.display_name} is installed.{notes}\n"
            f"`/acp doctor {harness.harness_id}` says whether it works."
        )
    return (
        f"{harness.display_name} is not installed. Where Conveyor runs:\n{_command(harness)}\n"
        f"Then `/acp doctor {harness.harness_id}`.{notes}"
    )


def _command(harness: service.Harness) -> str:
    hint = shorten(harness.install_hint, _HINT)
    return hint if hint.startswith("open ") else f"`{hint}`"
