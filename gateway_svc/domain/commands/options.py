"""Reads `--name value` beside the arguments of a command.

Options stand in front of the text that a command takes, or behind it; what looks like one within
that text belongs to it. Two dashes alone end them: `/acp spawn claude -- explain --cwd`.
"""

from __future__ import annotations

import re

from gateway_svc.domain.commands.form import Form, Option
from gateway_svc.domain.commands.problem import Problem, cut
from svckit.words import joined

_FIRST = re.compile(r"(--|—|–)(\w[\w-]*)(?:=|\s+|$)")
_BEGINS = re.compile(r"(?<=\s)(?:--|—|–)(?=\w)")
_MOST_BEHIND = 1000
"""Characters of options behind a text: more is not looked through for them."""
_END = re.compile(r"--\s+")
# Telephones write quotation marks and dashes as they like.
_QUOTES = {'"': '"”', "'": "'’", "“": '”"', "„": '“”"', "«": "»", "‘": "’'"}
_MARKS = "".join({*_QUOTES, *_QUOTES.values()})


def phrase(rest: str) -> tuple[str, str]:
    """Split off what stands in quotation marks; nothing when they do not close before a blank."""
    closing = _QUOTES.get(rest[:1], "")
    for index, letter in enumerate(rest[1:], start=1):
        if letter in closing and (index + 1 == len(rest) or rest[index + 1].isspace()):
            return rest[1:index].strip(), rest[index + 1 :].strip()
    return "", rest


def split(form: Form, rest: str, found: dict[str, str], *, to_the_end: bool) -> str | Problem:
    """Move the options in front of the next argument into `found`, and return what is left.

    With `to_the_end`, when that argument takes everything, those behind it too.
    """
    rest = rest.strip()
    if not form.options:
        return rest
    while (begun := _FIRST.match(rest)) is not None:
        option = _named(form, begun)
        if option is None:
            # A dash that a telephone made may stand before any word.
            return _unknown(form, begun[2]) if begun[1] == "--" else rest
        taken = _value(form, option, rest[begun.end() :], found)
        if isinstance(taken, Problem):
            return taken
        found[option.name], rest = taken
    if (end := _END.match(rest)) is not None:
        return rest[end.end() :]
    if not to_the_end:
        return rest
    quoted, after = phrase(rest)
    if quoted and (behind := _all(form, after, found)) is not None:
        if isinstance(behind, Problem):
            return behind
        found |= behind
        return rest[: len(rest) - len(after)].strip()
    for begins in _BEGINS.finditer(rest, max(0, len(rest) - _MOST_BEHIND)):
        behind = _all(form, rest[begins.start() :], found)
        if isinstance(behind, Problem):
            return behind
        if behind is not None:
            found |= behind
            return rest[: begins.start()].strip()
    return rest


def _all(form: Form, rest: str, found: dict[str, str]) -> dict[str, str] | Problem | None:
    """Read a text that is nothing but options; `None` when it is something else as well."""
    mine: dict[str, str] = {}
    problem: Problem | None = None
    while rest:
        begun = _FIRST.match(rest)
        option = _named(form, begun) if begun is not None else None
        # Given twice: then it belongs to a text about options, and reading on would take long.
        if begun is None or option is None or option.name in mine:
            return None
        taken = _value(form, option, rest[begun.end() :], found)
        if isinstance(taken, Problem):
            problem = problem or taken
            mine[option.name], rest = "", _word(rest[begun.end() :])[1]
        else:
            mine[option.name], rest = taken
    if problem is not None:
        return Problem(f"{problem.text}. In quotation marks it stays in the text")
    return mine


def _named(form: Form, begun: re.Match[str]) -> Option | None:
    name = begun[2].lower()
    return next((option for option in form.options if option.name == name), None)


def _is_option(form: Form, rest: str) -> bool:
    begun = _FIRST.match(rest)
    if begun is None:
        return _END.match(rest) is not None
    return begun[1] == "--" or _named(form, begun) is not None


def _value(
    form: Form, option: Option, rest: str, found: dict[str, str]
) -> tuple[str, str] | Problem:
    """Split off the value of an option."""
    # What begins with dashes is the next option, and nothing between quotation marks is no value.
    value, after = ("", "") if _is_option(form, rest.strip()) else _word(rest)
    value = value if value.strip(_MARKS) else ""
    words = joined(option.choices, "or") if option.choices else option.what
    if not value:
        return Problem(f"`--{option.name}` needs {words}{_example(option)}")
    if option.name in found:
        return Problem(f"`--{option.name}` is there twice: say it once, with {words}")
    if option.choices:
        value = value.lower()
        if value not in option.choices:
            return Problem(f"“{cut(value)}” is no {option.what}: say {words}{_example(option)}")
    return value, after


def _example(option: Option) -> str:
    """Return how the option is said. Of those without choices the name says enough."""
    return f", for example `--{option.name} {option.choices[0]}`" if option.choices else ""


def _word(rest: str) -> tuple[str, str]:
    rest = rest.strip()
    inside, after = phrase(rest)
    if inside:
        return inside, after
    pieces = rest.split(maxsplit=1)
    return (pieces[0] if pieces else ""), (pieces[1] if len(pieces) > 1 else "")


def _unknown(form: Form, name: str) -> Problem:
    there = joined([f"`--{option.name}`" for option in form.options])
    return Problem(f"`/{form.name}` knows no “--{cut(name)}”: there is {there}")
