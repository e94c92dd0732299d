"""The forms of `/acp`: coding agents from a chat."""

from __future__ import annotations

from gateway_svc.domain.commands.form import Argument, Form, Kind, Option
from svckit.contract_words import PERMISSION_MODES, SESSION_MODES

_TARGET = Argument("target", Kind.REST, "a coding agent", required=False)
_SESSION = Option("session", "a coding agent")
_HARNESS = Argument("harness", Kind.WORD, "a harness", required=False)

ACP_FORMS: tuple[Form, ...] = (
    Form(
        "acp help",
        "What can be said to coding agents, or how one command is used",
        "/acp help spawn",
        (Argument("command", Kind.REST, "a command", required=False),),
        needs_session=False,
    ),
    Form(
        "acp spawn",
        "Start a coding agent; with `--bind here` it answers this conversation until it is closed",
        "/acp spawn claude --bind here fix the failing test",
        (
            Argument("harness", Kind.WORD, "a harness"),
            Argument("task", Kind.REST, "a task", required=False),
        ),
        options=(
            Option("bind", "binding", ("here", "off")),
            Option("thread", "thread", ("auto", "here", "off")),
            Option("mode", "mode", tuple(SESSION_MODES)),
            Option("cwd", "a directory"),
            Option("label", "a label"),
            Option("permissions", "permission mode", tuple(PERMISSION_MODES)),
        ),
        changes=True,
    ),
    Form(
        "acp steer",
        "Tell it something; it reads it when its present turn has ended",
        "/acp steer now run the tests",
        (Argument("message", Kind.REST, "a message", usage="[target] <message>"),),
        options=(_SESSION,),
        changes=True,
    ),
    Form(
        "acp status",
        "What it does now, since when, what it asks, and its last error",
        "/acp status",
        (_TARGET,),
    ),
    Form(
        "acp cancel",
        "Stop what it is doing; it stays and keeps what it knows",
        "/acp cancel",
        (_TARGET,),
        changes=True,
    ),
    Form(
        "acp close",
        "End it, with its process; a conversation bound to it goes back to its agent",
        "/acp close",
        (_TARGET,),
        changes=True,
    ),
    Form(
        "acp sessions",
        "The coding agents of this conversation",
        "/acp sessions",
        needs_session=False,
    ),
    Form(
        "acp permissions",
        "What happens when it asks for permission",
        "/acp permissions ask",
        (
            Argument(
                "mode",
                Kind.CHOICE,
                "permission mode",
                required=False,
                choices=tuple(PERMISSION_MODES),
            ),
        ),
        options=(_SESSION,),
        changes=True,
        sets="mode",
    ),
    Form(
        "acp model",
        "Its model, by its own names",
        "/acp model opus",
        (Argument("name", Kind.WORD, "a model", required=False),),
        options=(_SESSION,),
        changes=True,
        sets="name",
    ),
    Form(
        "acp set-mode",
        "Its own mode, by its own names",
        "/acp set-mode plan",
        (Argument("mode", Kind.WORD, "a mode", required=False),),
        options=(_SESSION,),
        changes=True,
        sets="mode",
    ),
    Form(
        "acp set",
        "One of its own options",
        "/acp set thought_level high",
        (
            Argument("key", Kind.WORD, "an option", required=False),
            Argument("value", Kind.REST, "a value", required=False),
        ),
        options=(_SESSION,),
        changes=True,
        sets="value",
    ),
    Form(
        "acp cwd",
        "Its directory; in another one it begins afresh",
        "/acp cwd /srv/site",
        (Argument("directory", Kind.REST, "a directory", required=False),),
        options=(_SESSION,),
        changes=True,
        sets="directory",
    ),
    Form(
        "acp timeout",
        "How long one turn may work; waiting for you does not count",
        "/acp timeout 20m",
        (Argument("time", Kind.TIME, "a time", required=False),),
        options=(_SESSION,),
        changes=True,
        sets="time",
    ),
    Form(
        "acp doctor",
        "Which coding agents work here, and what to do about those that do not",
        "/acp doctor claude",
        (_HARNESS,),
        needs_session=False,
    ),
    Form(
        "acp install",
        "How to install one",
        "/acp install codex",
        (_HARNESS,),
        needs_session=False,
    ),
)

ACP_TOPICS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Begin and end", ("spawn", "close", "sessions")),
    ("Work", ("steer", "status", "cancel")),
    ("What it may do", ("permissions", "cwd", "timeout")),
    ("How it works", ("model", "set-mode", "set")),
    ("Set up", ("doctor", "install")),
)
"""The second words by what they are for: help that fits a telephone."""
