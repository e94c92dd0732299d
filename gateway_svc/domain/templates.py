"""Texts with places for values of a JSON document: `Build of {repository.full_name} failed`.

A place names a value by the way to it, with dots: keys of objects, numbers of list items. A
question mark behind it allows that there is none. Two brackets stand for one: `{{` and `}}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_MISSING = object()


class NoValue(Exception):
    """A document has no value where a template needs one; `str()` is the way to it."""


@dataclass(frozen=True, slots=True)
class Template:
    """A text, taken apart: pieces of text, and the ways to values."""

    pieces: tuple[tuple[str, str], ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Take a text apart; raises `ValueError` saying what is wrong with it."""
        pieces: list[tuple[str, str]] = []
        at = 0
        for found in _PIECE.finditer(text):
            pieces.append((text[at : found.start()], ""))
            at = found.end()
            if found[0] in ("{{", "}}"):
                pieces.append((found[0][0], ""))
            elif found[1] is None:
                raise ValueError(f"has a lone {found[0]}; {found[0] * 2} stands for one")
            elif not all(found[1].removesuffix("?").split(".")):
                raise ValueError(f"has the place {found[0]}, which names no value")
            else:
                pieces.append(("", found[1]))
        pieces.append((text[at:], ""))
        return cls(tuple(piece for piece in pieces if any(piece)))

    def fill(self, values: Mapping[str, Any], show: Callable[[str], str] = str) -> str:
        """Return the text with the values of a document, each passed through `show`.

        Raises `NoValue`.
        """
        return "".join(text or show(_text(way, values)) for text, way in self.pieces)


def value_at(way: str, values: Mapping[str, Any]) -> str | None:
    """Return a value of a document as text, `None` when there is none that can be one."""
    found: Any = values
    for step in way.split("."):
        if isinstance(found, Mapping):
            found = found.get(step, _MISSING)
        elif isinstance(found, list) and step.isascii() and step.isdigit() and len(step) < 9:
            found = found[int(step)] if int(step) < len(found) else _MISSING
        else:
            found = _MISSING
        if found is _MISSING:
            return None
    if isinstance(found, str):
        return found
    try:
        return "" if found is None else json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        return None  # nobody means a value of a thousand levels


def for_key(value: str) -> str:
    """Write a value so that it can be one part of a session key, different ones differently."""
    return quote(value, safe="/@#+~.,-_")


def _text(way: str, values: Mapping[str, Any]) -> str:
    found = value_at(way.removesuffix("?"), values)
    if found is None and not way.endswith("?"):
        raise NoValue(way)
    return found or ""
