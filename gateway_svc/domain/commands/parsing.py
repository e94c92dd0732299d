"""Reads what people type after a slash.

A message is a command when its first word is a slash and the name of one. When that word is only
nearly one (`/stauts`), the sender gets a hint instead of an answer from the agent. Every other text
that begins with a slash is an ordinary message: a path, a word that is like no command, or
something behind two slashes, which is the way to say to the agent what looks like a command.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches

from conveyor.common.v1 import content_pb2
from gateway_svc.domain.commands import options
from gateway_svc.domain.commands.form import Argument, Form, Kind
from gateway_svc.domain.commands.grammar import (
    BY_ALIAS,
    BY_NAME,
    ELSEWHERE,
    FIRST_WORDS,
    GROUPS,
    members,
)
from gateway_svc.domain.commands.problem import Problem, cut
from svckit.words import joined

_FIRST = re.compile(r"/([A-Za-z][A-Za-z_-]{0,31})(?:@\w{1,64})?")
_NEARLY, _NEARLY_IN_A_SENTENCE = 0.75, 0.8
_TIME = re.compile(r"(\d{1,6})\s*(s|secs?|seconds?|m|mins?|minutes?|h|hours?)?", re.IGNORECASE)
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, slots=True)
class Command:
    """A command that can be done. `arguments` holds what was given, by name; nothing is empty."""

    form: Form
    arguments: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The canonical name without slash."""
        return self.form.name

    def get(self, name: str) -> str:
        """Return an argument or option, empty when it was not given."""
        return self.arguments.get(name, "")


def read_message(message: content_pb2.Message) -> Command | Problem | None:
    """Read a chat message; `None` for one that is for the agent."""
    if len(message.parts) != 1 or message.parts[0].WhichOneof("part") != "text":
        return None
    return read(message.parts[0].text)


def read(text: str) -> Command | Problem | None:
    """Read what somebody typed; `None` for what is no command and not nearly one."""
    text = text.strip()
    words = text.split(maxsplit=1)
    first = _FIRST.fullmatch(words[0]) if words else None
    if first is None:
        return None
    word, rest = first[1].lower(), (words[1] if len(words) > 1 else "")
    if word in FIRST_WORDS:
        return _known(word, rest)
    meant = _meant(word, rest)
    return _no_command(word, meant) if meant else None


def read_strictly(text: str) -> Command | Problem:
    """As `read`, for callers that have nothing but commands: whatever is none is a problem."""
    found = read(text)
    if found is not None:
        return found
    words = text.split()
    word = words[0].lstrip("/").lower() if words else ""
    close = get_close_matches(word, FIRST_WORDS, 1, 0.6)
    return _no_command(word, ELSEWHERE.get(word) or (close[0] if close else "help"))


def _meant(word: str, rest: str) -> str:
    """Return the first word of the command that is nearly `word`, empty when none is."""
    more = len(rest.split())
    if more <= 1 and word in ELSEWHERE:
        return ELSEWHERE[word]
    cutoff = _NEARLY if more <= 1 else _NEARLY_IN_A_SENTENCE
    close = get_close_matches(word, FIRST_WORDS, 1, cutoff)
    # Short names are near to many words: “/news of today” is no command.
    return close[0] if close and (len(close[0]) > 3 or not more) else ""


def _no_command(word: str, meant: str) -> Problem:
    form = BY_ALIAS.get(meant) or members(meant)[0]
    hint = f"“/{cut(word)}” is no command: did you mean `/{meant}`?"
    example = form.example if form.example != f"/{meant}" else "/help"
    more = "" if meant == "help" else f" For example `{example}`."
    return Problem(hint + more)


def _known(word: str, rest: str) -> Command | Problem:
    if word in BY_ALIAS:
        return _arguments(BY_ALIAS[word], rest)
    if word not in GROUPS:
        return _arguments(BY_NAME[word], rest)
    pieces = rest.split(maxsplit=1)
    second, after, *_ = *pieces, "", ""
    name = f"{word} {second.lower() or GROUPS[word]}"
    if name in BY_NAME:
        return _arguments(BY_NAME[name], after)
    forms = {form.name.split()[1]: form for form in members(word)}
    close = get_close_matches(second.lower(), forms, 1, 0.6)
    example = forms[close[0] if close else GROUPS[word]].example
    return Problem(
        f"“{cut(second)}” is nothing that `/{word}` does: say {joined(forms, 'or')}, "
        f"for example `{example}`"
    )


def _arguments(form: Form, rest: str) -> Command | Problem:
    found: dict[str, str] = {}
    for index, argument in enumerate(form.arguments):
        last = index == len(form.arguments) - 1
        split = options.split(form, rest, found, to_the_end=last)
        if isinstance(split, Problem):
            return split
        rest = split
        if not rest:
            if argument.required:
                return _missing(form, argument)
            continue
        if not argument.required and _belongs_later(rest, form.arguments[index + 1 :]):
            continue
        value, rest = _take(argument, rest)
        read_value = _checked(form, argument, value)
        if isinstance(read_value, Problem):
            return read_value
        found[argument.name] = read_value
    if rest.strip():
        return Problem(
            f"`/{form.name}` takes no “{cut(rest.strip())}”: say `{form.hint}`, "
            f"for example `{form.example}`"
        )
    return Command(form, found)


def _checked(form: Form, argument: Argument, value: str) -> str | Problem:
    """Return a value as handlers get it, or what is wrong with it."""
    if not value:
        return _missing(form, argument)
    if argument.kind is Kind.CHOICE:
        value = value.lower()
        if value not in argument.choices:
            return _no_choice(form, argument, value)
    if argument.kind is Kind.COUNT and not _is_count(value):
        return Problem(f"“{cut(value)}” is not {argument.what}, for example `{form.example}`")
    if argument.kind is Kind.TIME:
        time = _TIME.fullmatch(value)
        if time is None:
            return Problem(
                f"“{cut(value)}” is not {argument.what}: say `90s`, `20m` or `2h`, "
                f"for example `{form.example}`"
            )
        return str(int(time[1]) * _UNITS[(time[2] or "")[:1].lower()])
    return value


def _take(argument: Argument, rest: str) -> tuple[str, str]:
    """Split off the next argument; `rest` is not empty."""
    if argument.kind in (Kind.REST, Kind.TIME):
        phrase, after = options.phrase(rest)
        return (phrase, "") if phrase and not after else (rest, "")
    if argument.kind is Kind.PHRASE:
        phrase, after = options.phrase(rest)
        if phrase:
            return phrase, after
    pieces = rest.split(maxsplit=1)
    return pieces[0], (pieces[1] if len(pieces) > 1 else "")


def _belongs_later(rest: str, later: tuple[Argument, ...]) -> bool:
    word = rest.split(maxsplit=1)[0].lower()
    return any(word in argument.choices for argument in later)


def _is_count(value: str) -> bool:
    return value.isascii() and value.isdigit() and int(value[:10]) >= 1 and len(value) <= 9


def _missing(form: Form, argument: Argument) -> Problem:
    return Problem(
        f"`/{form.name}` needs {argument.what}: `{form.hint}`, for example `{form.example}`"
    )


def _no_choice(form: Form, argument: Argument, value: str) -> Problem:
    if len(argument.choices) == 1:
        return Problem(
            f"`/{form.name}` takes no “{cut(value)}”: say `{form.hint}`, "
            f"for example `{form.example}`"
        )
    return Problem(
        f"“{cut(value)}” is no {argument.what}: say {joined(argument.choices, 'or')}, "
        f"for example `{form.example}`"
    )
