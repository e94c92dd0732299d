"""Shows utterances: with colours and Markdown on a terminal, as plain lines elsewhere."""

from __future__ import annotations

import sys
from typing import ClassVar, Protocol

from conveyor_client.cli.narrate import Utterance, Voice
from conveyor_client.cli.output import console, plain, printable


class Printer(Protocol):
    """Shows one utterance after another on standard output."""

    def show(self, utterance: Utterance) -> None:
        """Show it at once."""


def printer() -> Printer:
    """Return the printer that fits standard output."""
    return TerminalPrinter() if sys.stdout.isatty() else PlainPrinter()


class PlainPrinter:
    """For files and pipes: one line of news each, messages as they are."""

    _SIGNS: ClassVar = {Voice.NEWS: "· ", Voice.GOOD: "✓ ", Voice.BAD: "✗ "}

    def show(self, utterance: Utterance) -> None:
        """Print it at once, so that a reader of the pipe sees it when it happens."""
        match utterance.voice:
            case Voice.PIECE:
                print(printable(utterance.text), end="", flush=True)
            case Voice.BREAK:
                print(flush=True)
            case Voice.MESSAGE:
                print(printable(utterance.text), flush=True)
            case voice:
                print(self._SIGNS[voice] + printable(utterance.text), flush=True)


class TerminalPrinter:
    """For people: dimmed news, coloured ends, Markdown messages."""

    _STYLES: ClassVar = {
        Voice.NEWS: ("dim", "·"),
        Voice.GOOD: ("green", "✓"),
        Voice.BAD: ("red", "✗"),
    }

    def __init__(self) -> None:
        self._console = console()

    def show(self, utterance: Utterance) -> None:
        """Print it at once."""
        match utterance.voice:
            case Voice.PIECE:
                self._console.out(printable(utterance.text), end="", highlight=False)
            case Voice.BREAK:
                self._console.out("")
            case Voice.MESSAGE:
                from rich.markdown import Markdown

                self._console.print(Markdown(printable(utterance.text)))
            case voice:
                style, sign = self._STYLES[voice]
                self._console.print(f"[{style}]{sign} {plain(utterance.text)}[/]")
