"""A tool call inside a harness, as it is put together from what the harness says of it.

It is told in pieces: a start, patches, and a permission request that may name nothing but the id.
What a later piece does not say stays as an earlier one said it.
"""

from __future__ import annotations

import difflib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

from acp_svc.domain.cutting import bounded, clean, line

KINDS = frozenset({"read", "edit", "delete", "move", "search", "execute", "fetch", "other"})
"""Kinds as the contract names them. Every other kind of a harness counts as `other`."""
OVER = frozenset({"completed", "failed"})
TITLE_CHARS = 256
MOST_LOCATIONS = 32
LONGEST_PATH = 4096
SHOWN_BYTES = 8 * 1024
"""What people are shown of the arguments or the output of a call."""
KEPT_BYTES = 64 * 1024
"""What is kept of one text, such as a side of a diff."""
MOST_PARTS = 32
MOST_DIFF_LINES = 2000
COMMAND_NAMES = ("command", "cmd")
"""What harnesses call the command line among their arguments."""


@dataclass(frozen=True, slots=True)
class Diff:
    """What becomes of a file. `old` is None for a new one."""

    path: str
    old: str | None
    new: str


@dataclass(frozen=True, slots=True)
class Patch:
    """What one piece says of a call. None leaves what was said before."""

    call_id: str
    title: str | None = None
    kind: str | None = None
    status: str | None = None
    locations: tuple[str, ...] | None = None
    texts: tuple[str, ...] | None = None
    diffs: tuple[Diff, ...] | None = None
    arguments: object = None
    output: object = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """All that was said of a call so far. Empty means not said."""

    call_id: str
    title: str = ""
    kind: str = ""
    status: str = ""
    locations: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    diffs: tuple[Diff, ...] = ()
    arguments: object = None
    output: object = None

    @property
    def over(self) -> bool:
        """Whether nothing more is to come."""
        return self.status in OVER

    @property
    def shown_kind(self) -> str:
        """The kind, as the contract names it."""
        return self.kind if self.kind in KINDS else "other"

    @property
    def command(self) -> str:
        """The command line, where it runs one. Empty elsewhere."""
        return command_in(self.arguments)

    @property
    def shown_title(self) -> str:
        """What it is, in one line for people. Never empty."""
        if title := line(self.title, TITLE_CHARS):
            return title
        if self.command:
            return line(f"Run {self.command}", TITLE_CHARS)
        verb = self.kind.replace("_", " ").capitalize()
        if files := self.shown_locations:
            return line(f"{verb or 'Use a tool on'} {files[0]}", TITLE_CHARS)
        return f"{verb} something" if verb else "Use a tool that the harness does not name"

    @property
    def shown_locations(self) -> tuple[str, ...]:
        """Files touched."""
        named = self.locations or tuple(diff.path for diff in self.diffs)
        return tuple(dict.fromkeys(path for path in named if path))[:MOST_LOCATIONS]


def patched(call: ToolCall | None, patch: Patch) -> ToolCall:
    """Return the call as it is after a piece."""
    base = call or ToolCall(patch.call_id)
    said = {
        name: value
        for name in ("title", "kind", "status", "locations", "texts", "diffs", "arguments")
        if (value := getattr(patch, name)) is not None
    }
    if patch.output is not None:
        said["output"] = patch.output
    return replace(base, **said)


def command_in(arguments: object) -> str:
    """Return the command line among the arguments of a call; empty when there is none."""
    if not isinstance(arguments, Mapping):
        return ""
    for name in COMMAND_NAMES:
        match arguments.get(name):
            case str(text) if text.strip():
                return text
            case [*words] if words and all(isinstance(word, str) for word in words):
                return shlex.join(words)
    return ""


def shown_arguments(call: ToolCall) -> dict[str, object]:
    """What people see before they allow a call: `command`, `diff`, and the other arguments.

    What decides comes first, so that cutting leaves it. Contents that the diff shows are left out.
    """
    shown: dict[str, object] = {}
    if call.command:
        shown["command"] = call.command
    if call.diffs:
        shown["diff"] = "\n".join(diff_text(diff) for diff in call.diffs)
    in_diff = {text for diff in call.diffs for text in (diff.old, diff.new) if text}
    match call.arguments:
        case None | "":
            pass
        case Mapping() as arguments:
            for name, value in arguments.items():
                known = name in COMMAND_NAMES and call.command
                if not known and not (isinstance(value, str) and value in in_diff):
                    shown.setdefault(str(name), value)
        case other:
            shown["input"] = other
    if not shown and call.texts:
        shown["details"] = "\n".join(call.texts)
    cut = bounded(shown, SHOWN_BYTES)
    assert isinstance(cut, dict)
    return cut


def shown_output(call: ToolCall) -> str:
    """What a call gave, in text; empty when it gave nothing."""
    parts = [*call.texts, *(diff_text(diff) for diff in call.diffs)]
    if not any(part.strip() for part in parts) and call.output not in (None, "", {}, []):
        cut = bounded(call.output, SHOWN_BYTES)
        parts = [cut if isinstance(cut, str) else json.dumps(cut, ensure_ascii=False)]
    return clean("\n".join(parts), SHOWN_BYTES)


def diff_text(diff: Diff) -> str:
    """Return what becomes of a file as a unified diff; of a large one, how it begins."""
    old = (diff.old or "").splitlines()
    new = diff.new.splitlines()
    before = "/dev/null" if diff.old is None else diff.path
    # Comparing takes time that grows with the square of the lines.
    if max(len(old), len(new)) > MOST_DIFF_LINES:
        begins = "\n".join(f"+{text}" for text in new[:200])
        return f"--- {before}\n+++ {diff.path}\n@@ too large to compare, begins with @@\n{begins}"
    lines = difflib.unified_diff(old, new, before, diff.path, lineterm="")
    return "\n".join(lines) or f"--- {before}\n+++ {diff.path}"


def absolute(paths: Sequence[str], cwd: str) -> tuple[str, ...]:
    """Return paths as absolute ones; those that are too long are left out."""
    found = []
    for path in paths[:MOST_LOCATIONS]:
        whole = str(PurePath(cwd) / clean(path, LONGEST_PATH + 1))
        if path and len(whole) <= LONGEST_PATH:
            found.append(whole)
    return tuple(found)
