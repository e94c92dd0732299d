"""The whole suite on PostgreSQL: it starts empty, keeps everything, and outlives the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from conveyor.scheduler.v1 import run_pb2
from conveyor_client import ConveyorClient
from scheduler_svc.store.postgres import PostgresStore
from svckit.errors import ServiceError
from svckit.postgres import PostgresAddress
from svckit.testing import eventually
from svckit.testing.postgres import PostgresServer, postgres_server
from tests.history import assert_holds, of_store
from tests.system.harness import (
    SUCCEEDED,
    Suite,
    chat,
    nothing_unfinished,
    replies,
    run_where,
    running,
)

# Two of each at a time, so that several turns are in each state whenever the server goes.
LOAD = 6
DELEGATED = "[[spawn: [[sleep: 700ms]] [[reply: one]]]] [[spawn: [[sleep: 200ms]] [[reply: two]]]]"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as started:
        yield started


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory, server: PostgresServer) -> Iterator[Suite]:
    url = server.create_database()
    with running(tmp_path_factory.mktemp("postgres"), store=url) as started:
        yield started


@pytest.fixture
async def client(suite: Suite) -> AsyncIterator[ConveyorClient]:
    async with suite.client() as open_client:
        yield open_client
        await nothing_unfinished(open_client)


async def test_a_delegated_answer_is_there_after_everything_was_restarted(
    suite: Suite, server: PostgresServer, session: str
) -> None:
    async with suite.client() as client:
        told = await chat(client, DELEGATED, session_key=session)
    assert told.ended.state == SUCCEEDED
    before = await suite.events(session)
    await asyncio.to_thread(suite.stop)
    await asyncio.to_thread(server.restart, "fast")
    await asyncio.to_thread(suite.start)
    assert await suite.events(session) == before
    async with suite.client() as client:
        page = await client.messages(session)
        assert [message.message_id for message in page.messages][-1] == f"{told.run_id}-2"
        again = await chat(client, "[[reply: after]]", session_key=session)
        assert again.answer == "after"
        assert [s.session_key for s in (await client.sessions()).sessions] == [session]
    assert not (suite.directory / "data").exists()


async def send(client: ConveyorClient, text: str, session: str, request: str) -> str:
    """Send until it is accepted, as a careful sender does: with the same request id."""

    async def accepted() -> str:
        try:
            sent = await client.send(text, session_key=session, request_id=request)
        except ServiceError as err:
            if err.reason not in ("STORE_UNAVAILABLE", "SERVICE_UNREACHABLE", "NOT_LEADER"):
                raise
            return ""
        return sent.accepted.run.run_id

    return await eventually(accepted, timeout=50, interval=0.2)


@pytest.mark.timeout(150)
async def test_the_server_goes_and_comes_back_under_load(
    suite: Suite, client: ConveyorClient, server: PostgresServer, session: str
) -> None:
    pids = suite.pids()
    answered = 0

    async def customer(number: int) -> None:
        nonlocal answered
        key = f"{session}-{number}"
        for n in range(3):
            run_id = await send(client, DELEGATED, key, f"{key}-{n}")
            run = await run_where(client, run_id, SUCCEEDED, within=100)
            assert run.spec.session_key == key
            answered += 1

    async with asyncio.TaskGroup() as customers:
        for number in range(LOAD):
            customers.create_task(customer(number))
        await eventually(lambda: answered >= 2, timeout=60)
        await asyncio.to_thread(server.stop, "immediate")
        await asyncio.sleep(1.0)  # long enough that every service has tried to reach it
        await asyncio.to_thread(server.start)
    assert answered == 3 * LOAD
    # Nothing lost, nothing done twice, nobody had to be started again.
    assert suite.pids() == pids
    for number in range(LOAD):
        key = f"{session}-{number}"
        assert len(replies(await suite.events(key))) == 3
        runs = (await client.runs(run_pb2.RunFilter(session_key=key))).runs
        assert [run.state for run in runs] == [SUCCEEDED] * 3
    store = PostgresStore(PostgresAddress.parse(server.url("test_1")))
    await store.acquire()
    try:
        assert_holds(await of_store(store))
    finally:
        await store.close()
