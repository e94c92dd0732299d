"""What the scripted model says: a prompt's directives and what happened since, to a next move.

A person's text scripts the model, whatever harness carries it there:

    {{read PATH}}            read a file
    {{write PATH TEXT}}      write a file
    {{run COMMAND}}          run a command
    {{say TEXT}}             answer with this text
    {{count}}                answer with how many scripted texts this conversation holds
    {{recall}}               answer with what was said by `{{say}}` first in this conversation
    {{hold NAME}}            say "working on NAME" and go on saying nothing until released or left
    {{fail STATUS}}          answer with an HTTP error

Directives are done in order, one model call each; without any, the text comes back. The words are
the same for all harnesses: which tool is called, and how its arguments are named, is taken from
what the harness offers. Directives in results of tools are none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

_DIRECTIVE = re.compile(r"\{\{(read|write|run|say|count|recall|hold|fail)\b\s*(.*?)\}\}", re.S)

TOOLS = {
    "read": ("Read", "read_file", "read", "view"),
    "write": ("Write", "write_file", "write", "create"),
    "run": ("Bash", "execute", "run_shell_command", "bash", "exec_command", "shell"),
}
"""What harnesses call the tool of a directive, the first that is offered."""
_NAMES = {
    "path": ("file_path", "absolute_path", "path", "filePath"),
    "text": ("content", "file_text", "text"),
    "command": ("command", "cmd"),
}
"""What tools call an argument, the first that the tool has."""


@dataclass(frozen=True)
class Turn:
    """One entry of a conversation, from the prompt of a request. `tool`: what a tool gave."""

    role: str
    """`user`, `assistant` or `tool`."""
    text: str


@dataclass(frozen=True)
class Tool:
    """A tool that the harness offers."""

    name: str
    properties: Mapping[str, Any] = field(default_factory=dict)
    required: Sequence[str] = ()


@dataclass(frozen=True)
class Asked:
    """A request to the model, in whatever dialect it came."""

    turns: Sequence[Turn]
    tools: Sequence[Tool]
    model: str = ""


@dataclass(frozen=True)
class Say:
    """The model answers with a text."""

    text: str


@dataclass(frozen=True)
class Call:
    """The model calls a tool."""

    tool: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Hold:
    """The model begins to answer, and goes on when the test says so."""

    name: str


@dataclass(frozen=True)
class Fail:
    """The model's server refuses."""

    status: int


Move: TypeAlias = Say | Call | Hold | Fail


def next_move(asked: Asked) -> Move:
    """Return what the model does now."""
    if not asked.tools:
        # Titles, summaries and the like, which harnesses ask for beside the conversation.
        return Say("a scripted model")
    scripted = [n for n, turn in enumerate(asked.turns) if _is_script(turn)]
    if not scripted:
        last = [turn.text for turn in asked.turns if turn.role == "user"]
        return Say("you said: " + (last[-1][-200:] if last else "nothing"))
    at = scripted[-1]
    steps = list(_steps(asked.turns[at].text))
    done = [turn.text for turn in asked.turns[at + 1 :] if turn.role == "tool"]
    if len(done) >= len(steps):
        return Say(f"done: {done[-1][:200]}" if done else "done")
    word, rest = steps[len(done)]
    if word == "count":
        return Say(f"this is text {len(scripted)} of the conversation")
    if word == "recall":
        return Say(f"first I said: {_first_said(asked)}")
    if word == "say":
        return Say(rest)
    if word == "hold":
        return Hold(rest)
    if word == "fail":
        return Fail(int(rest))
    return _call(word, rest, asked.tools)


def _is_script(turn: Turn) -> bool:
    return turn.role == "user" and _DIRECTIVE.search(turn.text) is not None


def _steps(text: str) -> Iterator[tuple[str, str]]:
    for found in _DIRECTIVE.finditer(text):
        yield found[1], found[2].strip()


def _first_said(asked: Asked) -> str:
    for turn in asked.turns:
        if turn.role == "user":
            for word, rest in _steps(turn.text):
                if word == "say":
                    return rest
    return "nothing"


def _call(word: str, rest: str, tools: Sequence[Tool]) -> Move:
    offered = {tool.name: tool for tool in tools}
    tool = next((offered[name] for name in TOOLS[word] if name in offered), None)
    path, _, text = rest.partition(" ")
    if tool is None and word != "run":
        # A harness that has nothing but a shell.
        command = f"cat {path}" if word == "read" else f"printf %s '{text}' > {path}"
        return _call("run", command, tools)
    if tool is None:
        return Say(f"no tool to {word} with among {', '.join(sorted(offered))}")
    values = {"path": path, "text": text} if word != "run" else {"command": rest}
    if word == "read":
        del values["text"]
    arguments: dict[str, Any] = {}
    for what, value in values.items():
        name = next((n for n in _NAMES[what] if n in tool.properties), _NAMES[what][0])
        arguments[name] = value
    if "sandbox_permissions" in tool.properties and not rest.startswith("cat "):
        # Otherwise this harness runs it inside its own sandbox, without asking, and fails there.
        arguments |= {"sandbox_permissions": "require_escalated", "justification": "as you said"}
    for name in tool.required:
        arguments.setdefault(name, _filling(tool.properties.get(name, {})))
    return Call(tool.name, arguments)


def _filling(schema: Mapping[str, Any]) -> Any:
    """A value for an argument that no directive is about."""
    if schema.get("enum"):
        return schema["enum"][0]
    fillings: dict[str, Any] = {"boolean": False, "integer": 1, "number": 1, "array": []}
    return fillings.get(str(schema.get("type")), "as you said")
