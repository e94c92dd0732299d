"""Makes prompts fit the context of the model that is asked, by what `domain.compaction` plans.

A summary is a model call like any other: reserved, reported, counted and stored before anything
builds on it, so that a crash does not pay for it twice. It is made by the turn that needs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent_svc.calling import Bill, Caller, NoAnswer
from agent_svc.domain import compaction, estimate
from agent_svc.domain.compaction import CutOutputs, Room, Summarise, Summary
from agent_svc.domain.prompt import Prompt
from agent_svc.domain.render import render
from agent_svc.domain.steps import Step
from agent_svc.models.base import full_name
from agent_svc.toolsets import Note
from agent_svc.windows import Windows
from agent_svc.work import Work
from svckit import conventions as c
from svckit.errors import ModelRejected, TurnFailed
from svckit.turn import Fail

CODE = "context_compacted"
SMALLER = 0.5
"""Of what the provider refused as too long: estimates were wrong, so by a good margin."""


@dataclass(frozen=True)
class _Shown:
    prompt: Prompt
    size: int


class Compactor:
    """Builds the prompts of turns so that they fit."""

    def __init__(self, caller: Caller, windows: Windows) -> None:
        self._caller = caller
        self._windows = windows

    async def prompt(self, work: Work, force_tool: str = "") -> Prompt:
        """Build the prompt of the next model call; summarises first where that is due.

        `force_tool` is the tool that the model has to call, empty for none. Raises `NoAnswer` when
        the turn ends over a summary.
        """
        room = await self._room(work)
        return (await self._fit(work, room, force_tool)).prompt

    async def shorter(self, work: Work, refused: Prompt) -> Prompt:
        """Build a prompt again that the provider called too long.

        Raises `NoAnswer`, with a failure that names it, when nothing can be left out.
        """
        room = await self._room(work)
        size = estimate.expected(refused).read
        # Whatever was believed: its context is smaller than this prompt.
        room = Room(min(room.window, size), min(room.limit, int(size * SMALLER)))
        smaller = await self._fit(work, room, refused.force_tool)
        if smaller.size >= size:
            raise too_long(work)
        return smaller.prompt

    async def tell_again(self, work: Work) -> None:
        """Report and tell what earlier attempts of the turn have summarised."""
        for summary in work.summaries:
            await self._tell(work, summary)

    async def _room(self, work: Work) -> Room:
        share = work.agent.settings.context.compact_at
        window = await self._windows.of(full_name(work.models[0]))
        # Without a share of its own a prompt grows until the provider refuses it.
        return Room.of(window, share or 1_000)

    async def _fit(self, work: Work, room: Room, force_tool: str) -> _Shown:
        while True:
            steps = compaction.with_cut_outputs(work.steps, work.longest_output)
            shown = self._render(work, steps, force_tool)
            todo = compaction.plan(shown.size, work.history, work.run_id, steps, room)
            match todo:
                case Summarise():
                    await self._summarise(work, todo, room)
                case CutOutputs(longest):
                    work.longest_output = longest
                case None:
                    return shown

    def _render(self, work: Work, steps: Sequence[Step], force_tool: str) -> _Shown:
        prompt = render(
            system=work.system,
            history=work.history,
            run=work.facts,
            steps=steps,
            tools=work.tools,
            force_tool=force_tool,
        )
        return _Shown(prompt, estimate.expected(prompt).read)

    async def _summarise(self, work: Work, todo: Summarise, room: Room) -> None:
        had = sum(1 for exchange in todo.exchanges if exchange.kind != "summary")
        text, bill = await self._ask(work, todo, room)
        summary = Summary(work.run_id, work.number, todo.covers, had, text)
        if bill is not None:
            summary = Summary(
                work.run_id,
                work.number,
                todo.covers,
                had,
                text,
                bill.requested_model,
                bill.effective_model,
                bill.usage,
                bill.reservation,
            )
        await work.add_summary(summary)
        work.spans.event(c.EVENT_COMPACTED, {c.COMPACTED_EXCHANGES: summary.exchanges})
        await self._tell(work, summary)
        if work.over_budget is not None:
            raise NoAnswer(Fail(work.over_budget, retryable=False, taken=work.taken()))

    async def _ask(self, work: Work, todo: Summarise, room: Room) -> tuple[str, Bill | None]:
        """Let the model write the summary. One that refuses to does not end the turn."""
        call = Summary(work.run_id, work.number, todo.covers, 0, "").call
        try:
            answer = await self._caller.ask(
                work, call, compaction.prompt(todo, room), lambda _: None
            )
        except NoAnswer as end:
            if end.failed is None or not isinstance(end.failed.error, ModelRejected):
                raise
            return compaction.quoted(todo), None
        return compaction.tidy(answer.reply.text, todo), answer.bill

    async def _tell(self, work: Work, summary: Summary) -> None:
        if summary.effective_model:
            bill = Bill(
                summary.requested_model,
                summary.effective_model,
                summary.usage,
                summary.reservation,
            )
            await self._caller.report(work, summary.call, bill)
        many = summary.exchanges != 1
        text = (
            f"The conversation grew long: {summary.exchanges} older exchange{'s' if many else ''} "
            f"{'are' if many else 'is'} now given to the model as a summary."
        )
        await work.note(Note(CODE, str(summary.covers), text, warns=False))


def too_long(work: Work) -> NoAnswer:
    """How a turn ends whose own work is longer than its model can read."""
    model = full_name(work.models[0])
    error = TurnFailed(
        f"what this run has read and done no longer fits in the context of {model}; ask for less "
        "at once, or use a model that reads more",
        metadata={"cause": "context"},
    )
    return NoAnswer(Fail(error, retryable=False, taken=work.taken()))
