"""What is settled about a prompt before any process starts.

A hopeless prompt is refused at once with the reason of what is missing: a parent that spawned it
must never wait for something that cannot happen.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from acp_svc.domain.catalog import Catalog
from acp_svc.domain.registry import Harness


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a prompt cannot run. `reason` is an error reason; `metadata` is what the table names."""

    reason: str
    message: str
    metadata: dict[str, str]


DISABLED = Refusal("ACP_DISABLED", "ACP is switched off; set acp.enabled = true", {})
"""The refusal of everything while ACP is switched off."""


NO_ROOTS = Refusal(
    "ACP_CWD_NOT_ALLOWED",
    'no directory is allowed; set acp.workspace_roots, for example ["/home/me/projects"]',
    {"cwd": ""},
)
"""The refusal of every directory while none is allowed."""


def choose_harness(catalog: Catalog, enabled: bool, harness_id: str) -> Harness | Refusal:
    """Return the harness to use for `harness_id` (empty means the default one)."""
    if not enabled:
        return DISABLED
    harness = catalog.usable(harness_id)
    if harness is not None:
        return harness
    if not harness_id:
        message = (
            "no harness was named: name one (`conveyor acp harnesses` lists them), "
            "or set acp.default_harness"
        )
    elif harness_id in catalog.harnesses:
        message = f"harness {harness_id!r} is not in acp.allowed_harnesses"
    else:
        known = ", ".join(sorted(catalog.allowed_ids))
        message = f"there is no harness {harness_id!r}; allowed are: {known}"
    return Refusal("ACP_HARNESS_NOT_FOUND", message, {"harnessId": harness_id})


def missing_backend(harness: Harness, install: str) -> Refusal:
    """Return the refusal for a harness whose command is not found."""
    return Refusal(
        "ACP_BACKEND_MISSING",
        f"{harness.display_name} is not installed: {harness.program} was not found; "
        f"install it with: {install}",
        {"harnessId": harness.harness_id, "command": harness.program, "install": install},
    )


def directory_refusal(cwd: str, resolved: PurePath, roots: Sequence[PurePath]) -> Refusal | None:
    """Return a refusal when `cwd` is not inside an allowed root.

    `resolved` is `cwd` with links and `..` followed, as are `roots`; comparing text as it was given
    would let a link lead outside.
    """
    if PurePath(cwd).is_absolute() and any(resolved.is_relative_to(root) for root in roots):
        return None
    allowed = ", ".join(str(root) for root in roots)
    return Refusal(
        "ACP_CWD_NOT_ALLOWED",
        f"the working directory is not an absolute path inside acp.workspace_roots: {allowed}",
        {"cwd": cwd},
    )


def moved(cwd: str) -> Refusal:
    """Return the refusal for a directory that is a link now, and was none when it was allowed."""
    return Refusal(
        "ACP_CWD_NOT_ALLOWED",
        "the working directory, or one above it, has become a link since the session was made",
        {"cwd": cwd},
    )


def first_secret(names: Sequence[str], allowed: Collection[str]) -> int | None:
    """Return the place of the first variable that a client may not ask for, or None.

    Whoever drives a harness can read its environment. So a client chooses only among the variables
    that the configuration names: any other may be a secret of the service or of its neighbours.
    """
    for place, name in enumerate(names):
        if name not in allowed:
            return place
    return None
