"""Which tool calls need a person's word, and what people said.

A rule is `allow`, `ask` or `deny`. What was asked is a question of the run with four possible
answers; a question that nobody answers in time is denied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from agent_svc.domain import steps as s

Rule = Literal["allow", "ask", "deny"]
OptionKind = Literal["allow_once", "allow_always", "reject_once", "reject_always"]

MOST_QUESTIONS = 32
"""Questions that one wait may name."""


@dataclass(frozen=True)
class Option:
    """One possible answer to a question."""

    option_id: str
    name: str
    kind: OptionKind


OPTIONS = (
    Option("allow", "Allow once", "allow_once"),
    Option("allow-always", "Allow for the rest of this conversation", "allow_always"),
    Option("deny", "Deny", "reject_once"),
    Option("deny-always", "Deny for the rest of this conversation", "reject_always"),
)
DEFAULT_OPTION = "deny"
"""Taken when nobody answers in time."""


@dataclass(frozen=True)
class Verdict:
    """What came of one question. `by` is empty when nobody answered in time."""

    allowed: bool
    always: bool = False
    by: str = ""

    @property
    def refusal(self) -> str:
        """What the model is told about a call that was denied."""
        if not self.by:
            return (
                "Not run: it needs a person's approval, and nobody gave it in time. Do not call it "
                "again for the same purpose unless you are asked to."
            )
        scope = " for the rest of this conversation" if self.always else ""
        return f"Not run: denied{scope} by {self.by}. Do not look for a way around it."


def question_id(run_id: str, call_id: str) -> str:
    """Name the question about a call: a turn that is tried again asks it once."""
    return f"{run_id}/{call_id}"


def rule_of(tool: str, own: Rule, overrides: Mapping[str, Rule]) -> Rule:
    """Find the rule of a tool: its own, unless the agent has another for it.

    `overrides` are by name or by a pattern that ends in `*`; the longest that fits counts.
    """
    fitting = [
        name
        for name in overrides
        if name == tool or (name.endswith("*") and tool.startswith(name[:-1]))
    ]
    return overrides[max(fitting, key=lambda name: (name == tool, len(name)))] if fitting else own


def verdicts(steps: Sequence[s.Step]) -> dict[str, Verdict]:
    """What people said about the calls of a run, by call id. Open questions are left out."""
    answers = {
        answer.question_id: answer
        for step in steps
        if isinstance(step.record, s.Began)
        for answer in step.record.answers
    }
    kinds = {option.option_id: option.kind for option in OPTIONS}
    found: dict[str, Verdict] = {}
    for step in steps:
        if isinstance(step.record, s.Asked) and (answer := answers.get(step.record.question_id)):
            # An option that was never offered allows nothing.
            kind = kinds.get(answer.option_id, "reject_once")
            always = kind.endswith("always")
            found[step.record.call_id] = Verdict(kind.startswith("allow"), always, answer.responder)
    return found


def standing_answers(steps: Sequence[s.Step], turn: int) -> dict[str, Rule]:
    """What the answers that `turn` began with say for the rest of the conversation, by tool."""
    names = {call.id: call.name for step in steps for call in s.calls_of(step.record)}
    fresh = {
        answer.question_id
        for step in steps
        if step.turn == turn and isinstance(step.record, s.Began)
        for answer in step.record.answers
    }
    asked = {
        step.record.call_id
        for step in steps
        if isinstance(step.record, s.Asked) and step.record.question_id in fresh
    }
    return {
        names[call_id]: "allow" if verdict.allowed else "deny"
        for call_id, verdict in verdicts(steps).items()
        if verdict.always and call_id in asked and call_id in names
    }
