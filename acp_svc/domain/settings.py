"""What changes about an open session when its settings do: what is told to the harness, and what
needs another process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from acp_svc.domain.permissions import PermissionMode
from acp_svc.domain.sandboxing import needs_sandbox
from acp_svc.domain.session import Session


@dataclass(frozen=True, slots=True)
class Wanted:
    """How the session inside a harness is to be."""

    cwd: str
    permission_mode: PermissionMode
    harness_mode: str
    """Empty means the one that fits the permission mode."""
    model: str
    options: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Changes:
    """What `ConfigureSession` asks for; None and empty leave it."""

    permission_mode: PermissionMode | None = None
    harness_mode: str | None = None
    model: str | None = None
    label: str | None = None
    options: Mapping[str, str] | None = None
    cwd: str | None = None
    """Resolved, and allowed."""
    turn_timeout_seconds: float | None = None
    fresh: bool = False
    """Forget what was said."""


@dataclass(frozen=True, slots=True)
class Step:
    """What has to be done to a process. Empty steps leave it as it is."""

    reopen: bool = False
    permission_mode: PermissionMode | None = None
    harness_mode: str = ""
    """With a permission mode it is told together with that."""
    model: str = ""
    options: tuple[tuple[str, str], ...] = ()

    @property
    def nothing(self) -> bool:
        """Whether the process is as it should be."""
        return self == Step()


def wanted(session: Session) -> Wanted:
    """Return how a stored session is to be."""
    spec = session.spec
    return Wanted(
        spec.cwd, spec.permission_mode, session.wanted_mode, spec.model, session.wanted_options
    )


def step(
    had: Wanted, want: Wanted, *, sandboxed: bool, sandbox_on: bool, left_behind: bool = False
) -> Step:
    """Return what leads a process that was opened as `had` to `want`.

    `sandboxed`: whether it runs in a sandbox; a process cannot enter or leave one. `sandbox_on`:
    whether the configuration wants them. `left_behind`: the session inside it is to be forgotten.
    """
    if left_behind or had.cwd != want.cwd:
        return Step(reopen=True)
    if (had.model and not want.model) or had.options.keys() - want.options.keys():
        return Step(reopen=True)  # what it was before it was told, nobody knows
    shut = needs_sandbox(want.permission_mode)
    if sandbox_on and shut != needs_sandbox(had.permission_mode) and (shut or sandboxed):
        return Step(reopen=True)
    mode_changes = want.harness_mode != had.harness_mode
    return Step(
        permission_mode=want.permission_mode
        if want.permission_mode is not had.permission_mode
        # Back to the mode that fits the permissions: they choose it.
        or (mode_changes and not want.harness_mode)
        else None,
        harness_mode=want.harness_mode
        if mode_changes or want.permission_mode is not had.permission_mode
        else "",
        model=want.model if want.model != had.model else "",
        options=tuple(
            (name, value) for name, value in want.options.items() if had.options.get(name) != value
        ),
    )


def problem(session: Session, changes: Changes) -> tuple[str, str] | None:
    """Return which field asks for what the harness does not offer, and why; or None."""
    mode = changes.harness_mode
    if mode and mode not in session.harness_modes:
        return "settings.harness_mode", _offered("mode", session.harness_modes)
    model = changes.model
    if model is not None and model not in session.models:
        return "settings.model", _offered("model", session.models)
    for name in changes.options or {}:
        if name not in session.options:
            return f"settings.options[{name}]", _offered("option", tuple(sorted(session.options)))
    return None


def configured(session: Session, changes: Changes, now_us: int) -> Session:
    """Return the session with its new settings.

    With another directory the harness's session of before is left behind: it belongs to the old
    one. So it is when what was said is to be forgotten. With another permission mode the harness's
    mode that was asked for is left behind: it may not fit.
    """
    spec = session.spec
    moved = changes.cwd is not None and changes.cwd != spec.cwd
    moved = moved or (changes.fresh and (session.prompted or bool(spec.resume_id)))
    other = changes.permission_mode not in (None, spec.permission_mode)
    mode = "" if other else session.wanted_mode
    if changes.harness_mode is not None:
        mode = changes.harness_mode
    new = msgspec.structs.replace(
        spec,
        permission_mode=changes.permission_mode or spec.permission_mode,
        model=changes.model if changes.model is not None else spec.model,
        label=changes.label if changes.label is not None else spec.label,
        cwd=changes.cwd if changes.cwd is not None else spec.cwd,
        turn_timeout_seconds=changes.turn_timeout_seconds or spec.turn_timeout_seconds,
        resume_id="" if moved else spec.resume_id,
    )
    return msgspec.structs.replace(
        session,
        spec=new,
        wanted_mode=mode,
        wanted_options={**session.wanted_options, **(changes.options or {})},
        upstream_id="" if moved else session.upstream_id,
        loadable=False if moved else session.loadable,
        prompted=False if moved else session.prompted,
        active_us=now_us,
    )


def taken_back(session: Session, had: Wanted) -> Session:
    """Return the session with the settings that its process has."""
    return msgspec.structs.replace(
        session,
        spec=msgspec.structs.replace(
            session.spec, permission_mode=had.permission_mode, model=had.model
        ),
        wanted_mode=had.harness_mode,
        wanted_options=dict(had.options),
    )


def restored(session: Session, before: Session) -> Session:
    """Return the session with all settings as they were before a change that was refused."""
    return msgspec.structs.replace(
        session,
        spec=before.spec,
        wanted_mode=before.wanted_mode,
        wanted_options=before.wanted_options,
        upstream_id=before.upstream_id,
        loadable=before.loadable,
        prompted=before.prompted,
    )


def _offered(what: str, offered: tuple[str, ...]) -> str:
    if not offered:
        return f"the harness offers no {what}"
    return f"the harness offers no such {what}, only: {', '.join(offered)}"
