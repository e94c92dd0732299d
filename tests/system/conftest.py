"""One suite for the tests that only use it; those that break or configure one start their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from conveyor_client import ConveyorClient
from tests.system.harness import (
    Suite,
    free_addresses,
    nothing_unfinished,
    running,
    scripted_harness,
)
from tests.system.provider import Provider, provider_thread


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/system/" in item.nodeid:
            item.add_marker(pytest.mark.system)
            # For the start of a suite too, on a machine that is busy with other things.
            item.add_marker(pytest.mark.timeout(180))


@pytest.fixture(scope="package")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    directory = tmp_path_factory.mktemp("suite")
    metrics = dict(zip(("gateway", "scheduler", "agent", "acp"), free_addresses(4), strict=True))
    table = "\n".join(f'{service} = "{address}"' for service, address in metrics.items())
    with running(directory, f"{scripted_harness(directory)}\n[metrics]\n{table}\n") as suite:
        suite.metrics = metrics
        yield suite


@pytest.fixture
def suite(shared: Suite) -> Suite:
    """A suite with the configuration that everybody has. Others use it too: name own sessions."""
    return shared


@pytest.fixture
async def client(suite: Suite) -> AsyncIterator[ConveyorClient]:
    """A client of the suite. Fails the test that leaves unfinished runs behind."""
    async with suite.client() as open_client:
        yield open_client
        await nothing_unfinished(open_client)


@pytest.fixture(scope="module")
def serving() -> Iterator[Provider]:
    """A model provider that the suite of a module asks."""
    with provider_thread() as provider:
        yield provider


@pytest.fixture
def provider(serving: Provider) -> Iterator[Provider]:
    """The module's provider, new to each test, which must never have to refuse a prompt."""
    serving.reset()
    yield serving
    serving.fake.assert_clean()


@pytest.fixture
def session(request: pytest.FixtureRequest) -> str:
    """The key of a session that no other test uses."""
    return f"agent:main:http:direct:{request.node.name.replace(' ', '-')[:100]}"
