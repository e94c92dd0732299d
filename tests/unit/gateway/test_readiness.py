"""What `/readyz` says while a part of the suite says nothing."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from gateway_svc.http import health
from svckit.database import Database
from svckit.errors import StoreUnavailable


class HangingDatabase:
    """Answers when it is let go, with an error first."""

    def __init__(self) -> None:
        self.go, self.asked = asyncio.Event(), 0

    async def run(self, _: Any) -> None:
        self.asked += 1
        await self.go.wait()
        if self.asked == 1:
            raise StoreUnavailable("PostgreSQL does not answer or takes no writes now")


async def test_a_database_that_hangs_does_not_hold_up_the_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It took 20 seconds, and each question stood in line before the work."""
    monkeypatch.setattr(health, "CHECK_SECONDS", 0.01)
    database = HangingDatabase()
    readiness = health.Readiness(cast("Database", database), {}, asyncio.Event())
    assert await readiness.parts() == {"store": "unavailable"}
    assert await readiness.parts() == {"store": "unavailable"}
    assert database.asked == 1
    # Its error comes when nobody waits for it; the next question is a new one.
    database.go.set()
    monkeypatch.setattr(health, "CHECK_SECONDS", 60)
    assert await readiness.parts() == {"store": "ok"}
    assert database.asked == 2
