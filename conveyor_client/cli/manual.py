"""Help like a page of a manual: what a command does, arguments, examples, exit codes.

The first lines are the docstring of the verb, the rest is in `conveyor_client.cli.pages`, which is
loaded only when somebody asks for help. Plain text: the same on a terminal, in a pipe and in a
pager, and without the third of a second that panels and colours take to load.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from collections.abc import Callable

    from conveyor_client.cli.pages import Page

Work = TypeVar("Work", bound="Callable[..., Any]")

EXITS = {
    0: "done",
    1: "the suite does not answer, refused it, or it failed",
    2: "called wrongly, or the configuration cannot be used",
    130: "interrupted by Ctrl-C",
}
"""Exit codes of every command, and what they mean unless its page says more."""


def summary_of(command: Any) -> str:
    """Return the first sentences about a command: the first paragraph of its docstring."""
    return " ".join(_paragraphs(command)[0].split())


def about(command: Any, page: Page) -> list[str]:
    """Return the paragraphs that follow the summary."""
    return [" ".join(text.split()) for text in (*_paragraphs(command)[1:], *page.about)]


def exits_of(page: Page) -> dict[int, str]:
    """Return the exit codes of a command."""
    return dict(sorted((EXITS | dict(page.exits)).items()))


def _paragraphs(command: Any) -> list[str]:
    return inspect.cleandoc(command.help or "").partition("\f")[0].split("\n\n")


class _Manual:
    """The parts of a command that write its page, for verbs and groups alike."""

    def format_help(self: Any, ctx: Any, formatter: Any) -> None:
        """Write the page of the command."""
        from conveyor_client.cli.pages import page_of

        page = page_of(ctx.command_path)
        self.format_usage(ctx, formatter)
        for text in (summary_of(self), *about(self, page)):
            formatter.write_paragraph()
            with formatter.indentation():
                formatter.write_text(text)
        self.format_options(ctx, formatter)
        if page.examples:
            with formatter.section("Examples"):
                for command, what in page.examples:
                    # Not folded: an example in two halves cannot be copied.
                    formatter.write(f"  {command}\n      {what}\n")
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), text) for code, text in exits_of(page).items()])
        if ctx.parent is not None:
            formatter.write("\nOptions of all commands, such as --config: conveyor --help\n")

    def get_short_help_str(self: Any, limit: int = 45) -> str:
        """Return the line about the command in a list: its first sentence, whole."""
        return summary_of(self).partition(". ")[0].rstrip(".")


class _Verb(_Manual, TyperCommand):
    pass


class _Group(_Manual, TyperGroup):
    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands below headings, where they have some."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            if not command.hidden:
                heading = command.rich_help_panel or "Commands"
                panels.setdefault(heading, []).append((name, command.get_short_help_str()))
        for heading, rows in panels.items():
            with formatter.section(heading):
                formatter.write_dl(rows)


class Verbs(typer.Typer):
    """Verbs, each with its page of the manual."""

    def __init__(self, **options: Any) -> None:
        super().__init__(cls=_Group, rich_markup_mode=None, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[Work], Work]:
        """Add a verb; see `typer.Typer.command`."""
        return super().command(name, **{"cls": _Verb, **options})
