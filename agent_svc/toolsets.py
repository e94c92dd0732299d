"""Where tools come from: the seam between a turn and everything that offers it tools.

`Tooling` starts sub-agents and yields by itself. Every other tool belongs to a toolset, which is
asked at the start of every attempt what it offers to that run, and runs the calls to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from agent_svc.agents import Agent
from agent_svc.domain import steps as s
from agent_svc.domain.prompt import ToolSchema
from agent_svc.domain.tools import ToolRules
from conveyor.scheduler.v1 import run_pb2

if TYPE_CHECKING:
    from agent_svc.work import Work


@dataclass(frozen=True)
class Note:
    """Something that people should learn: told once per turn and `code` and `about`, as an event.

    `text` is one sentence for people, without anything secret. `about` tells notes of one code
    apart, for example the id of a server. `warns` when somebody may want to act.
    """

    code: str
    about: str
    text: str
    warns: bool = True


@dataclass(frozen=True)
class Offering:
    """The run that tools are offered to.

    A toolset adds to `notes` what people should learn, and to `missing` what the model is told when
    it calls a tool that is not to be had now, by name or by a pattern that ends in `*`.
    """

    run: run_pb2.Run
    agent: Agent
    rules: ToolRules
    notes: list[Note] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


class Toolset(Protocol):
    """Tools of one origin."""

    @property
    def names(self) -> Sequence[str]:
        """Names of what it may offer, known without asking anybody; may end in `*`."""
        ...

    @property
    def delegates(self) -> bool:
        """True for tools that exist only where spawning is allowed: leaves are not offered them."""
        ...

    async def offer(self, who: Offering) -> Sequence[ToolSchema]:
        """Describe the tools for one run.

        Those that the run's rules do not allow, or a person denied, are left out by the caller.
        Never raises: what is out of order offers nothing and says why in a note.
        """
        ...

    async def run(self, work: Work, call: s.ToolCall) -> s.Returned:
        """Run one call of a tool that was offered, and that was allowed if it had to be.

        What goes wrong is the failed result. Only `LeaseLost` and cancellation are raised.
        """
        ...
