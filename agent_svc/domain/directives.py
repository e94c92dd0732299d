"""Reads what the demo models understand: directives in double brackets, and lists of things to do.

    [[spawn: task]]             one sub-agent, waited for
    [[spawn-background: task]]  one sub-agent in the background
    [[spawn writer: task]]      another agent does it, also in the background
    [[acp harness: task]]       an external coding agent, waited for
    [[acp-background harness: task]]  the same in the background
    [[tool name: {"a": 1}]]     call this tool with these arguments
    [[yield: text]]             end the turn with this text while sub-agents work
    [[sleep: 2s]]               take this long (ms, s or m)
    [[reply: text]]             reply this, after everything else
    [[fail: text]]              fail the turn with this text

Brackets nest, so a task may hold directives of its own: `[[spawn: [[sleep: 1s]] [[reply: done]]]]`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_HEAD = re.compile(r"\s*(?P<verb>[a-z][a-z-]*)(?:\s+(?P<arg>[^\s:\]]+))?\s*:", re.IGNORECASE)
_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|m)?\s*$")
_ITEM = re.compile(r"^\s*(?:\d{1,3}[.)]|[-*•])\s+(?P<item>\S.*)$", re.MULTILINE)
_VERBS = frozenset(
    {
        "spawn",
        "spawn-background",
        "acp",
        "acp-background",
        "tool",
        "yield",
        "sleep",
        "reply",
        "fail",
    }
)
SPAWNING = frozenset({"spawn", "spawn-background", "acp", "acp-background"})
"""Those that start somebody else."""
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0}
LONGEST_SLEEP = 3600.0


@dataclass(frozen=True)
class Directive:
    """One directive. `arg` is the word after the verb: the harness, or the tool."""

    verb: str
    arg: str
    text: str


def directives(text: str) -> list[Directive]:
    """Find the outermost directives of a message, in order. Unknown verbs are plain text."""
    return list(_scan(text))


def _scan(text: str) -> Iterator[Directive]:
    position = 0
    while (start := text.find("[[", position)) >= 0:
        end = _closing(text, start)
        if end < 0:
            return
        body = text[start + 2 : end]
        head = _HEAD.match(body)
        if head and head["verb"].lower() in _VERBS:
            yield Directive(head["verb"].lower(), head["arg"] or "", body[head.end() :].strip())
        position = end + 2


def _closing(text: str, start: int) -> int:
    """Position of the `]]` that closes the `[[` at `start`, or -1."""
    depth, position = 0, start
    while position < len(text):
        if text.startswith("[[", position):
            depth += 1
            position += 2
        elif text.startswith("]]", position):
            depth -= 1
            if depth == 0:
                return position
            position += 2
        else:
            position += 1
    return -1


def seconds(text: str) -> float | None:
    """Read `5s`, `200ms`, `1m` or `5`; None when it is not a duration. At most an hour."""
    found = _DURATION.match(text)
    if not found:
        return None
    return min(float(found[1]) * _UNITS[found[2] or "s"], LONGEST_SLEEP)


def things(text: str) -> list[str]:
    """Split a message that asks for several things; empty when it asks for one.

    A numbered or bulleted list of two or more, or `a, b and c` after a colon.
    """
    listed = [found["item"].strip() for found in _ITEM.finditer(text)]
    if len(listed) >= 2:
        return [_bare(item) for item in listed]
    _, colon, rest = text.partition(":")
    if not colon or "\n" in rest.strip():
        return []
    parts = re.split(r"\s*[,;]\s*(?:and\s+|und\s+)?|\s+(?:and|und)\s+", rest.strip())
    found_things = [_bare(part) for part in parts if _bare(part)]
    return found_things if len(found_things) >= 2 else []


def _bare(text: str) -> str:
    return text.strip().rstrip(".!").strip()
