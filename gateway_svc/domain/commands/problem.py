"""What is said of a command that cannot be done."""

from __future__ import annotations

from dataclasses import dataclass

_MAX_SAID = 40


@dataclass(frozen=True, slots=True)
class Problem:
    """A command that cannot be done. `text` says in one line what was meant, with an example."""

    text: str


def cut(text: str) -> str:
    """Return what somebody typed as it may be repeated to them: one short, printable line."""
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    line = " ".join(line.split())
    return line if len(line) <= _MAX_SAID else line[: _MAX_SAID - 1] + "…"
