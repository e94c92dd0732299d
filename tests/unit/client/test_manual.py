"""The manual: every command has a page, its examples can be typed, and asking for it is quick."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from conveyor_client.cli import pages
from conveyor_client.cli.app import app
from conveyor_client.cli.manual import about, exits_of, summary_of
from conveyor_client.cli.pages import page_of

ROOT: Any = typer.main.get_command(app)
# What no verb needs before it does its work. (Typer itself asks for pydantic.)
HEAVY = {"asyncio", "grpc", "google", "opentelemetry", "rich", "conveyor", "pydantic_settings"}
COUNTS = "second|many|limit|messages|children|requests|tokens|read|dollars|random|times|arrive"


def _commands(group: Any, above: typer.Context) -> Iterator[tuple[str, Any, typer.Context]]:
    for name in group.list_commands(above):
        command = group.get_command(above, name)
        context = typer.Context(command, info_name=name, parent=above)
        nested = hasattr(command, "list_commands")
        if not nested or command.invoke_without_command:
            yield context.command_path, command, context
        if nested:
            yield from _commands(command, context)


COMMANDS = list(_commands(ROOT, typer.Context(ROOT, info_name="conveyor")))


def test_every_command_has_a_page_and_every_page_a_command() -> None:
    for path, command, context in COMMANDS:
        page = page_of(path)
        assert 10 < len(summary_of(command)) < 100, path
        assert summary_of(command).endswith("."), path
        assert about(command, page), f"{path} has a summary and no description"
        assert page.examples, f"{path} has no example"
        assert {0, 1, 2, 130} <= set(exits_of(page)), path
        for parameter in command.get_params(context):
            _check_option(path, parameter, context)
    named = {path.partition(" ")[2] for path, _, _ in COMMANDS}
    assert set(pages._PAGES) | set(pages._OTHER_NAMES) == named


def _check_option(path: str, parameter: Any, context: typer.Context) -> None:
    where = f"{path} {parameter.name}"
    record = parameter.get_help_record(context)
    assert record is not None, where
    name, text = record
    assert len(text) > 8, f"{where} says nothing of itself"
    if re.search("<(int|float)", name):
        # A number without its unit is a riddle.
        assert re.search(COUNTS, text.lower()), f"{where} has no unit: {text}"
    takes_a_value = not getattr(parameter, "is_flag", False) and not parameter.required
    if takes_a_value and parameter.param_type_name == "option" and parameter.default is not None:
        assert "default" in text.lower() or not parameter.default, where


@pytest.mark.parametrize("path", ["conveyor", *(path for path, _, _ in COMMANDS)])
def test_examples_can_be_typed(path: str) -> None:
    """They are parsed by the command line itself, which refuses what it does not know."""
    for text, what in page_of(path).examples:
        assert len(what) > 2, text
        typed = text.rpartition("| ")[2]
        assert typed.startswith((path, "conveyor --")), f"{path} is shown by {text}"
        if "COMMAND" not in typed:
            _parse(shlex.split(typed)[1:])


def _parse(words: list[str]) -> None:
    command, context, name = ROOT, None, "conveyor"
    while True:
        context = command.make_context(name, list(words), parent=context, resilient_parsing=False)
        words = [*getattr(context, "_protected_args", ()), *context.args]
        if not hasattr(command, "list_commands") or not words:
            return
        name, command, words = command.resolve_command(context, words)


def test_help_is_plain_text_with_all_parts() -> None:
    said = CliRunner().invoke(app, ["send", "--help"], prog_name="conveyor").output
    parts = ("Usage: conveyor send", "Arguments:", "Options:", "Examples:", "Exit codes:")
    assert sorted(parts, key=said.index) == list(parts)
    assert "with --wait: the run failed" in said
    assert "  cat report.md | conveyor send --wait -\n" in said
    assert max(map(len, said.splitlines())) <= 80
    assert "╭" not in said
    other = CliRunner().invoke(app, ["tasks", "list", "--help"], prog_name="conveyor").output
    assert "conveyor tasks list --state running" in other
    root = CliRunner().invoke(app, ["--help"], prog_name="conveyor").output
    assert "Talk to it:\n  chat" in root


def test_completion_and_help_load_nothing_heavy() -> None:
    """A Tab that takes a second is one that nobody presses twice."""
    program = "import sys; from conveyor_client.cli import main\ntry: main()\n"
    program += "finally: print('\\n', *sys.modules, file=sys.stderr)"
    for environ, arguments, expected in (
        ({"_CONVEYOR_COMPLETE": "complete_bash", "COMP_CWORD": "1"}, [], "flow\n"),
        ({"_CONVEYOR_COMPLETE": "complete_bash", "COMP_CWORD": "3"}, [], "steer\n"),
        ({}, ["forecast", "--help"], "--turn TIME"),
    ):
        words = {"1": "conveyor fl", "3": "conveyor send --queue-mode st"}
        environ = environ | {"COMP_WORDS": words.get(environ.get("COMP_CWORD", ""), "")}
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env={"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin", **environ},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert expected in done.stdout
        loaded = HEAVY & set(done.stderr.split())
        assert not loaded, (loaded, environ)
