"""`cli.md`: every command with its options, from the command line itself."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from typing import Any

import typer
import typer.main

from conveyor_client.cli.app import app
from conveyor_client.cli.manual import about, exits_of, summary_of
from conveyor_client.cli.pages import Page, page_of
from docgen import NOTE, cell

INTRO = """# Command line

[Install](../how-to/install.md) it, or `make setup` puts it at `.venv/bin/conveyor`. `conveyor COMMAND --help` says the
same as this page; a Tab completes commands, options and values once
[completion is installed](../how-to/install.md#completion-of-commands).

"""


def render() -> str:
    """The document."""
    root = typer.main.get_command(app)
    parts = [NOTE, INTRO]
    context = typer.Context(root, info_name="conveyor")
    page = page_of("conveyor")
    parts += [f"{_folded(text)}\n\n" for text in (summary_of(root), *about(root, page))]
    parts.append(_examples(page))
    parts.append("\n## Exit codes\n\n| Code | Meaning, unless the command says more |\n|---|---|\n")
    parts += [f"| {code} | {cell(text)} |\n" for code, text in exits_of(page).items()]
    parts.append(
        "\n## Options of all commands\n\nThey come before the command.\n\n"
        + _options(root, context)
    )
    for command, path in _commands(root, context):
        usage = " ".join(command.collect_usage_pieces(path))
        hidden = "" if not command.deprecated else " (deprecated)"
        parts.append(f"\n## `{path.command_path}`{hidden}\n\n")
        parts.append(f"```text\n{path.command_path} {usage}\n```\n\n".replace(" \n", "\n"))
        page = page_of(path.command_path)
        texts = (summary_of(command), *about(command, page))
        parts += ["\n\n".join(map(_folded, texts)), "\n"]
        if options := _options(command, path):
            parts.append("\n" + options)
        parts.append("\n" + _examples(page))
        if page.exits:
            own = [f"{code} {text}" for code, text in exits_of(page).items() if code in page.exits]
            parts.append(f"\nExit codes: {'; '.join(own)}\n")
    return "".join(parts)


def _folded(text: str) -> str:
    return textwrap.fill(text, 116, break_long_words=False, break_on_hyphens=False)


def _examples(page: Page) -> str:
    lines = [f"{command}    # {what}\n" for command, what in page.examples]
    return f"```sh\n{''.join(lines)}```\n" if lines else ""


def _commands(group: Any, context: typer.Context) -> Iterator[tuple[Any, typer.Context]]:
    if not hasattr(group, "list_commands"):
        return
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        below = typer.Context(command, info_name=name, parent=context)
        if hasattr(command, "list_commands"):
            if command.invoke_without_command:
                yield command, below
            yield from _commands(command, below)
        else:
            yield command, below


def _text(text: str) -> str:
    # Rich marks and the form feed that ends the short help are for terminals.
    return re.sub(r"\[/?(?:bold|dim|green|red|cyan)\]", "", text.partition("\f")[0]).strip()


def _options(command: Any, context: typer.Context) -> str:
    rows = []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is None or "--help" in parameter.opts:
            continue
        name, text = record
        rows.append(f"| `{cell(name)}` | {cell(_text(text))} |\n")
    return "| Option | Meaning |\n|---|---|\n" + "".join(rows) if rows else ""
