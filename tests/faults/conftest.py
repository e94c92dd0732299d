"""Faults break suites, so each module, or test, starts its own."""

from __future__ import annotations

import pytest

from tests.system.conftest import provider, serving, session

__all__ = ["provider", "serving", "session"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/faults/" in item.nodeid:
            item.add_marker(pytest.mark.system)
            # For the start of a suite too, on a machine that is busy with other things.
            item.add_marker(pytest.mark.timeout(180))
