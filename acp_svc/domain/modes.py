"""A harness's own modes: which of them ask before they act, and which one to put it in.

What a harness asks for, the permission mode decides; but a harness in a mode that does not ask
decides for itself, whatever our mode says. So it is put in a mode that asks, and is not used when
it cannot be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from acp_svc.domain.permissions import PermissionMode


@dataclass(frozen=True, slots=True)
class Partly:
    """When a mode that asks may change files of its directory unasked all the same."""

    since: tuple[int, ...]
    """From this version of the harness on."""
    unless: str = ""
    """But not where this mode is offered too, which then is the one that does. May be empty."""


@dataclass(frozen=True, slots=True)
class Modes:
    """What is known of the modes of one harness. Ids are the harness's own."""

    asks: tuple[str, ...] = ()
    """Those that ask before anything is changed; the first that is offered is set."""
    skips: frozenset[str] = frozenset()
    """Those that do something unasked."""
    partly: Mapping[str, Partly] = field(default_factory=lambda: MappingProxyType({}))
    """Those that ask before commands only. They are good enough within a sandbox, which forbids
    just the rest."""
    switches: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Options that switch asking off, with the value that leaves it on."""
    never: str = ""
    """Why it does not ask at all, for people. Empty when it does."""
    guessed: bool = False
    """True when nothing is known: its mode is then left alone unless its name tells enough."""

    def skipping(self, mode: str, version: str, offered: Sequence[str], sandboxed: bool) -> bool:
        """Return whether a harness of this version does something unasked in this mode."""
        if self.guessed:
            return _plain(mode) in _SKIPPING
        partly = self.partly.get(mode)
        if partly is None:
            return mode in self.skips
        numbers = _numbers(version)
        before = bool(numbers) and numbers < partly.since
        return not (sandboxed or before or partly.unless in offered)


_SKIPPING = frozenset(
    {
        "acceptedits",
        "allowall",
        "alwaysapprove",
        "approveall",
        "auto",
        "autoaccept",
        "autoacceptedits",
        "autoapprove",
        "autoedit",
        "autohigh",
        "autolow",
        "automedium",
        "autopilot",
        "bypass",
        "bypasspermissions",
        "dangerfullaccess",
        "fullaccess",
        "fullauto",
        "trust",
        "trustall",
        "unattended",
        "yolo",
    }
)
_ASKING = ("default", "ask", "always-ask", "manual", "read-only", "plan")

UNKNOWN = Modes(asks=_ASKING, guessed=True)
"""Of a harness that the registry does not know: the names that others use."""


def _plain(mode: str) -> str:
    """Return a mode's name without what differs from harness to harness."""
    return "".join(c for c in mode.rpartition("#")[2].lower() if c.isalnum())


def _numbers(version: str) -> tuple[int, ...]:
    """Return the numbers a version begins with; none when it does not begin with one."""
    numbers = []
    for part in version.removeprefix("v").split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)


@dataclass(frozen=True, slots=True)
class Situation:
    """What a choice depends on."""

    modes: Modes
    permission: PermissionMode
    version: str = ""
    """Of the harness, as it says."""
    sandboxed: bool = False
    offered: tuple[str, ...] = ()
    """The modes that it offers."""

    @property
    def free(self) -> bool:
        """True when nothing has to be asked for."""
        return self.permission is PermissionMode.APPROVE_ALL

    def skipping(self, mode: str) -> bool:
        """Return whether it would do something in this mode that has to be asked for."""
        return not self.free and self.modes.skipping(
            mode, self.version, self.offered, self.sandboxed
        )


@dataclass(frozen=True, slots=True)
class Refused:
    """No mode fits. The text is for people and says what to do."""

    message: str


def choose(situation: Situation, own: str, current: str) -> str | Refused:
    """Return the mode to put a harness in; empty leaves it as it is.

    `own` is the mode that somebody asked for, or empty.
    """
    modes, offered = situation.modes, situation.offered
    if modes.never and not situation.free:
        return Refused(f"{modes.never}; use it with permissions approve-all only")
    if own:
        if own not in offered:
            return Refused(f"it has no mode {own!r}; it has: {', '.join(offered) or 'none'}")
        return _skips(own) if situation.skipping(own) else own
    if situation.free or (modes.guessed and not situation.skipping(current)):
        return ""
    for mode in modes.asks:
        if mode in offered and not situation.skipping(mode):
            return mode
    return _skips(current) if situation.skipping(current) else ""


def judge(situation: Situation, wanted: str, current: str) -> Refused | None:
    """Return why a harness must not be used in the mode that it says it is in."""
    if situation.skipping(current):
        return _skips(current)
    if wanted and current != wanted:
        return Refused(f"it was told to go to its mode {wanted!r} and is in {current!r}")
    return None


def switched(situation: Situation, options: Mapping[str, str]) -> Mapping[str, str]:
    """Return the options to change, and to what, so that it asks."""
    if situation.free:
        return {}
    return {
        name: value
        for name, value in situation.modes.switches.items()
        if name in options and options[name] != value
    }


def _skips(mode: str) -> Refused:
    return Refused(
        f"in its mode {mode!r} it acts without asking; "
        "choose another mode, or permissions approve-all"
    )
