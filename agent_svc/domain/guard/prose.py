"""Takes the prose out of a reply: what the model says itself, sentence by sentence.

Code, block quotes and longer quotations are somebody else's words, or an example.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

LONGEST_SENTENCE = 800
"""Characters of a sentence that are looked at. Text without an end is no excuse."""

LONGEST_TEXT = 40_000
"""Characters that are looked at, half of them from the end: where claims and instructions stand."""

_TOPIC = re.compile(
    r"agent|session|spawn|deleg|dél[eéè]g|worker|assistant|sitzung|instanz|sesi[oó]n|sessõ",
    re.IGNORECASE,
)
_FENCE = re.compile(r"^[ \t]*(```|~~~).*?(?:^[ \t]*\1[^\S\n]*$|\Z)", re.MULTILINE | re.DOTALL)
_BLOCK_QUOTE = re.compile(r"^[ \t]*>.*$", re.MULTILINE)
_INLINE_CODE = re.compile(r"`([^`\n]+)`")
_QUOTATION = re.compile(r"“[^“”\n]*”|„[^„“”\n]*[“”]|«[^«»\n]*»|\"[^\"\n]*\"")
_IDENTIFIER = re.compile(r"[\w.]+")
_END = re.compile(r"(?<=[.!?…])[\"')\]]*\s+|\n+")
_PLAIN = str.maketrans(
    {"’": "'", "‘": "'", "‑": "-", "‐": "-", "–": " - ", "—": " - ", "\u00a0": " ", "*": ""}
)


def on_topic(text: str) -> bool:
    """False for a text that cannot be about delegation: no word of it stands in it."""
    return _TOPIC.search(ends_of(text)) is not None


def ends_of(text: str) -> str:
    """The beginning and the end of a text that is too long to be looked at."""
    if len(text) <= LONGEST_TEXT:
        return text
    half = LONGEST_TEXT // 2
    return f"{text[:half]}\n\n{text[-half:]}"


def own_words(text: str) -> str:
    """The text without code and quotations; the whole text when nothing else is in it."""
    text = ends_of(text)
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
