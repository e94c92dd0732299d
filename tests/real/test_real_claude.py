"""Claude Code: see `scenarios`."""

from __future__ import annotations

from tests.real.agents import CLAUDE as AGENT
from tests.real.scenarios import Scenarios

__all__ = ["AGENT"]


class TestClaude(Scenarios):
    """Every scenario."""
