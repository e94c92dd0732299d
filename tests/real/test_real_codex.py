"""Codex: see `scenarios`."""

from __future__ import annotations

from tests.real.agents import CODEX as AGENT
from tests.real.scenarios import Scenarios

__all__ = ["AGENT"]


class TestCodex(Scenarios):
    """Every scenario."""
