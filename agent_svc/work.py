"""One attempt of a turn, while it is at work."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from agent_svc.agents import Agent
from agent_svc.counts import Counts
from agent_svc.domain import steps as s
from agent_svc.domain import tools as t
from agent_svc.domain.compaction import Summary, replaced
from agent_svc.domain.prompt import ToolSchema
from agent_svc.domain.render import Exchange, RunFacts
from agent_svc.models.base import Model
from agent_svc.spans import TurnSpans
from agent_svc.store.transcripts import Transcripts
from agent_svc.toolsets import Note, Toolset
from agent_svc.turnevents import noted
from conveyor.agent.v1 import task_pb2 as task_pb
from svckit.clock import Clock
from svckit.errors import ServiceError
from svckit.eventwriter import EventWriter
from svckit.turn import LeasedTurn


@dataclass
class Work:
    """One attempt, while it is at work."""

    turn: LeasedTurn
    agent: Agent
    task: task_pb.AgentTask
    models: Sequence[Model]
    tools: Sequence[ToolSchema]
    rules: t.ToolRules
    facts: RunFacts
    steps: list[s.Step]
    history: list[Exchange]
    events: EventWriter
    spans: TurnSpans
    system: str
    store: Transcripts
    clock: Clock
    # Which toolset runs a tool, by the tool's name.
    owners: Mapping[str, Toolset] = field(default_factory=dict)
    # Tools that need a person's word before each call.
    asks: Collection[str] = ()
    # What the model is told about tools that it may not use, by name or pattern.
    refused: Mapping[str, str] = field(default_factory=dict)
    # What the turn has summarised of the conversation, in this attempt or an earlier one.
    summaries: list[Summary] = field(default_factory=list)
    # Outputs of tools are shown with at most so many characters, when the prompt grew too long.
    longest_output: int | None = None
    counts: Counts = field(default_factory=Counts)
    # A grant that the turn resumed with is for the first model call of the attempt.
    first_call: bool = True
    # Set when a report said that a budget is used up.
    over_budget: ServiceError | None = field(default=None)

    @property
    def run_id(self) -> str:
        """The run."""
        return self.turn.run.run_id

    @property
    def requested_model(self) -> str:
        """The model that the run or its agent asks for, whichever answers in the end."""
        return self.task.model or self.agent.settings.model

    @property
    def exact_model(self) -> bool:
        """True when the run's own choice of a model must be served by exactly that model."""
        return self.agent.settings.strict_model and bool(self.task.model)

    @property
    def number(self) -> int:
        """The turn, counted from 1."""
        return self.turn.turn

    async def note(self, note: Note) -> None:
        """Tell people something. Raises `LeaseLost`."""
        await self.events.write(noted(self.run_id, self.number, note))

    async def add(self, *records: s.Record) -> int:
        """Store the next steps of the turn; returns the number of the first. Raises `LeaseLost`."""
        first = s.next_number(self.steps, self.number)
        token = self.turn.leased.lease.fencing_token
        now = self.clock.now_us()
        await self.store.add_steps(self.run_id, token, self.number, first, records, now)
        self.counts.stored(records)
        self.steps.extend(
            s.Step(self.number, number, record) for number, record in enumerate(records, first)
        )
        return first

    async def add_summary(self, summary: Summary) -> None:
        """Store a summary and go on with it. Raises `LeaseLost`."""
        spec, token = self.turn.run.spec, self.turn.leased.lease.fencing_token
        now = self.clock.now_us()
        await self.store.add_summary(spec.session_key, spec.session_epoch, token, summary, now)
        self.summaries.append(summary)
        self.history = replaced(self.history, summary)

    def taken(self) -> list[str]:
        """Request ids of the steered messages that this turn took."""
        return s.taken_in(self.steps, self.number)
