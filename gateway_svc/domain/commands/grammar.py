"""The commands that people may type, as data. Parsing, help and the references follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from gateway_svc.domain.commands.acp_forms import ACP_FORMS
from gateway_svc.domain.commands.form import Argument, Form, Kind, Option


def _choice(what: str, *choices: str, name: str = "") -> Argument:
    return Argument(name or choices[0], Kind.CHOICE, what, required=False, choices=choices)


_TARGET = Argument("target", Kind.PHRASE, "a sub-agent")
_TARGET_REST = Argument("target", Kind.REST, "a sub-agent")
_FLOW = Argument("flow", Kind.REST, "a request")
_TOLD = Argument("message", Kind.REST, "a message")
_QUESTION = Argument("question", Kind.WORD, "a question", required=False)
_ALWAYS = _choice("word", "always")

FORMS: tuple[Form, ...] = (
    Form(
        "help",
        "What can be typed, or how one command is used",
        "/help subagents",
        (Argument("command", Kind.REST, "a command", required=False),),
        needs_session=False,
    ),
    Form("status", "What is going on here: agent, model, work, what waits, cost", "/status"),
    Form("new", "Forget: what you say next begins afresh", "/new", changes=True),
    Form(
        "stop",
        "Stop what is being worked on; with `all` also what waits",
        "/stop all",
        (_choice("word", "all"),),
        changes=True,
    ),
    Form(
        "queue",
        "What a message does when this conversation is busy",
        "/queue collect",
        (
            _choice(
                "queue mode",
                *("followup", "collect", "steer", "interrupt", "reset"),
                name="mode",
            ),
        ),
        changes=True,
        sets="mode",
    ),
    Form(
        "model",
        "Which model answers here; choose another, or `reset`",
        "/model demo",
        (Argument("name", Kind.WORD, "a model", required=False),),
        changes=True,
        sets="name",
    ),
    Form("agents", "The agents that there are", "/agents", needs_session=False),
    Form("lanes", "How full the lanes are", "/lanes", needs_session=False),
    Form(
        "why",
        "Why something waits, and when it should start",
        "/why 1",
        (Argument("run", Kind.REST, "a run", required=False),),
        needs_session=False,
    ),
    Form(
        "subagents list",
        "The sub-agents of this conversation, at work or ended within 30 minutes",
        "/subagents list",
        (Argument("page", Kind.COUNT, "a page", required=False),),
    ),
    Form("subagents info", "Everything about one of them", "/subagents info 1", (_TARGET_REST,)),
    Form(
        "subagents log",
        "The last it said and did",
        "/subagents log 1 5",
        (_TARGET, Argument("lines", Kind.COUNT, "a number of lines", required=False)),
    ),
    Form(
        "subagents steer",
        "Tell it something while it works",
        "/steer 1 look at Europe only",
        (_TARGET, _TOLD),
        aliases=("steer", "tell"),
        changes=True,
    ),
    Form(
        "subagents send",
        "The same as steer",
        "/subagents send 1 look at Europe only",
        (_TARGET, _TOLD),
        changes=True,
    ),
    Form(
        "subagents kill",
        "Stop one with all below it, or `all`",
        "/kill 1",
        (_TARGET_REST,),
        aliases=("kill",),
        changes=True,
    ),
    Form(
        "subagents spawn",
        "Start one yourself; its result comes here",
        "/subagents spawn main compare three hotels",
        (Argument("agent", Kind.WORD, "an agent"), Argument("task", Kind.REST, "a task")),
        options=(Option("model", "a model"),),
        changes=True,
    ),
    Form("tasks", "What was asked here in the last 24 hours, and where it is", "/tasks"),
    Form(
        "flow list",
        "The requests of this conversation that took sub-agents",
        "/flow list",
        needs_session=False,
    ),
    Form(
        "flow show",
        "One request with its sub-agents",
        "/flow show 1",
        (_FLOW,),
        needs_session=False,
    ),
    Form(
        "flow cancel",
        "Stop one request with all its sub-agents",
        "/flow cancel 1",
        (_FLOW,),
        changes=True,
        needs_session=False,
    ),
    Form(
        "approve",
        "Allow what a tool asks for, once or `always` in this conversation",
        "/approve 2",
        (_QUESTION, _ALWAYS),
        changes=True,
    ),
    Form(
        "deny",
        "Refuse what a tool asks for, once or `always` in this conversation",
        "/deny 2",
        (_QUESTION, _ALWAYS),
        changes=True,
    ),
    *ACP_FORMS,
)

GROUPS: Mapping[str, str] = MappingProxyType({"subagents": "list", "flow": "list", "acp": "help"})
"""First words that several forms share, and the second word that is meant without one."""

ELSEWHERE: Mapping[str, str] = MappingProxyType(
    {
        "abort": "stop",
        "cancel": "stop",
        "clear": "new",
        "commands": "help",
        "reset": "new",
        "runs": "tasks",
        "start": "help",
    }
)
"""What other assistants call things, and what it is called here."""

BY_NAME: Mapping[str, Form] = MappingProxyType({form.name: form for form in FORMS})
BY_ALIAS: Mapping[str, Form] = MappingProxyType(
    {alias: form for form in FORMS for alias in form.aliases}
)
FIRST_WORDS: tuple[str, ...] = tuple(
    dict.fromkeys([*(form.name.split()[0] for form in FORMS), *BY_ALIAS])
)


def members(group: str) -> tuple[Form, ...]:
    """Return the forms that begin with the first word `group`, in order."""
    return tuple(form for form in FORMS if form.name.split()[0] == group)
