"""See `scenarios`."""

from __future__ import annotations

from tests.real.agents import DEEPAGENTS_AGENT
from tests.real.scenarios import Scenarios


class TestDeepAgents(Scenarios):
    agent = DEEPAGENTS_AGENT
