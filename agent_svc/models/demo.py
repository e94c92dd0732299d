"""Runs the demo planners as models: waits on the clock and streams word by word."""

from __future__ import annotations

import re
from collections.abc import Callable

from agent_svc.domain import demo
from agent_svc.domain.prompt import Prompt
from agent_svc.domain.steps import Usage
from agent_svc.models.base import CallFailed, ModelReply
from svckit.clock import Clock
from svckit.errors import TurnFailed

_WORDS = re.compile(r"\S+\s*|\s+")
PLANNERS: dict[str, Callable[[Prompt], demo.DemoReply]] = {
    "demo": demo.demo,
    "demo-weak": demo.demo_weak,
}


class DemoModel:
    """`demo` or `demo-weak`: deterministic and offline. See `agent_svc.domain.demo`."""

    provider_id = "demo"
    provider_kind = "demo"

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self._plan = PLANNERS[name]
        self._clock = clock

    async def prepare(self) -> None:
        """Nothing to load."""

    async def ask(self, prompt: Prompt, on_text: Callable[[str], None]) -> ModelReply:
        """Do what the message says. Fails only when told to."""
        reply = self._plan(prompt)
        if reply.sleep_seconds:
            await self._clock.sleep(reply.sleep_seconds)
        if reply.failure:
            error = TurnFailed(reply.failure, metadata={"cause": "task"})
            raise CallFailed(error, outcome="rejected")
        for piece in _WORDS.findall(reply.text):
            on_text(piece)
        read, written = demo.count_words(prompt, reply)
        return ModelReply(reply.text, reply.calls, Usage(read=read, written=written))
