"""Short ways to write steps and prompts."""

from __future__ import annotations

from collections.abc import Sequence

from agent_svc.domain import steps as s
from agent_svc.domain.content import Input, text_message
from agent_svc.domain.prompt import Prompt, Said
from agent_svc.domain.render import Exchange, RunFacts, render
from agent_svc.domain.tools import ToolRules, schemas

TOOLS = schemas(ToolRules(depth=0, max_depth=1))


def asked(text: str, request_id: str = "q1") -> Input:
    return Input(request_id, text_message(f"m-{request_id}", "user", text))


def numbered(turn: int, *records: s.Record) -> list[s.Step]:
    return [s.Step(turn, number, record) for number, record in enumerate(records, start=1)]


def reply(turn: int, step: int, text: str = "", *tools: str) -> s.Replied:
    return s.Replied(text, s.name_calls(turn, step, [(tool, "{}") for tool in tools]))


def told(run_id: str, call_id: str, text: str = "found", status: str = "succeeded") -> s.ToldChild:
    return s.ToldChild(run_id, call_id, status, label=run_id, text=text)


def prompt_of(
    steps: Sequence[s.Step],
    *,
    turn: int = 1,
    inputs: Sequence[Input] = (asked("hello"),),
    history: Sequence[Exchange] = (),
) -> Prompt:
    facts = RunFacts("R", turn, tuple(inputs))
    return render(system="sys", history=history, run=facts, steps=steps, tools=TOOLS)


def says(text: str, *, delegating: bool = True) -> Prompt:
    return Prompt("sys", [Said(text)], TOOLS if delegating else ())
