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
from gateway_svc.domain.commands.grammar import (
    BY_ALIAS,
    BY_NAME,
    ELSEWHERE,
    FIRST_WORDS,
    GROUPS,
    Argument,
    Form,
    Kind,
    members,
)
from svckit.words import joined

_FIRST = re.compile(r"/([A-Za-z][A-Za-z_-]{0,31})(?:@\w{1,64})?")
_OPTION = re.compile(r"(?:--|—|–)(\w+)[ =]+(\S+)")
# Telephones write quotation marks and dashes as they like.
_QUOTES = {'"': '"”', "'": "'’", "“": '”"', "„": '“”"', "«": "»", "‘": "’'"}
_NEARLY, _NEARLY_IN_A_SENTENCE = 0.75, 0.8
_MAX_SAID = 40


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


@dataclass(frozen=True, slots=True)
class Problem:
    """A command that cannot be done. `text` says in one line what was meant, with an example."""

    text: str


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
    hint = f"“/{_cut(word)}” is no command: did you mean `/{meant}`?"
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
        f"“{_cut(second)}” is nothing that `/{word}` does: say {joined(forms, 'or')}, "
        f"for example `{example}`"
    )


def _arguments(form: Form, rest: str) -> Command | Problem:
    found: dict[str, str] = {}
    for name in form.options:
        for given in _OPTION.finditer(rest):
            if given[1].lower() == name:
                found[name] = given[2]
                rest = (rest[: given.start()] + rest[given.end() :]).strip()
                break
    for index, argument in enumerate(form.arguments):
        rest = rest.strip()
        if not rest:
            if argument.required:
                return _missing(form, argument)
            continue
        if not argument.required and _belongs_later(rest, form.arguments[index + 1 :]):
            continue
        value, rest = _take(argument, rest)
        if not value:
            return _missing(form, argument)
        if argument.kind is Kind.CHOICE:
            value = value.lower()
            if value not in argument.choices:
                return _no_choice(form, argument, value)
        if argument.kind is Kind.COUNT and not _is_count(value):
            return Problem(f"“{_cut(value)}” is not {argument.what}, for example `{form.example}`")
        found[argument.name] = value
    if rest.strip():
        return Problem(
            f"`/{form.name}` takes no “{_cut(rest.strip())}”: say `{form.usage}`, "
            f"for example `{form.example}`"
        )
    return Command(form, found)


def _take(argument: Argument, rest: str) -> tuple[str, str]:
    """Split off the next argument; `rest` is not empty."""
    if argument.kind is Kind.REST:
        phrase, after = _phrase(rest)
        return (phrase, "") if phrase and not after else (rest, "")
    if argument.kind is Kind.PHRASE:
        phrase, after = _phrase(rest)
        if phrase:
            return phrase, after
    pieces = rest.split(maxsplit=1)
    return pieces[0], (pieces[1] if len(pieces) > 1 else "")


def _phrase(rest: str) -> tuple[str, str]:
    """Split off what stands in quotation marks; nothing when they do not close before a blank."""
    closing = _QUOTES.get(rest[0], "")
    for index, letter in enumerate(rest[1:], start=1):
        if letter in closing and (index + 1 == len(rest) or rest[index + 1].isspace()):
            return rest[1:index].strip(), rest[index + 1 :].strip()
    return "", rest


def _belongs_later(rest: str, later: tuple[Argument, ...]) -> bool:
    word = rest.split(maxsplit=1)[0].lower()
    return any(word in argument.choices for argument in later)


def _is_count(value: str) -> bool:
    return value.isascii() and value.isdigit() and int(value[:10]) >= 1 and len(value) <= 9


def _missing(form: Form, argument: Argument) -> Problem:
    return Problem(
        f"`/{form.name}` needs {argument.what}: `{form.usage}`, for example `{form.example}`"
    )


def _no_choice(form: Form, argument: Argument, value: str) -> Problem:
    if len(argument.choices) == 1:
        return Problem(
            f"`/{form.name}` takes no “{_cut(value)}”: say `{form.usage}`, "
            f"for example `{form.example}`"
        )
    return Problem(
        f"“{_cut(value)}” is no {argument.what}: say {joined(argument.choices, 'or')}, "
        f"for example `{form.example}`"
    )


def _cut(text: str) -> str:
    line = "".join(letter if letter.isprintable() else " " for letter in text)
    line = " ".join(line.split())
    return line if len(line) <= _MAX_SAID else line[: _MAX_SAID - 1] + "…"
