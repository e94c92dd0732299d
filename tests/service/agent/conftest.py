"""The agent service in process, against a scheduler and a provider that do what the test says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from opentelemetry import trace

from agent_svc.app import build
from conveyor.agent.v1 import agent_service_pb2_grpc as agent_grpc
from svckit.settings import load
from svckit.testing import in_process
from svckit.testing.fake_openai import FakeOpenAI
from svckit.testing.inprocess import InProcess
from svckit.testing.scripted import scripted_server
from tests.service.agent.fake_scheduler import FakeScheduler

StartAgent = Callable[..., AbstractAsyncContextManager[InProcess]]


@pytest.fixture
async def scheduler() -> AsyncIterator[FakeScheduler]:
    fake = FakeScheduler()
    async with scripted_server(*fake.servicers) as (address, _):
        fake.address = address  # type: ignore[attr-defined]
        yield fake


@pytest.fixture
async def provider() -> AsyncIterator[FakeOpenAI]:
    async with FakeOpenAI() as fake:
        yield fake
        fake.assert_clean()


@pytest.fixture
def start_agent(scheduler: FakeScheduler, tmp_path: Path) -> StartAgent:
    @asynccontextmanager
    async def start(toml: str = "", tracer: trace.Tracer | None = None) -> AsyncIterator[InProcess]:
        config = tmp_path / "conveyor.toml"
        config.write_text(
            f'[services]\nscheduler = "{scheduler.address}"\n'  # type: ignore[attr-defined]
            f'acp = "{scheduler.address}"\n'  # type: ignore[attr-defined]
            f'[store]\nurl = "sqlite:///{tmp_path}/data"\n{toml}'
        )
        async with in_process(build, load(config, {}), tracer=tracer) as service:
            yield service

    return start


@pytest.fixture
async def agent(start_agent: StartAgent) -> AsyncIterator[InProcess]:
    async with start_agent() as service:
        yield service


@pytest.fixture
def stub(agent: InProcess) -> agent_grpc.AgentServiceStub:
    return agent_grpc.AgentServiceStub(agent.channel)
