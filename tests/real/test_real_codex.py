"""See `scenarios`."""

from __future__ import annotations

from tests.real.agents import CODEX
from tests.real.scenarios import Scenarios


class TestCodex(Scenarios):
    agent = CODEX
