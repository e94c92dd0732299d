"""What a harness sends, made harmless: of a size that the contract takes, and fit to be written.

A harness may send anything: ten megabytes, half a surrogate pair, lists within lists. Nothing of it
is refused; what is over is cut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

DEPTH = 12
"""Levels of a value; what is deeper is left out."""
LONGEST_KEY = 128
_WHOLE = 2**53


def clean(text: str, limit: int) -> str:
    """Return at most `limit` bytes of UTF-8 of a text. Half characters become question marks."""
    # A text has at least a byte per character: never encode megabytes for a few kilobytes.
    raw = text[:limit].encode(errors="replace")
    return raw[:limit].decode(errors="ignore")


def line(text: str, limit: int) -> str:
    """Return a text on one line of at most `limit` characters, without control characters."""
    words = "".join(c if c.isprintable() else " " for c in clean(text, 8 * limit)).split()
    short = " ".join(words)
    return short if len(short) <= limit else short[: limit - 1].rstrip() + "…"


def bounded(value: object, limit: int) -> object:
    """Return a JSON value whose texts, keys and numbers have about `limit` bytes at most."""
    return _Cutter(limit).cut(value, DEPTH)


class _Cutter:
    def __init__(self, left: int) -> None:
        self._left = left

    def cut(self, value: object, depth: int) -> object:
        if value is None or isinstance(value, bool):
            self._left -= 4
            return value
        if isinstance(value, int | float):
            self._left -= 8
            # What a double cannot hold is shown as it was written.
            exact = abs(value) <= _WHOLE if isinstance(value, int) else math.isfinite(value)
            return value if exact else self._text(str(value) if abs(value) < 10**300 else "number")
        if isinstance(value, str):
            return self._text(value)
        if depth <= 0:
            return "…"
        if isinstance(value, Mapping):
            return self._mapping(value, depth)
        if isinstance(value, Sequence):
            items: list[object] = []
            for item in value:
                if self._left <= 0:
                    break
                self._left -= 2
                items.append(self.cut(item, depth - 1))
            return items
        return self._text(str(value))

    def _mapping(self, value: Mapping[object, object], depth: int) -> dict[str, object]:
        found: dict[str, object] = {}
        for key, item in value.items():
            if self._left <= 0:
                break
            name = clean(str(key), LONGEST_KEY)
            self._left -= len(name.encode()) + 4
            found[name] = self.cut(item, depth - 1)
        return found

    def _text(self, text: str) -> str:
        short = clean(text, max(0, self._left))
        self._left -= len(short.encode()) + 2
        return short if len(short) == len(text) else short + "…"
