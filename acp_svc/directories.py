"""Confines sessions to the allowed working directories.

A directory is resolved once, when the session is made: links and `..` followed. What is stored, and
where the process starts, is the result. Before every start it is looked at again: a part of it that
has become a link since leads somewhere else, and is refused.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from acp_svc import machine
from acp_svc.domain import preflight
from svckit.errors import BY_REASON, ServiceError, invalid_field


async def resolve(cwd: str, roots: Sequence[str], field: str) -> Path:
    """Return where a session works that asks for `cwd`; empty means the first root.

    Raises `AcpCwdNotAllowed` when that is outside the roots, and `InvalidField` for `field` when it
    is no directory.
    """
    return await asyncio.to_thread(_resolve, cwd, tuple(roots), field)


async def check_still(cwd: str, roots: Sequence[str]) -> Path:
    """Return the directory of a stored session if it still is what was allowed.

    Raises as `resolve` does.
    """
    path = await asyncio.to_thread(_resolve, cwd, tuple(roots), "spec.cwd")
    if str(path) != cwd:
        raise _error(preflight.moved(cwd))
    return path


def _resolve(cwd: str, roots: tuple[str, ...], field: str) -> Path:
    allowed = [machine.resolve(root) for root in roots]
    if not allowed:
        raise _error(preflight.NO_ROOTS)
    wanted = cwd or str(allowed[0])
    # A name with a zero byte is none for the system.
    if "\0" in wanted:
        raise invalid_field(field, "holds a zero byte")
    path = machine.resolve(wanted)
    refusal = preflight.directory_refusal(wanted, path, allowed)
    if refusal is not None:
        raise _error(refusal)
    # Only inside the roots: elsewhere the answer would tell what exists.
    # Not `Path.is_dir`, which fails where a name is too long or may not be looked at.
    if not os.path.isdir(path):
        raise invalid_field(field, "is not an existing directory")
    return path


def _error(refusal: preflight.Refusal) -> ServiceError:
    return BY_REASON[refusal.reason](refusal.message, metadata=refusal.metadata)
