"""How figures and lists are said to people, the same in every service and in the command line."""

from __future__ import annotations

from collections.abc import Iterable


def span(seconds: float) -> str:
    """Say a length of time: `0.4 s`, `2 min 5 s`, `1 h 3 min`. A negative one counts as 0."""
    length = max(0.0, seconds)
    if length < 60:
        return f"{length:.1f} s"
    minutes, rest = divmod(round(length), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def time_limit(seconds: float) -> str:
    """Say how long somebody has: `90 s`, `5 min`, `24 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"


def count(number: int, noun: str) -> str:
    """Say how many: `1 run`, `3 runs`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def shorten(text: str, limit: int = 100) -> str:
    """Return the text on one line of at most `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def last_lines(text: str, most: int = 3) -> list[str]:
    """Return the last lines with something on them, newest last, each cut to a line's length."""
    return [line for line in (shorten(one, 120) for one in text.splitlines()) if line][-most:]


def joined(words: Iterable[str], last: str = "and") -> str:
    """Return `a`, `a and b`, `a, b and c`."""
    *others, final = words
    return f"{', '.join(others)} {last} {final}" if others else final
