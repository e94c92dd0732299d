"""What people call values of the contract, the same in chats and in the command line."""

from __future__ import annotations

from conveyor.agent.v1 import probe_pb2
from conveyor.common.v1 import question_pb2

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
