"""What all tests with harness processes share."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _short_ladder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that stay when their input is closed, or that have children, are many here."""
    monkeypatch.setattr("svckit.programs.CLOSED_SECONDS", 0.1)
    monkeypatch.setattr("svckit.programs.TERMINATED_SECONDS", 0.1)
