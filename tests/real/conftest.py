"""One model for all, one suite for each agent."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harnesses.modelserver import ModelServer, serving
from tests.harnesses.processes import Tracker
from tests.real.agents import Place, placed
from tests.system.harness import Suite, running

TOML = """\
[acp]
workspace_roots = ["{workspace}"]
"""


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


@pytest.fixture(scope="module")
def place(request: pytest.FixtureRequest, model: ModelServer) -> Iterator[Place]:
    """Where the agent of the module lives: the one that it calls `AGENT`."""
    with placed(request.module.AGENT, model) as place:
        yield place


@pytest.fixture(scope="module")
def suite(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """The whole suite; nothing of the agent is left when it has stopped."""
    toml = TOML.format(workspace=place.workspace) + place.toml
    environ = {"PATH": place.agent.path}
    with running(tmp_path_factory.mktemp("suite"), toml, environ=environ) as suite:
        yield suite
    assert not Tracker(place.home).alive()
