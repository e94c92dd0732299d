"""An agent made with Deep Agents: see `scenarios`."""

from __future__ import annotations

from tests.real.agents import DEEPAGENTS as AGENT
from tests.real.scenarios import Scenarios

__all__ = ["AGENT"]


class TestDeepAgents(Scenarios):
    """Every scenario."""
