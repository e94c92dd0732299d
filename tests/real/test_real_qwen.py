"""See `scenarios`."""

from __future__ import annotations

from tests.real.agents import QWEN
from tests.real.scenarios import Scenarios


class TestQwen(Scenarios):
    agent = QWEN
