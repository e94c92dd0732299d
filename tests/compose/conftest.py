"""Without an engine for containers these tests are skipped, and say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compose.stack import EngineMissing, find_engine

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """They take minutes, and only `make compose-test` asks for them."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.compose)
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def engine() -> None:
    """There is an engine."""
    try:
        find_engine()
    except EngineMissing as err:
        pytest.skip(str(err))
