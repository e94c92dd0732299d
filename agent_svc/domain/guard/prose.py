"""Takes the prose out of a reply: what the model says itself, sentence by sentence.

Code, block quotes and longer quotations are somebody else's words, or an example.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

LONGEST_SENTENCE = 800
"""Characters of a sentence that are looked at. Text without an end is no excuse."""

_FENCE = re.compile(r"^[ \t]*(```|~~~).*?(?:^[ \t]*\1[^\S\n]*$|\Z)", re.MULTILINE | re.DOTALL)
_BLOCK_QUOTE = re.compile(r"^[ \t]*>.*$", re.MULTILINE)
_INLINE_CODE = re.compile(r"`([^`\n]+)`")
_QUOTATION = re.compile(r"“[^”\n]*”|„[^“”\n]*[“”]|«[^»\n]*»|\"[^\"\n]*\"")
_IDENTIFIER = re.compile(r"[\w.]+")
_END = re.compile(r"(?<=[.!?…])[\"')\]]*\s+|\n+")
_PLAIN = str.maketrans(
    {"’": "'", "‘": "'", "‑": "-", "‐": "-", "–": " - ", "—": " - ", "\u00a0": " ", "*": ""}
)


def own_words(text: str) -> str:
    """The text without code and quotations; the whole text when nothing else is in it."""
    rest = _BLOCK_QUOTE.sub("\n", _FENCE.sub("\n", text))
    rest = _INLINE_CODE.sub(_code, rest)
    rest = _QUOTATION.sub(_quotation, rest)
    if not re.search(r"\w", rest):
        # Nothing but a quotation: a model that puts its whole reply in quotes, or in a fence.
        rest = text
    return plain(rest)


def plain(text: str) -> str:
    """The text with one form of apostrophe, hyphen and dash, and without emphasis."""
    return text.translate(_PLAIN)


def sentences(text: str) -> Iterator[str]:
    """Sentences of `own_words`, one line each; very long ones are cut."""
    for piece in _END.split(text):
        line = " ".join(piece[:LONGEST_SENTENCE].split())
        if line:
            yield line


def _code(found: re.Match[str]) -> str:
    # A name in code is part of the sentence; anything longer is a sample.
    return found[1] if _IDENTIFIER.fullmatch(found[1]) else " "


def _quotation(found: re.Match[str]) -> str:
    inner = found[0][1:-1]
    return inner if len(inner.split()) < 3 else " … "
