"""`cli.md`: every command with its options, from the command line itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer
import typer.main

from conveyor_client.cli.app import app
from docgen import NOTE, cell

INTRO = """# Command line

`make setup` puts the command at `.venv/bin/conveyor`. `conveyor COMMAND --help` says the same as this page.
"""


def render() -> str:
    """The document."""
    root = typer.main.get_command(app)
    parts = [NOTE, INTRO]
    context = typer.Context(root, info_name="conveyor")
    parts.append(
        "\n## Options of all commands\n\nThey come before the command.\n\n"
        + _options(root, context)
    )
    for command, path in _commands(root, context):
        usage = " ".join(command.collect_usage_pieces(path))
        hidden = "" if not command.deprecated else " (deprecated)"
        parts.append(f"\n## `{path.command_path}`{hidden}\n\n")
        parts.append(f"```text\n{path.command_path} {usage}\n```\n\n".replace(" \n", "\n"))
        parts.append(_text(command.help or "") + "\n")
        if options := _options(command, path):
            parts.append("\n" + options)
    return "".join(parts)


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
