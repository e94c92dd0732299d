"""Between the rules' words and the contract's."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from acp_svc import machine
from acp_svc.domain.checks import Check, Made, Status, healthy
from acp_svc.domain.install import System, install_command
from acp_svc.domain.registry import Harness
from conveyor.acp.v1 import acp_service_pb2 as acp_pb
from conveyor.acp.v1 import doctor_pb2 as doctor_pb

CHECKS: Mapping[Check, doctor_pb.DoctorCheckKind.ValueType] = MappingProxyType(
    {
        Check.ENABLED: doctor_pb.DOCTOR_CHECK_KIND_ENABLED,
        Check.COMMAND_FOUND: doctor_pb.DOCTOR_CHECK_KIND_COMMAND_FOUND,
        Check.VERSION: doctor_pb.DOCTOR_CHECK_KIND_VERSION,
        Check.STARTS: doctor_pb.DOCTOR_CHECK_KIND_STARTS,
        Check.INITIALIZE: doctor_pb.DOCTOR_CHECK_KIND_INITIALIZE,
        Check.AUTHENTICATION: doctor_pb.DOCTOR_CHECK_KIND_AUTHENTICATION,
        Check.PERMISSION_MODE: doctor_pb.DOCTOR_CHECK_KIND_PERMISSION_MODE,
        Check.WORKSPACE_ROOTS: doctor_pb.DOCTOR_CHECK_KIND_WORKSPACE_ROOTS,
        Check.SANDBOX: doctor_pb.DOCTOR_CHECK_KIND_SANDBOX,
    }
)
STATUSES: Mapping[Status, doctor_pb.DoctorStatus.ValueType] = MappingProxyType(
    {
        Status.OK: doctor_pb.DOCTOR_STATUS_OK,
        Status.WARNING: doctor_pb.DOCTOR_STATUS_WARNING,
        Status.FAILED: doctor_pb.DOCTOR_STATUS_FAILED,
        Status.SKIPPED: doctor_pb.DOCTOR_STATUS_SKIPPED,
    }
)


def report(made: Sequence[Made], now_us: int) -> doctor_pb.DoctorReport:
    """Return the report for what was found."""
    answer = doctor_pb.DoctorReport(healthy=healthy(made))
    for one in made:
        check = answer.checks.add(
            kind=CHECKS[one.check],
            harness_id=one.harness_id,
            status=STATUSES[one.finding.status],
            code=one.finding.code,
            message=one.finding.message,
            hint=one.finding.hint,
        )
        check.duration.FromMicroseconds(round(one.seconds * 1_000_000))
    answer.check_time.FromMicroseconds(now_us)
    return answer


def harness(known: Harness, *, allowed: bool, system: System) -> acp_pb.Harness:
    """Return a harness as it is listed; looks whether its program is there."""
    return acp_pb.Harness(
        harness_id=known.harness_id,
        display_name=known.display_name,
        command=shlex.join(known.command),
        installed=machine.find_program(known.program) is not None,
        allowed=allowed,
        install_hint=install_command(known.installer, system),
        notes=known.notes,
    )
