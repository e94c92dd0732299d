"""The delegation guard at work in a turn: holds text back, judges replies, takes rungs.

What is caught and what follows is decided in `domain/guard`. Here the facts of the run are
gathered, the steps are stored, and it is told what was done: as events, on the turn's span, and in
the result of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from agent_svc.domain import plan
from agent_svc.domain import steps as s
from agent_svc.domain import tools as t
from agent_svc.domain.guard import ladder
from agent_svc.domain.guard.detect import (
    Facts,
    Instruction,
    asks_to_delegate,
    false_claim,
    speaks_of_agents,
    textual_call,
    verdict,
)
from agent_svc.domain.guard.watch import Screen
from agent_svc.models.base import Model, full_name
from agent_svc.models.catalog import Catalog
from agent_svc.turnevents import caught_text, guard_intervened
from agent_svc.work import Work
from svckit.errors import BudgetExceeded
from svckit.turn import Fail, Outcome

# What is called in words is made a call only for the guard's own subject. A reply may quote what a
# tool read somewhere, and that must start nothing else.
TOOLS = (t.SPAWN, t.YIELD, t.AGENTS)


class Held:
    """The text of one reply on its way to whoever watches."""

    def __init__(self, screen: Screen | None, show: Callable[[str], None]) -> None:
        self._screen = screen
        self._show = show

    def text(self, piece: str) -> None:
        """Show a piece of the reply, or keep it until more is known."""
        if self._screen is not None:
            piece = self._screen.feed(piece)
        if piece:
            self._show(piece)

    def release(self) -> None:
        """Show what was held back."""
        if self._screen is not None and (rest := self._screen.rest()):
            self._show(rest)


class Guard:
    """Watches the turns of one service. Keeps nothing: what it knows is in the steps."""

    def __init__(self, catalog: Catalog, max_model_calls: int) -> None:
        self._catalog = catalog
        self._max_model_calls = max_model_calls

    # Before a model call

    def watches(self, work: Work) -> bool:
        """True when the run's next reply is one to judge: it may delegate, and has not."""
        return (
            work.agent.settings.guard.mode == "on"
            and any(tool.name == t.SPAWN for tool in work.tools)
            and not s.spawned(work.steps)
        )

    def hold(self, work: Work) -> Held:
        """Decide what of the next reply is shown while it is being written."""
        if not self.watches(work):
            return Held(None, work.events.text)
        whole = ladder.pending(work.steps) is not None or _instruction(work) is not None
        return Held(Screen(_facts(work), whole=whole), work.events.text)

    def forced_tool(self, work: Work) -> str:
        """The tool that the next reply must call, if any."""
        rung = ladder.pending(work.steps)
        return t.SPAWN if rung is not None and rung.step == "force_tool" else ""

    def take_over(self, work: Work) -> None:
        """Give the run the stronger model, once the guard has chosen it."""
        name = _fallback(work)
        if name and ladder.fell_back(work.steps):
            # The rung asks that model alone: the weaker one has had its turn. Later calls of the
            # run may go to the others again while it stays away.
            others = [] if ladder.pending(work.steps) else _without(work.models, name)
            work.models = [self._catalog.get(name), *others]

    # After it

    def beside_calls(self, work: Work, text: str) -> str:
        """What is kept of the text beside calls, to be asked before the reply is stored.

        An excuse beside a call would come back as the interim message and in the next prompts, and
        so would what the model answers to the guard's argument.
        """
        if not text or not self.watches(work):
            return text
        argued = ladder.pending(work.steps) is not None
        return "" if argued or false_claim(text, _facts(work)) is not None else text

    def review(self, work: Work, reply: s.Replied) -> s.Guarded | None:
        """Judge the reply that would end the turn; returns the rung to take, if any."""
        if not self.watches(work) or reply.stop_reason == "refusal":
            return None
        if s.guarded(work.steps) and s.guarded(work.steps)[-1].step == "deliver_with_note":
            return None
        facts, instruction = _facts(work, reply.text), _instruction(work)
        found = verdict(reply.text, facts, instruction)
        if found is None:
            return None
        number = s.next_number(work.steps, work.number)
        read = [] if work.over_budget else textual_call(reply.text, facts.tools)
        calls = s.name_calls(work.number, number, (call for call in read if _takes(*call)))
        rung = ladder.next_rung(
            found,
            reply.effective_model,
            calls,
            s.guarded(work.steps),
            self._rungs(work),
        )
        return s.Guarded(
            trigger=found.trigger,
            step=rung,
            model=reply.effective_model,
            excerpt=found.excerpt,
            calls=calls if rung == "parse_call" else (),
            said=ladder.words(rung, found, facts, instruction),
        )

    async def goes_on(self, work: Work, outcome: Outcome) -> bool:
        """Take the next rung when the call that a rung asked for failed; True when there was one.

        The reply that was caught is paid for and may be delivered with a note: the guard never
        makes a run fail. A wait for a limit is no failure.
        """
        rung = ladder.pending(work.steps)
        if rung is None or not isinstance(outcome, Fail):
            return False
        facts, instruction = _facts(work), _instruction(work)
        found = ladder.found_by(rung)
        # A budget that refused this call refuses the next one too.
        refused = isinstance(outcome.error, BudgetExceeded)
        rungs = ladder.Rungs(can_ask=False) if refused else self._rungs(work)
        following = ladder.next_rung(found, rung.model, (), s.guarded(work.steps), rungs)
        said = ladder.words(following, found, facts, instruction)
        await self.intervene(work, msgspec.structs.replace(rung, step=following, said=said))
        return True

    async def intervene(self, work: Work, rung: s.Guarded) -> None:
        """Store a rung and tell of the reply that it is about."""
        await work.add(rung)
        work.spans.guarded(rung)
        work.counts.guarded(rung)
        self.take_over(work)
        await self.tell(work)

    async def tell(self, work: Work, *, ended: bool = False) -> None:
        """Write the events of what is known by now. Each has a fixed id, so repeating is free."""
        if not s.guarded(work.steps):
            return
        events = [
            guard_intervened(work.run_id, taken)
            for taken in ladder.outcomes(work.steps, ended=ended)
        ]
        texts = [
            caught_text(work.run_id, step.turn, step.step, reply.text)
            for step, reply in _caught_replies(work.steps)
        ]
        await work.events.write(*texts, *events)

    def _rungs(self, work: Work) -> ladder.Rungs:
        asked = plan.model_calls(work.steps, work.number)
        return ladder.Rungs(
            can_ask=work.over_budget is None and asked < self._max_model_calls,
            fallback=_fallback(work),
        )


def _fallback(work: Work) -> str:
    """The stronger model; none for a run whose chosen model must answer itself."""
    return "" if work.exact_model else work.agent.settings.guard.fallback_model


def _facts(work: Work, reply: str = "") -> Facts:
    """What is true of the run now. `before` is looked up only for a reply that needs it."""
    budget = work.turn.run.spec.budget
    settings = work.agent.settings.subagents
    return Facts(
        tools=frozenset(tool.name for tool in work.tools if tool.name in TOOLS),
        depth=work.rules.depth,
        max_depth=work.rules.max_depth,
        children=len(s.untold(work.steps)),
        max_children=(
            budget.max_children
            if budget.HasField("max_children")
            else settings.max_children_per_agent
        ),
        started=len(s.spawned(work.steps)),
        budget_exhausted=work.over_budget is not None,
        refused=_refused(work.steps),
        before=speaks_of_agents(reply) and _spoken_before(work),
    )


def _refused(steps: Iterable[s.Step]) -> bool:
    """True when a tool of this run said that nothing was started, or that something may not be."""
    names: dict[str, str] = {}
    for step in steps:
        names.update((call.id, call.name) for call in s.calls_of(step.record))
        record = step.record
        if isinstance(record, s.Returned) and record.failed:
            if names.get(record.call_id) == t.SPAWN:
                return True
            if any(word in record.content for word in ("FORBIDDEN", "BUDGET_EXCEEDED")):
                return True
    return False


def _spoken_before(work: Work) -> bool:
    """True when the conversation, or another run of it, already tells of sub-agents."""
    if any(isinstance(st.record, s.Began) and st.record.working for st in work.steps):
        return True
    return any(
        exchange.kind in ("closing", "note")
        or (exchange.reply is not None and speaks_of_agents(exchange.reply.text))
        for exchange in work.history
    )


def _instruction(work: Work) -> Instruction | None:
    """The instruction to delegate that holds after all that was said to the run."""
    said = [item.message.text for item in work.facts.inputs]
    said += [step.record.message.text for step in work.steps if isinstance(step.record, s.Steered)]
    return asks_to_delegate(*said)


def _takes(name: str, arguments: str) -> bool:
    """True when the tool takes these arguments as they are."""
    try:
        if name == t.SPAWN:
            t.read_spawn(arguments)
        elif name == t.YIELD:
            t.read_yield(arguments)
    except t.BadArguments:
        return False
    return True


def _without(models: Iterable[Model], name: str) -> list[Model]:
    return [model for model in models if full_name(model) != name]


def _caught_replies(steps: list[s.Step]) -> Iterable[tuple[s.Step, s.Replied]]:
    """Replies that were caught and are not delivered."""
    reply: tuple[s.Step, s.Replied] | None = None
    for step in steps:
        if isinstance(step.record, s.Replied):
            reply = (step, step.record)
        elif isinstance(step.record, s.Guarded) and reply is not None:
            if step.record.step != "deliver_with_note" and reply[1].text.strip():
                yield reply
            reply = None
