"""What a harness tells while it works, turned into what a session's log holds and people see.

Text is shown as it comes. All else is told in events, and however much a harness tells, a prompt
writes a bounded number of them: what changes again before it was written is written once, and from
a limit on only the ends of what was told as begun are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from acp_svc.domain.cutting import clean, line
from acp_svc.domain.toolcalls import Patch, ToolCall, patched, shown_output

MESSAGE_BYTES = 900_000
"""What a message may hold, with room for a closing line."""
LEFT_OUT = "\n\n(The rest is left out.)"
THOUGHT_BYTES = 8 * 1024 - len(LEFT_OUT)
MOST_ENTRIES = 100
ENTRY_CHARS = 512
MOST_EVENTS = 1000
"""Events of one prompt; the ends of calls that were told as begun come on top."""
MOST_CALLS = 1000
"""Calls that are remembered. When there are more, the oldest that is over makes room; when none is,
those that follow are told apart no further."""


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of what the harness says. Another `message_id` begins another message."""

    text: str
    message_id: str = ""


@dataclass(frozen=True, slots=True)
class Thought:
    """A piece of its reasoning."""

    text: str
    message_id: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a plan."""

    content: str
    status: str


@dataclass(frozen=True, slots=True)
class Planned:
    """The whole plan."""

    entries: tuple[Entry, ...]


Update: TypeAlias = Said | Thought | Planned | Patch


@dataclass(frozen=True, slots=True)
class Shown:
    """A tool call as it is told."""

    call_id: str
    title: str
    kind: str
    status: str
    locations: tuple[str, ...]
    output: str


@dataclass(frozen=True, slots=True)
class Between:
    """What was said before a tool call: whole, and not the reply."""

    text: str


@dataclass(frozen=True, slots=True)
class Thinking:
    """A finished piece of reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class LeftOut:
    """From here on not everything is told."""


Told: TypeAlias = Planned | Shown | Between | Thinking | LeftOut


class Story:
    """Follows one prompt. `take` each update; write what `due` returns every now and then."""

    def __init__(self) -> None:
        self._calls: dict[str, ToolCall] = {}
        self._shown: dict[str, Shown] = {}
        self._due: dict[tuple[str, str], Told] = {}
        self._count = 0
        self._said = _Text(MESSAGE_BYTES)
        self._thought = _Text(THOUGHT_BYTES)
        self._plan: Planned | None = None
        self._last_between = ""

    def take(self, update: Update) -> tuple[str, bool]:
        """Take an update in.

        Returns text to show now, and True when what was shown before it is complete: the text that
        follows belongs to another message.
        """
        if not isinstance(update, Thought):
            self._end_thought()
        match update:
            case Said(text, message_id):
                return self._said.add(text, message_id), False
            case Thought(text, message_id):
                if self._thought.ends_with(message_id):
                    self._end_thought()
                self._thought.add(text, message_id)
            case Planned(entries):
                self._take_plan(Planned(tuple(_entry(entry) for entry in entries[:MOST_ENTRIES])))
            case Patch():
                return "", self._take_call(update)
        return "", False

    def call(self, patch: Patch) -> ToolCall:
        """Return the call that a permission request names, completed by what was told before."""
        return patched(self._calls.get(patch.call_id), patch)

    def due(self) -> list[Told]:
        """Return what is to be written, in order. Nothing is returned twice."""
        told: list[Told] = []
        for (kind, key), waiting in self._due.items():
            if kind != "call":
                told.append(waiting)
                continue
            shown = _shown(self._calls[key])
            if self._shown.get(key) != shown:
                self._shown[key] = shown
                told.append(shown)
        self._due.clear()
        return told

    def end(self) -> str:
        """The prompt ended: return the reply. What is still to be written is due."""
        self._end_thought()
        text = self._said.take()
        # Some say what they did before their last call, and nothing after it.
        return text if text.strip() else self._last_between

    @property
    def unfinished(self) -> str:
        """What was said since the last tool call, of a prompt that did not end well."""
        return self._said.text

    def _take_plan(self, plan: Planned) -> None:
        if plan == self._plan:
            return
        self._plan = plan
        if ("plan", "") in self._due or self._may_tell():
            self._due["plan", ""] = plan

    def _take_call(self, patch: Patch) -> bool:
        """Take a piece of a call in; True when the text before it is complete by that."""
        before = self._calls.get(patch.call_id)
        if before is None and len(self._calls) >= MOST_CALLS and not self._forget_one():
            return False
        ended = before is None and self._end_said()
        call = self._calls[patch.call_id] = patched(before, patch)
        key = ("call", patch.call_id)
        # Nobody should see a call at work for ever that ended.
        ends = call.over and patch.call_id in self._shown
        if key in self._due or ends or self._may_tell():
            self._due.setdefault(key, _PLACE)
        return ended

    def _forget_one(self) -> bool:
        for key, call in self._calls.items():
            if call.over and ("call", key) not in self._due:
                del self._calls[key]
                self._shown.pop(key, None)
                return True
        return False

    def _end_said(self) -> bool:
        if not self._said.text.strip():
            return False
        self._last_between = self._said.take()
        if self._may_tell():
            self._due["between", str(self._count)] = Between(self._last_between)
        return True

    def _end_thought(self) -> None:
        text = self._thought.take().strip()
        if text and self._may_tell():
            self._due["thought", str(self._count)] = Thinking(text)

    def _may_tell(self) -> bool:
        self._count += 1
        if self._count == MOST_EVENTS:
            self._due["left out", ""] = LeftOut()
        return self._count < MOST_EVENTS


class _Text:
    """A text that grows up to a limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pieces: list[str] = []
        self._left = limit
        self._message_id = ""
        self._cut = False

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def ends_with(self, message_id: str) -> bool:
        """Whether a piece of this message would begin another one."""
        return bool(
            self._pieces and message_id and self._message_id and message_id != self._message_id
        )

    def add(self, text: str, message_id: str) -> str:
        """Add a piece; returns what was added."""
        if not text:
            return ""
        if self.ends_with(message_id) and not self._pieces[-1].endswith("\n"):
            text = f"\n\n{text}"
        self._message_id = message_id or self._message_id
        piece = clean(text, self._left)
        if piece:
            self._pieces.append(piece)
            self._left -= len(piece.encode())
        if len(piece) < len(text):
            self._left, self._cut = 0, True
        return piece

    def take(self) -> str:
        """Return the text and begin anew."""
        text = f"{self.text}{LEFT_OUT}" if self._cut else self.text
        self._pieces, self._left, self._message_id = [], self._limit, ""
        self._cut = False
        return text


_PLACE = LeftOut()
"""Keeps the place of a call in the order; what is told of it is made when it is written."""


def _entry(entry: Entry) -> Entry:
    return replace(entry, content=line(entry.content, ENTRY_CHARS))


def _shown(call: ToolCall) -> Shown:
    return Shown(
        call.call_id,
        call.shown_title,
        call.shown_kind,
        call.status,
        call.shown_locations,
        shown_output(call),
    )


def closing_words(name: str, stop_reason: str, text: str, rejected: Sequence[str]) -> str:
    """Return the reply of a prompt that ended: what was said, and why there is no more.

    `rejected` are the titles of what the harness was not allowed.
    """
    why = {
        "max_tokens": f"{name} stopped: its limit of tokens was reached.",
        "max_turn_requests": f"{name} stopped: its limit of requests per turn was reached.",
        "refusal": f"{name} refused to go on.",
        "cancelled": f"{name} stopped before it was done.",
    }.get(stop_reason, "")
    if text.strip():
        return f"{text.rstrip()}\n\n({why})" if why else text
    if not why:
        why = f"{name} ended its turn without a word."
    if rejected:
        named = "; ".join(line(title, 80) for title in rejected[:3])
        why += f" Not allowed: {named}{' …' if len(rejected) > 3 else ''}."
    return why
