"""One model for all, one suite for each agent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harnesses.modelserver import ModelServer, serving


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/real/" in item.nodeid:
            item.add_marker(pytest.mark.real)
            # Real programs start and stop many times in each.
            item.add_marker(pytest.mark.timeout(240))


@pytest.fixture(scope="module")
def model() -> Iterator[ModelServer]:
    """What the agents take for their vendor."""
    with serving() as server:
        yield server
