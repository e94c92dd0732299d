"""What a command is made of: its words, what follows them, and its options."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """How much of a text an argument takes."""

    WORD = "word"
    """One word."""
    PHRASE = "phrase"
    """One word, or several in quotation marks."""
    REST = "rest"
    """Everything that is left, without quotation marks around it."""
    COUNT = "count"
    """A whole number from 1 on."""
    CHOICE = "choice"
    """One of the words in `choices`."""
    TIME = "time"
    """Everything that is left, a length of time: `90s`, `20 min`, `2h`. Read as seconds."""


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument. `what` is what people call it when it is missing or wrong.

    `usage` is how a usage line shows it where its name does not say enough.
    """

    name: str
    kind: Kind
    what: str
    required: bool = True
    choices: tuple[str, ...] = ()
    usage: str = ""

    @property
    def shown(self) -> str:
        """As in a usage line."""
        if self.usage:
            return self.usage
        name = "|".join(self.choices) if len(self.choices) == 1 else self.name
        return f"<{name}>" if self.required else f"[{name}]"


@dataclass(frozen=True, slots=True)
class Option:
    """`--name value`; with `choices` only those words. A value with blanks stands in quotes."""

    name: str
    what: str
    choices: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """As in a usage line."""
        return f"[--{self.name} {'|'.join(self.choices) or self.what.split()[-1]}]"


@dataclass(frozen=True, slots=True)
class Form:
    """One thing that can be typed.

    `name` is canonical, without the slash. `changes` says that doing it twice is not the same as
    doing it once, so that what came of it is remembered; without the argument or option `sets` it
    only shows something. `aliases` are other first words for the whole form.
    """

    name: str
    summary: str
    example: str
    arguments: tuple[Argument, ...] = ()
    options: tuple[Option, ...] = ()
    aliases: tuple[str, ...] = ()
    changes: bool = False
    sets: str = ""
    needs_session: bool = True

    @property
    def usage(self) -> str:
        """As in a manual: `/subagents log <target> [lines]`."""
        words = [f"/{self.name}", *(argument.shown for argument in self.arguments)]
        return " ".join([*words, *(option.shown for option in self.options)])

    @property
    def hint(self) -> str:
        """The usage as it fits into one line of an answer."""
        if len(self.options) <= 2:
            return self.usage
        words = [f"/{self.name}", *(argument.shown for argument in self.arguments)]
        return " ".join([*words, "[options]"])
