"""See `scenarios`."""

from __future__ import annotations

from tests.real.agents import CLAUDE
from tests.real.scenarios import Scenarios


class TestClaude(Scenarios):
    agent = CLAUDE
