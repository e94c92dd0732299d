"""What every test stands on: no leaked tasks, no fields left in logs, a clean environment."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path

import pytest
import structlog
from hypothesis import settings

from svckit.testing.postgres import PostgresMissing, PostgresServer, postgres_server

# How long an example takes says something about the machine, not about the code: each test has a
# timeout, and what has to be quick is measured.
settings.register_profile("conveyor", deadline=None)
settings.load_profile("conveyor")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Nothing of what is imported and collected is garbage: it is not looked through."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of the developer's shell must not change what a test sees."""
    for variable in os.environ:
        if variable.startswith("CONVEYOR_"):
            monkeypatch.delenv(variable)


@pytest.fixture(autouse=True)
def _stop_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody watches the health of a test's services: their stop need not wait to be seen."""
    monkeypatch.setattr("svckit.service.SEEN_SECONDS", 0.0)


@pytest.fixture(autouse=True)
def _clean_log_fields() -> Iterator[None]:
    yield
    structlog.contextvars.clear_contextvars()


@pytest.fixture(autouse=True)
async def _no_leaked_tasks() -> AsyncIterator[None]:
    """A test that leaves a task behind fails: in a service it would be a task nobody awaits."""
    before = asyncio.all_tasks()
    yield
    for _ in range(50):
        # Done callbacks and closing transports take a few turns of the loop.
        left = {t for t in asyncio.all_tasks() - before if not _is_library(t)}
        if not left:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"tasks left behind: {sorted(t.get_name() for t in left)}: {left}")


def _is_library(task: asyncio.Task[object]) -> bool:
    """Tasks of grpc.aio and of pytest-asyncio's runner end by themselves."""
    code = getattr(task.get_coro(), "cr_code", None)
    filename = code.co_filename if code is not None else ""
    return task is asyncio.current_task() or "/grpc/" in filename or not filename.endswith(".py")


@pytest.fixture(scope="session")
def _postgres() -> Iterator[PostgresServer]:
    try:
        with postgres_server() as server:
            yield server
    except PostgresMissing as err:
        pytest.skip(str(err))


@pytest.fixture
def postgres(_postgres: PostgresServer) -> PostgresServer:
    """The PostgreSQL server that all tests share. Stop one of your own, not this one."""
    return _postgres


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """The address of an empty database."""
    with postgres.database() as url:
        yield url


@pytest.fixture(scope="session")
def _breakable_postgres(_postgres: PostgresServer) -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture
def breakable_postgres(_breakable_postgres: PostgresServer) -> Iterator[PostgresServer]:
    """A PostgreSQL server to stop and kill; it runs when the test begins."""
    server = _breakable_postgres
    if not server.running:
        server.start()
    yield server
    if not server.running:
        server.start()


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a service may keep its data, for `Database.open`: an SQLite file, and PostgreSQL."""
    if request.param == "postgres":
        return str(request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path}/deep/down/service.db"
