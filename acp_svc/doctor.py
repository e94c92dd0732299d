"""Makes the doctor's checks in their order. What follows from a check is in `domain.checks`."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from acp_svc import machine
from acp_svc.domain import checks
from acp_svc.domain.checks import Check, Finding, Status
from acp_svc.domain.install import install_command
from acp_svc.domain.registry import Harness


@dataclass(frozen=True, slots=True)
class Made:
    """One line of the report. `harness_id` is empty for checks of the whole service."""

    check: Check
    harness_id: str
    finding: Finding
    seconds: float


async def examine(
    enabled: bool, harnesses: Sequence[Harness], workspace_roots: Sequence[str]
) -> list[Made]:
    """Check the service, then harness by harness, then the directories.

    A harness that fails does not stop the others. Starts `--version` processes, nothing else.
    """

    async def is_enabled() -> Finding:
        if enabled:
            return Finding(Status.OK, "ACP is switched on")
        return Finding(
            Status.FAILED,
            "ACP is switched off",
            "ACP_DISABLED",
            "set acp.enabled = true in the configuration",
        )

    async def roots() -> Finding:
        return check_roots(workspace_roots)

    first = await _make(Check.ENABLED, "", None, is_enabled)
    off = Check.ENABLED if first.finding.status is Status.FAILED else None
    made = [first]
    for harness in harnesses:
        made += await _examine_harness(harness, off)
    made.append(await _make(Check.WORKSPACE_ROOTS, "", off, roots))
    return made


async def _examine_harness(harness: Harness, failed: Check | None) -> list[Made]:
    found = machine.find_program(harness.program)

    async def command() -> Finding:
        if found is not None:
            return Finding(Status.OK, str(found))
        return Finding(
            Status.FAILED,
            f"{harness.program} was not found on the search path",
            "ACP_BACKEND_MISSING",
            install_command(harness.installer, machine.this_system()),
        )

    async def version() -> Finding:
        assert found is not None
        said = await machine.ask_version(found, harness.version_arguments, harness.env)
        if said.text:
            return Finding(Status.OK, said.text)
        return Finding(
            # Some programs have no version to tell and work all the same.
            Status.WARNING if said.runs else Status.FAILED,
            f"{harness.program} {said.problem}",
            "ACP_BACKEND_UNAVAILABLE",
            f"run `{harness.program} {' '.join(harness.version_arguments)}` to see why",
        )

    looks = {Check.COMMAND_FOUND: command, Check.VERSION: version}
    made = []
    for check in checks.HARNESS_CHECKS:
        one = await _make(check, harness.harness_id, failed, looks.get(check))
        if one.finding.status is Status.FAILED and failed is None:
            failed = check
        made.append(one)
    return made


async def _make(
    check: Check,
    harness_id: str,
    failed: Check | None,
    look: Callable[[], Awaitable[Finding]] | None,
) -> Made:
    skipped = checks.skipped(check, failed)
    if skipped is not None or look is None:
        return Made(check, harness_id, skipped or checks.not_in_this_release(check), 0.0)
    began = time.monotonic()
    finding = await look()
    return Made(check, harness_id, finding, time.monotonic() - began)


def check_roots(roots: Sequence[str]) -> Finding:
    """Check the directories that sessions may work in."""
    if not roots:
        return Finding(
            Status.FAILED,
            "no directory is allowed, so no session can be opened",
            "ACP_CWD_NOT_ALLOWED",
            'set acp.workspace_roots, for example ["/home/me/projects"]',
        )
    problems = [f"{root} {problem}" for root in roots if (problem := machine.root_problem(root))]
    if problems:
        return Finding(
            Status.FAILED,
            "; ".join(problems),
            "ACP_CWD_NOT_ALLOWED",
            "create the directory, make it writable, or correct acp.workspace_roots",
        )
    return Finding(Status.OK, ", ".join(roots))
