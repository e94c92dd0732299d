"""The tools of a run: which it may call, their schemas, and how their arguments are read.

A tool is named by itself or, in the configuration, with others by a pattern that ends in `*`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import msgspec

from agent_svc.domain import harnesses
from agent_svc.domain.content import excerpt
from agent_svc.domain.prompt import ToolSchema

SPAWN = "sessions_spawn"
YIELD = "sessions_yield"
AGENTS = "agents_list"
SESSION_TOOLS = (SPAWN, YIELD, AGENTS)

NO_TOOL = "!"
"""A ceiling that allows nothing: no tool has this name, and an empty one would allow all."""

LABEL_CHARS = 64
TASK_BYTES = 256 * 1024
MOST_TOKENS = 1_000_000_000
MOST_USD = 1_000_000


class BadArguments(Exception):
    """The model called a tool with arguments it does not take. The text is for the model."""


class SpawnBudget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a sub-agent and everything below it may use. It counts against the parent's too."""

    max_tokens: int | None = None
    max_cost_usd: float | None = None


class SpawnArgs(msgspec.Struct, frozen=True):
    """Arguments of `sessions_spawn`. Unset ones follow the configuration."""

    task: str
    label: str = ""
    agent_id: str = ""
    runtime: Literal["subagent", "acp"] = "subagent"
    wait: bool | None = None
    model: str = ""
    context: Literal["isolated", "fork"] = "isolated"
    cwd: str = ""
    timeout_seconds: float | None = None
    budget: SpawnBudget | None = None


class YieldArgs(msgspec.Struct, frozen=True):
    """Arguments of `sessions_yield`."""

    message: str


@dataclass(frozen=True)
class ToolRules:
    """What decides the tools of one run."""

    depth: int
    max_depth: int
    # Names and patterns that the agent's configuration allows; empty means all.
    agent_tools: Collection[str] = ()
    # Ceiling given by the parent, likewise; empty means none.
    ceiling: Collection[str] = ()
    # Agents that may be spawned, and what each is good for.
    spawnable: Mapping[str, str] = field(default_factory=dict)
    wait_default: bool = True
    # What is said of external coding agents; empty where none may be started.
    coding_agents: str = harnesses.described((), "")

    @property
    def may_delegate(self) -> bool:
        """True where spawning is allowed. Leaves may not delegate."""
        return self.depth < self.max_depth

    def allows(self, name: str) -> bool:
        """Tell whether the agent and the parent's ceiling allow a tool, wherever it is offered."""
        return (not self.agent_tools or matches(name, self.agent_tools)) and (
            not self.ceiling or matches(name, self.ceiling)
        )

    def allows_some(self, pattern: str) -> bool:
        """Tell whether a tool that `pattern` names could be allowed: nobody need be asked else."""
        return (not self.agent_tools or bool(within([pattern], self.agent_tools))) and (
            not self.ceiling or bool(within([pattern], self.ceiling))
        )

    def allowed(self) -> list[str]:
        """Names of the session tools, in a fixed order. Leaves get none."""
        if not self.may_delegate:
            return []
        return [name for name in SESSION_TOOLS if self.allows(name)]


def matches(name: str, patterns: Collection[str]) -> bool:
    """Tell whether one of `patterns` names the tool."""
    return any(
        name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
        for pattern in patterns
    )


def within(names: Collection[str], patterns: Collection[str]) -> list[str]:
    """Keep of `names`, patterns or not, what `patterns` name too, in the order of `names`."""
    kept: list[str] = []
    for name in names:
        if matches(name, patterns):
            kept.append(name)
        elif name.endswith("*"):
            kept += [pattern for pattern in patterns if pattern.startswith(name[:-1])]
    return list(dict.fromkeys(kept))


def ceiling_of(own: Collection[str], above: Collection[str]) -> list[str]:
    """What a child may use at most: what its parent may, by its agent and its own ceiling."""
    if own and above:
        return within(own, above) or [NO_TOOL]
    return list(own or above)


def schemas(rules: ToolRules) -> tuple[ToolSchema, ...]:
    """Describe the tools of a run to a model."""
    every = {SPAWN: _spawn_schema(rules), YIELD: _YIELD_SCHEMA, AGENTS: _AGENTS_SCHEMA}
    return tuple(every[name] for name in rules.allowed())


def read_spawn(arguments: str) -> SpawnArgs:
    """Read the arguments of `sessions_spawn`, as the model wrote them."""
    args = read_arguments(arguments, SpawnArgs)
    if not args.task.strip():
        raise BadArguments("`task` must say what the sub-agent should do")
    if len(args.task.encode()) > TASK_BYTES:
        raise BadArguments(f"`task` must be at most {TASK_BYTES} bytes of UTF-8")
    if args.context == "fork" and args.runtime == "acp":
        raise BadArguments("`context` fork is for runtime subagent: put what it needs into `task`")
    if args.timeout_seconds is not None and not 0 < args.timeout_seconds <= 86_400 * 30:
        raise BadArguments("`timeout_seconds` must be above 0 and at most 2592000")
    budget = args.budget or SpawnBudget()
    if budget.max_tokens is not None and not 1 <= budget.max_tokens <= MOST_TOKENS:
        raise BadArguments(f"`budget.max_tokens` must be 1 to {MOST_TOKENS}")
    if budget.max_cost_usd is not None and not 0 < budget.max_cost_usd <= MOST_USD:
        raise BadArguments(f"`budget.max_cost_usd` must be above 0 and at most {MOST_USD}")
    return args


def read_yield(arguments: str) -> YieldArgs:
    """Read the arguments of `sessions_yield`."""
    args = read_arguments(arguments, YieldArgs)
    if not args.message.strip():
        raise BadArguments("`message` must say something to the customer")
    return args


def label_of(args: SpawnArgs) -> str:
    """Short name of the child: as given, else the start of its task."""
    return excerpt(args.label.strip() or args.task, LABEL_CHARS)


_Shape = TypeVar("_Shape", bound=msgspec.Struct)


def read_arguments(arguments: str, shape: type[_Shape]) -> _Shape:
    """Read a call's arguments, as the model wrote them. Raises `BadArguments`."""
    # Weaker models write "true" for true and null for "leave it": both are meant, both are taken.
    try:
        raw = msgspec.json.decode(arguments or "{}")
    except (msgspec.DecodeError, RecursionError):
        raise BadArguments("the arguments are not valid JSON") from None
    if not isinstance(raw, dict):
        raise BadArguments("the arguments must be a JSON object")
    given = {key: value for key, value in raw.items() if value is not None}
    try:
        return msgspec.convert(given, shape, strict=False)
    except msgspec.ValidationError as err:
        raise BadArguments(str(err)) from None


def _spawn_schema(rules: ToolRules) -> ToolSchema:
    default = "true" if rules.wait_default else "false"
    return ToolSchema(
        SPAWN,
        "Start a sub-agent that works on one task by itself, in parallel with others started in "
        "the same reply. You are allowed to use it whenever work can be split. It starts with an "
        "empty memory, so the task must say everything it needs to know.",
        {
            "type": "object",
            "properties": {
                "task": {"type": "string", "description": "What to do, complete in itself."},
                "label": {"type": "string", "description": "Short name shown to people."},
                "wait": {
                    "type": "boolean",
                    "description": "true: the result comes back as the result of this call. false: "
                    "it runs in the background and the result comes in a later message. "
                    f"Default {default}.",
                },
                "agent_id": {
                    "type": "string",
                    "description": _agents_text(rules.spawnable, rules.coding_agents),
                },
                **(_RUNTIME if rules.coding_agents else {}),
                "model": {"type": "string", "description": "Another model, as provider:model."},
                "context": {
                    "type": "string",
                    "enum": ["isolated", "fork"],
                    "description": "isolated (default), or fork to hand over this conversation, "
                    "to the same agent and if it is not too long.",
                },
                **(_CWD if rules.coding_agents else {}),
                "timeout_seconds": {
                    "type": "number",
                    "description": "Give up on it after this long, waiting included.",
                },
                "budget": {
                    "type": "object",
                    "description": "What it may use, with everything that it starts itself.",
                    "properties": {
                        "max_tokens": {"type": "integer"},
                        "max_cost_usd": {"type": "number"},
                    },
                },
            },
            "required": ["task"],
        },
    )


_RUNTIME = {
    "runtime": {
        "type": "string",
        "enum": ["subagent", "acp"],
        "description": "subagent (default), or acp for an external coding agent, which reads and "
        "changes files and runs commands in its working directory.",
    }
}
_CWD = {
    "cwd": {
        "type": "string",
        "description": "For runtime acp: absolute working directory. Left out, the workspace.",
    }
}


def _agents_text(spawnable: Mapping[str, str], coding_agents: str) -> str:
    """Say which agents there are: a model that must ask for them first seldom does."""
    text = f"Agent to use (see agents_list){f'; {coding_agents}' if coding_agents else ''}."
    if len(spawnable) < 2 and not any(spawnable.values()):
        return text
    known = "; ".join(f"{name}: {about}" if about else name for name, about in spawnable.items())
    return f"{text} Agents: {known}."


_YIELD_SCHEMA = ToolSchema(
    YIELD,
    "End this turn now and let the conversation go on while sub-agents work. Their results come in "
    "a later message. Only useful after sessions_spawn.",
    {
        "type": "object",
        "properties": {
            "message": {
                "type": "string",
                "description": "Sent to the customer at once, for example: I'll get back to you.",
            }
        },
        "required": ["message"],
    },
)

_AGENTS_SCHEMA = ToolSchema(
    AGENTS,
    "List the agents that sessions_spawn can use.",
    {"type": "object", "properties": {}},
)
