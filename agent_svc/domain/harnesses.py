"""The external coding agents that a run may start: which, what is told of them, what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

MOST_NAMED = 20

Why = Literal["disabled", "unknown", "missing", "unnamed"]


@dataclass(frozen=True)
class Harness:
    """One that the configuration allows. `installed` is None when nobody could tell."""

    harness_id: str
    name: str
    installed: bool | None = None
    command: str = ""
    install: str = ""


@dataclass(frozen=True)
class Refusal:
    """Why none is started. The text is for a model."""

    why: Why
    text: str
    harness: Harness | None = None


@dataclass(frozen=True)
class Harnesses:
    """All that are allowed. `complete`: no other is; else the harness service knows more."""

    allowed: Sequence[Harness] = ()
    enabled: bool = True
    complete: bool = True
    default_id: str = ""

    def refusal(self, harness_id: str) -> Refusal | None:
        """Why a spawn with this id has no hope; None when it may be tried."""
        if not self.enabled:
            return Refusal("disabled", "external coding agents are switched off here")
        wanted = harness_id or self.default_id
        if not wanted:
            text = "`agent_id` must name the coding agent, since none is configured as the default."
            return Refusal("unnamed", f"{text} {self._there_are()}")
        found = next((h for h in self.allowed if h.harness_id == wanted), None)
        if found is None and self.complete:
            text = f"there is no coding agent {wanted!r} that may be used here."
            return Refusal("unknown", f"{text} {self._there_are()}")
        if found is not None and found.installed is False:
            text = f"{found.name} is not installed on this machine. It is installed with: "
            text += f"{found.install}. {self._there_are()}"
            return Refusal("missing", text, found)
        return None

    def lines(self) -> list[str]:
        """Each of them in a line, those that can be started first."""
        if not self.enabled:
            return []
        usable = [h for h in self.allowed if h.installed is not False]
        lines = [f"{h.harness_id}: {h.name}{self._is_default(h)}" for h in usable]
        missing = [h.harness_id for h in self.allowed if h.installed is False]
        if missing:
            lines.append(f"Not installed: {', '.join(missing)}")
        return lines

    def _there_are(self) -> str:
        usable = [h.harness_id for h in self.allowed if h.installed is not False]
        if not usable:
            return "No other is installed either." if self.allowed else "See agents_list."
        named = ", ".join(usable[:MOST_NAMED])
        return f"Use one of: {named}."

    def _is_default(self, harness: Harness) -> str:
        return " (default)" if harness.harness_id == self.default_id else ""


def described(names: Sequence[str], default_id: str) -> str:
    """What the schema of a spawn says: names that the configuration gives, and where all stand."""
    text = "for runtime acp, the coding agent"
    if default_id:
        text += f" (default {default_id})"
    known = [name for name in dict.fromkeys(names) if name][:MOST_NAMED]
    return f"{text}: {', '.join(known)}" if known else text
