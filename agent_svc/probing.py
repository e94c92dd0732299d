"""Measures how well a model delegates: asks the published prompts as a root turn would, and judges.

A probe has no run: it takes its turn in the line of the provider like everybody (see `Outside`),
and nothing that it asks starts anything. Several prompts are asked at once. A provider that fails
several times in a row, or refuses for a reason that no other prompt will change, ends the probe.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass
from importlib.resources import files

from opentelemetry import trace

from agent_svc.agents import Agent
from agent_svc.domain import harnesses
from agent_svc.domain import steps as s
from agent_svc.domain import tools as t
from agent_svc.domain.content import excerpt
from agent_svc.domain.guard import detect
from agent_svc.domain.probe import promptset, scoring
from agent_svc.domain.probe.promptset import ProbePrompt, PromptSet, Tier
from agent_svc.domain.probe.verdict import Outcome, Report, judge
from agent_svc.domain.prompt import Answered, Prompt, PromptMessage, Said, ToolAnswer, ToolSchema
from agent_svc.models import asking
from agent_svc.models.base import CallFailed, Model, ModelReply
from agent_svc.models.catalog import Catalog
from agent_svc.outside import Outside
from agent_svc.spans import ModelCalls
from agent_svc.store.probes import ProbeReports
from agent_svc.toolsets import Offering, Toolset
from conveyor.scheduler.v1 import run_pb2
from svckit import conventions as c
from svckit.clock import Clock
from svckit.errors import ModelUnavailable, ServiceError
from svckit.settings_model import DEFAULT_AGENT, AgentSettings

AT_ONCE = 4
"""Prompts asked at the same time."""
FEW = 4
"""Provider errors in a row that end a probe."""
TRIES = 2
"""Times that a call is made while its provider is in trouble."""
EXCERPT_CHARS = 512
HOPELESS = frozenset({"auth", "quota", "not_found", "not_set_up"})
"""Causes that the next prompt meets too."""


@dataclass(frozen=True)
class Tried:
    """One prompt was tried. `error` is set for a provider error."""

    prompt: ProbePrompt
    repetition: int
    outcome: Outcome
    asked: int
    seconds: float
    excerpt: str
    usage: s.Usage
    calls: int
    unpriced: int
    error: ServiceError | None = None


@dataclass(frozen=True)
class Plan:
    """What a probe will do: its model, and every try in order."""

    name: str
    model: Model
    tries: tuple[tuple[ProbePrompt, int], ...]
    complete: bool


def published() -> PromptSet:
    """The prompts that come with this build."""
    return promptset.read((files("agent_svc.domain.probe") / "prompts.toml").read_text("utf-8"))


class Prober:
    """Probes models. Each probe is independent of the others."""

    def __init__(
        self,
        catalog: Catalog,
        outside: Outside,
        reports: ProbeReports,
        toolsets: Sequence[Toolset],
        clock: Clock,
        tracer: trace.Tracer,
        at_once: int = AT_ONCE,
    ) -> None:
        self._catalog = catalog
        self._outside = outside
        self._reports = reports
        self._toolsets = toolsets
        self._clock = clock
        self._tracer = tracer
        self._at_once = at_once
        self._set = published()

    def plan(self, name: str, tiers: Collection[Tier], repetitions: int) -> Plan:
        """What a probe of a model will do; no tiers mean all. Raises `ModelNotFound`."""
        wanted = frozenset(tiers or promptset.TIERS)
        tries = tuple(
            (prompt, repetition)
            for repetition in range(1, repetitions + 1)
            for prompt in self._set.of(wanted)
        )
        return Plan(name, self._catalog.get(name), tries, wanted == frozenset(promptset.TIERS))

    async def probe(self, plan: Plan) -> AsyncGenerator[Tried | Report, None]:
        """Yield each try as it ends, then the report. Leave it with `aclosing`.

        The report of a complete probe is stored just before it is yielded. Raises
        `ModelUnavailable` or `ModelRejected` when the provider ended it: then nothing is stored.
        """
        tools = await self._tools()
        waiting = list(reversed(plan.tries))
        done: asyncio.Queue[Tried | BaseException] = asyncio.Queue()

        async def work() -> None:
            try:
                while waiting:
                    prompt, repetition = waiting.pop()
                    done.put_nowait(await self._try(plan.model, prompt, repetition, tools))
            except Exception as err:
                done.put_nowait(err)

        workers = [asyncio.create_task(work(), name="probe") for _ in range(self._at_once)]
        tried: list[Tried] = []
        # Until somebody answers, failures say only that the provider is away: then the error that
        # ends the probe is all there is to tell.
        held: list[Tried] = []
        answered = False
        failing = 0
        try:
            for _ in plan.tries:
                item = await done.get()
                if isinstance(item, BaseException):
                    raise item
                tried.append(item)
                failing = failing + 1 if item.error is not None else 0
                if item.error is not None and self._is_over(item.error, failing, tried, plan):
                    raise self._told(plan, item.error)
                answered = answered or item.error is None
                if not answered:
                    held.append(item)
                    continue
                for one in held:
                    yield one
                held = []
                yield item
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        report = self._report(plan, tried)
        if plan.complete:
            await self._reports.save(report)
        yield report

    def _is_over(
        self, error: ServiceError, failing: int, tried: Sequence[Tried], plan: Plan
    ) -> bool:
        if failing >= FEW or error.metadata.get("cause") in HOPELESS:
            return True
        return len(tried) == len(plan.tries) and all(one.error is not None for one in tried)

    def _told(self, plan: Plan, error: ServiceError) -> ServiceError:
        """The error that ends a probe: which provider, and where."""
        where = self._catalog.base_url(plan.name)
        at = f" at {where}" if where else ""
        told = type(error)(
            f"probe of {plan.name}{at} stopped: {error.message}",
            metadata=error.metadata,
            retry_after=error.retry_after,
        )
        return told

    async def _tools(self) -> tuple[ToolSchema, ...]:
        """What a root turn is offered: every tool for delegating, as with the default settings."""
        agent = _agent()
        who = Offering(run=run_pb2.Run(), agent=agent, rules=_rules(agent))
        tools = {tool.name: tool for tool in t.schemas(who.rules)}
        for toolset in self._toolsets:
            if toolset.delegates:
                for tool in await toolset.offer(who):
                    tools.setdefault(tool.name, tool)
        return tuple(tools.values())

    async def _try(
        self, model: Model, prompt: ProbePrompt, repetition: int, tools: Sequence[ToolSchema]
    ) -> Tried:
        names = frozenset(tool.name for tool in tools)
        messages: list[PromptMessage] = [Said(prompt.text)]
        talk = _Talk(self._outside, self._clock, model, self._tracer, prompt.id)
        forced = t.SPAWN if prompt.tier == "forced" else ""
        agent = _agent()
        system = agent.system_prompt(depth=0, may_delegate=True)
        try:
            for step in range(1, scoring.STEPS + 1):
                reply = await talk.ask(Prompt(system, messages, tools, force_tool=forced))
                if step == scoring.STEPS or not scoring.looks_around(reply.calls, names):
                    break
                messages.extend(_answered(step, reply))
        except (CallFailed, ModelUnavailable) as failed:
            # The latter: the line of the provider was too long.
            error = failed.error if isinstance(failed, CallFailed) else failed
            return talk.tried(prompt, repetition, "provider_error", error=error)
        made = scoring.spawns(
            reply.calls, names, scoring.Offer(agent.spawnable, self._catalog.knows)
        )
        found = scoring.outcome(prompt, made, _read(reply, names))
        return talk.tried(prompt, repetition, found, asked=made.valid, text=reply.text)

    def _report(self, plan: Plan, tried: Sequence[Tried]) -> Report:
        judged = judge((one.prompt.tier, one.outcome) for one in tried)
        costs = [one.usage.cost for one in tried if one.usage.cost is not None]
        return Report(
            model=plan.name,
            base_url=self._catalog.base_url(plan.name),
            prompt_set=self._set.version,
            verdict=judged.verdict,
            explanation=judged.explanation,
            figures=judged.figures,
            scores=judged.scores,
            provider_errors=judged.provider_errors,
            usage=s.Usage(
                read=sum(one.usage.read for one in tried),
                cached=sum(one.usage.cached for one in tried),
                written=sum(one.usage.written for one in tried),
                cost=sum(costs),
            ),
            calls=sum(one.calls for one in tried),
            unpriced=sum(one.unpriced for one in tried),
            ended_us=self._clock.now_us(),
        )


class _Talk:
    """The model calls of one try, and what they took."""

    def __init__(
        self, outside: Outside, clock: Clock, model: Model, tracer: trace.Tracer, name: str
    ) -> None:
        self._outside = outside
        self._clock = clock
        self._model = model
        self._tracer = tracer
        self._name = name
        self._seconds = 0.0
        self._calls = 0
        self._unpriced = 0
        self.usage = s.Usage(cost=0)

    async def ask(self, prompt: Prompt) -> ModelReply:
        """Ask once more. Raises `CallFailed`."""
        line = self._outside.line(prompt)
        begun = self._clock.now_us()

        async def take(model: Model) -> str:
            nonlocal begun
            reservation = await line.take(model)
            begun = self._clock.now_us()  # waiting for a limit is no slowness of the model
            return reservation

        try:
            with ModelCalls(self._tracer, {c.PROBE_PROMPT: self._name}, prompt) as watch:
                asked = await asking.ask(
                    [self._model],
                    prompt,
                    _ignore,
                    clock=self._clock,
                    take=take,
                    on_failure=line.failed,
                    watch=watch,
                    tries=TRIES,
                )
        finally:
            self._seconds += (self._clock.now_us() - begun) / 1e6
        cost = await line.answered(self._model, asked.reply.usage, asked.reservation_id)
        used = asked.reply.usage
        self._calls += 1
        self._unpriced += cost is None
        self.usage = s.Usage(
            read=self.usage.read + used.read,
            cached=self.usage.cached + used.cached,
            written=self.usage.written + used.written,
            cost=(self.usage.cost or 0) + (cost or 0),
        )
        return asked.reply

    def tried(
        self,
        prompt: ProbePrompt,
        repetition: int,
        outcome: Outcome,
        *,
        asked: int = 0,
        text: str = "",
        error: ServiceError | None = None,
    ) -> Tried:
        """What came of the try."""
        return Tried(
            prompt=prompt,
            repetition=repetition,
            outcome=outcome,
            asked=asked,
            seconds=self._seconds,
            excerpt=excerpt(text, EXCERPT_CHARS),
            usage=self.usage,
            calls=self._calls,
            unpriced=self._unpriced,
            error=error,
        )


def _agent() -> Agent:
    """A root agent with the default settings: a verdict is about the model, not about a prompt."""
    coding_agents = harnesses.described((), "")
    return Agent(DEFAULT_AGENT, AgentSettings(), {DEFAULT_AGENT: ""}, coding_agents=coding_agents)


def _rules(agent: Agent) -> t.ToolRules:
    return agent.tool_rules(depth=0, max_depth=agent.settings.subagents.max_spawn_depth, ceiling=())


def _answered(step: int, reply: ModelReply) -> list[PromptMessage]:
    """A reply that looked around, and what it saw: an agent, and nothing at work."""
    calls = s.name_calls(1, step, reply.calls)
    seen = {t.AGENTS: f"{DEFAULT_AGENT}: model of this agent"}
    return [
        Answered(reply.text, calls),
        *(ToolAnswer(call.id, call.name, seen.get(call.name, "Nothing yet.")) for call in calls),
    ]


def _read(reply: ModelReply, names: frozenset[str]) -> scoring.Reading:
    """What the detectors of the guard say about a text."""
    facts = detect.Facts(tools=names)
    return scoring.Reading(
        textual_call=bool(detect.textual_call(reply.text, names)),
        false_claim=detect.false_claim(reply.text, facts) is not None,
        invented_result=detect.invented_result(reply.text, facts) is not None,
    )


def _ignore(_: str) -> None:
    """Nobody reads a probe while it is written."""
