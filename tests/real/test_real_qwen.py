"""Qwen Code: see `scenarios`."""

from __future__ import annotations

from tests.real.agents import QWEN as AGENT
from tests.real.scenarios import Scenarios

__all__ = ["AGENT"]


class TestQwen(Scenarios):
    """Every scenario."""
