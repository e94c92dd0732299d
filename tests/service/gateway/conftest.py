"""A gateway in front of a real scheduler."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.service.gateway.suite import Suite, suite


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Suite]:
    async with suite(tmp_path) as around, around.serve():
        yield around
