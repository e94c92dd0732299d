"""The tools with which a run looks at its conversation and its sub-agents, and steers them."""

from __future__ import annotations

from typing import Literal

import msgspec

from agent_svc.domain.prompt import ToolSchema
from agent_svc.domain.tools import BadArguments, read_arguments

SUBAGENTS = "subagents"
LIST = "sessions_list"
HISTORY = "sessions_history"
SEND = "sessions_send"
NAMES = (SUBAGENTS, LIST, HISTORY, SEND)

MESSAGE_CHARS = 8_000
ROWS = 20
MOST_ROWS = 50

Action = Literal["list", "info", "log", "steer", "send", "kill"]


class SubagentsArgs(msgspec.Struct, frozen=True):
    """Arguments of `subagents`."""

    action: Action = "list"
    target: str = ""
    message: str = ""
    limit: int = ROWS


class ListArgs(msgspec.Struct, frozen=True):
    """Arguments of `sessions_list`."""

    live: bool = False
    limit: int = ROWS


class HistoryArgs(msgspec.Struct, frozen=True):
    """Arguments of `sessions_history`. `offset` counts the newest messages to leave out."""

    session: str = "own"
    limit: int = ROWS
    offset: int = 0
    include_tools: bool = False


class SendArgs(msgspec.Struct, frozen=True):
    """Arguments of `sessions_send`."""

    session: str
    message: str


def read_subagents(arguments: str) -> SubagentsArgs:
    """Read the arguments of `subagents`."""
    args = read_arguments(arguments, SubagentsArgs)
    _check_limit(args.limit)
    if args.action != "list" and not args.target.strip():
        raise BadArguments(
            f"`target` must say which sub-agent to {args.action}: its number, label or run id"
        )
    if args.action in ("steer", "send"):
        _check_message(args.message)
    return args


def read_list(arguments: str) -> ListArgs:
    """Read the arguments of `sessions_list`."""
    args = read_arguments(arguments, ListArgs)
    _check_limit(args.limit)
    return args


def read_history(arguments: str) -> HistoryArgs:
    """Read the arguments of `sessions_history`."""
    args = read_arguments(arguments, HistoryArgs)
    _check_limit(args.limit)
    if not 0 <= args.offset <= 1_000_000:
        raise BadArguments("`offset` must be 0 to 1000000")
    return args


def read_send(arguments: str) -> SendArgs:
    """Read the arguments of `sessions_send`."""
    args = read_arguments(arguments, SendArgs)
    if not args.session.strip():
        raise BadArguments("`session` must say which session: see sessions_list")
    _check_message(args.message)
    return args


def _check_limit(limit: int) -> None:
    if not 1 <= limit <= MOST_ROWS:
        raise BadArguments(f"`limit` must be 1 to {MOST_ROWS}")


def _check_message(message: str) -> None:
    if not message.strip():
        raise BadArguments("`message` must say something")
    if len(message) > MESSAGE_CHARS:
        raise BadArguments(f"`message` must be at most {MESSAGE_CHARS} characters")


def _limit(what: str) -> dict[str, object]:
    return {
        "type": "integer",
        "minimum": 1,
        "maximum": MOST_ROWS,
        "description": f"Most {what}, {ROWS} by default.",
    }


SCHEMAS = (
    ToolSchema(
        SUBAGENTS,
        "Look at the sub-agents of this conversation, and control them: list (with state, model, "
        "time, tokens and cost), info, log, steer (change what one does), send (tell one "
        "something), kill. There is no need to poll: results come by themselves.",
        {
            "type": "object",
            "properties": {
                "action": {
                    "type": "string",
                    "enum": ["list", "info", "log", "steer", "send", "kill"],
                    "description": "list by default.",
                },
                "target": {
                    "type": "string",
                    "description": "Number from list, label, or run id; for steer, send and kill "
                    "also all.",
                },
                "message": {"type": "string", "description": "For steer and send."},
                "limit": _limit("rows of list or lines of log"),
            },
            "required": ["action"],
        },
    ),
    ToolSchema(
        LIST,
        "List the sessions you may look at: this conversation and those of its sub-agents.",
        {
            "type": "object",
            "properties": {
                "live": {"type": "boolean", "description": "true: only those still at work."},
                "limit": _limit("sessions"),
            },
        },
    ),
    ToolSchema(
        HISTORY,
        "Read messages of this conversation or of a sub-agent's session, the newest ones.",
        {
            "type": "object",
            "properties": {
                "session": {
                    "type": "string",
                    "description": "own (default), or a sub-agent: run id, label or number.",
                },
                "limit": _limit("messages"),
                "offset": {
                    "type": "integer",
                    "minimum": 0,
                    "description": "Leaves out this many of the newest, to read further back.",
                },
                "include_tools": {
                    "type": "boolean",
                    "description": "true: a sub-agent's tool calls too.",
                },
            },
        },
    ),
    ToolSchema(
        SEND,
        "Send a message to a sub-agent that is at work. It takes it at its next step; this call "
        "does not wait for an answer.",
        {
            "type": "object",
            "properties": {
                "session": {
                    "type": "string",
                    "description": "Run id, label or number of the sub-agent.",
                },
                "message": {"type": "string", "description": "What to say."},
            },
            "required": ["session", "message"],
        },
    ),
)
