"""What people call values of the contract, the same in chats and in the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator

from conveyor.acp.v1 import session_pb2
from conveyor.agent.v1 import probe_pb2
from conveyor.common.v1 import question_pb2
from svckit.words import count

_LINE = 100
_FILES = ("--- ", "+++ ")
_HUNK = re.compile(r"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")

VERDICTS = {
    probe_pb2.PROBE_VERDICT_ORCHESTRATOR: "orchestrator",
    probe_pb2.PROBE_VERDICT_NEEDS_INSISTING: "needs-insisting",
    probe_pb2.PROBE_VERDICT_LEAF_ONLY: "leaf-only",
}
"""What a probe found a model to be."""

_COMMANDS = (
    (question_pb2.QUESTION_OPTION_KIND_ALLOW_ONCE, "/approve {number}"),
    (question_pb2.QUESTION_OPTION_KIND_ALLOW_ALWAYS, "/approve {number} always"),
    (question_pb2.QUESTION_OPTION_KIND_REJECT_ONCE, "/deny {number}"),
    (question_pb2.QUESTION_OPTION_KIND_REJECT_ALWAYS, "/deny {number} always"),
)


def answering_commands(question: question_pb2.Question) -> list[str]:
    """Return the slash commands that answer a question, for the options that have one."""
    kinds = {option.kind for option in question.options}
    return [text.format(number=question.number) for kind, text in _COMMANDS if kind in kinds]


PERMISSION_MODES = {
    "approve-reads": session_pb2.PERMISSION_MODE_APPROVE_READS,
    "approve-all": session_pb2.PERMISSION_MODE_APPROVE_ALL,
    "deny-all": session_pb2.PERMISSION_MODE_DENY_ALL,
    "ask": session_pb2.PERMISSION_MODE_ASK,
}
"""What happens when a harness asks for permission."""

SESSION_MODES = {
    "persistent": session_pb2.ACP_SESSION_MODE_PERSISTENT,
    "oneshot": session_pb2.ACP_SESSION_MODE_ONESHOT,
}
"""How long an ACP session lives."""

SESSION_STATES = {
    session_pb2.ACP_SESSION_STATE_STARTING: "starting",
    session_pb2.ACP_SESSION_STATE_READY: "ready",
    session_pb2.ACP_SESSION_STATE_BUSY: "working",
    session_pb2.ACP_SESSION_STATE_ASKING: "waits for an answer",
    session_pb2.ACP_SESSION_STATE_PARKED: "parked",
    session_pb2.ACP_SESSION_STATE_CLOSING: "closing",
    session_pb2.ACP_SESSION_STATE_CLOSED: "closed",
    session_pb2.ACP_SESSION_STATE_FAILED: "failed",
}
"""Where an ACP session is in its life."""


def _changes(diff: str) -> Iterator[str]:
    """Yield the lines of a unified diff without its heads.

    Within a hunk nothing is a head, whatever it looks like: a line that is left out here is allowed
    by people who never saw it.
    """
    old = new = 0
    for line in diff.split("\n"):
        if old > 0 or new > 0:
            old -= line[:1] in (" ", "-")
            new -= line[:1] in (" ", "+")
            yield line
        elif hunk := _HUNK.match(line):
            old, new = (int(lines or 1) for lines in hunk.groups())
        elif line.startswith("@@"):
            old = new = len(diff)  # what follows was not compared: it is content to the end
            yield line
        elif line and not line.startswith(_FILES):
            yield line


def asked_for(question: question_pb2.Question, most_lines: int = 12) -> list[str]:
    """Return what a harness would do if it were allowed: a command line, or lines of a diff.

    Empty for questions that say everything in their title, and cut where it is long.
    """
    if not question.acp_session_id:
        return []
    arguments = dict(question.arguments.items())
    command, diff = arguments.get("command"), arguments.get("diff")
    lines: list[str] = []
    if isinstance(command, str):
        lines = [f"$ {line}" for line in command.splitlines() if line.strip()]
    elif isinstance(diff, str):
        lines = list(_changes(diff))
    shown = [line if len(line) <= _LINE else line[: _LINE - 1] + "…" for line in lines[:most_lines]]
    left = len(lines) - len(shown)
    return [*shown, f"… {count(left, 'more line')}"] if left else shown
