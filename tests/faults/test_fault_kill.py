"""`kill -9` of a service while a request is under way: it completes, once, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import httpx
import pytest

from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import run_pb2
from conveyor_client import ConveyorClient
from svckit.testing import eventually
from tests.system.harness import (
    CLASSIC,
    MODULES,
    SUCCEEDED,
    TERMINAL,
    Chat,
    Suite,
    chat,
    flow_where,
    nothing_unfinished,
    payloads,
    replies,
    run_where,
    running,
    sse,
)

LEASE_SECONDS = 15.0
NAMES = ("market", "rivals", "draft")
DELEGATED = " ".join(f"[[spawn: [[sleep: 800ms]] [[reply: {name} done]]]]" for name in NAMES)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    with running(tmp_path_factory.mktemp("killed")) as started:
        yield started


@pytest.fixture
async def client(suite: Suite) -> AsyncIterator[ConveyorClient]:
    async with suite.client() as open_client:
        yield open_client
        await nothing_unfinished(open_client)


async def root_of(client: ConveyorClient, session: str) -> str:
    """Wait for the first run of a session."""

    async def look() -> str:
        runs = (await client.runs(run_pb2.RunFilter(session_key=session))).runs
        return runs[-1].run_id if runs else ""

    return await eventually(look, timeout=60)


async def check_once(suite: Suite, client: ConveyorClient, told: Chat) -> None:
    """One answer of three children, each spawned and told once, and logs without gap or repeat."""
    assert told.ended.state == SUCCEEDED
    flow = await client.flow(told.run_id)
    assert [node.state for node in flow.nodes] == [SUCCEEDED] * 4
    root, *children = flow.nodes
    log = await suite.events(root.spec.session_key)  # which looks for gaps and repeated ids
    mine = [event for event in log if event.flow_id == told.run_id]
    assert len(payloads(mine, "child_spawned")) == 3
    announced = [item.announcement.announcement_id for item in payloads(mine, "child_announced")]
    assert sorted(announced) == sorted(child.run_id for child in children)
    (reply,) = replies(mine)
    assert reply == told.answer
    assert [f"{name} done" in reply for name in NAMES] == [True] * 3
    ends = [c for c in payloads(mine, "run_state_changed") if c.state in TERMINAL]
    assert len(ends) == 1
    inputs = [
        m for m in payloads(mine, "message_completed") if m.kind == event_pb2.MESSAGE_KIND_INPUT
    ]
    assert len(inputs) == 1
    calls = [item.tool_call_id for item in payloads(mine, "tool_call_started")]
    assert len(calls) == len(set(calls)) == 3
    for child in children:
        own = await suite.events(child.spec.session_key)
        assert len(replies(own)) == 1
        assert len([c for c in payloads(own, "run_state_changed") if c.state in TERMINAL]) == 1
    # The client saw the same, once, in order.
    seen = [event.sequence for event in told.events]
    assert seen == [event.sequence for event in log if event.sequence in set(seen)]
    assert len(payloads(told.events, "child_announced")) == 3
    assert replies(told.events) == [reply]


async def until_back(suite: Suite, service: str, after: int) -> None:
    """Wait until the supervisor says that the service is healthy again."""
    await eventually(
        lambda: any(f"{service} is back after" in line for line in suite.lines[after:]), timeout=40
    )


@pytest.mark.parametrize("service", list(MODULES))
async def test_a_service_is_killed_while_children_work(
    suite: Suite, client: ConveyorClient, session: str, service: str
) -> None:
    chatting = asyncio.create_task(chat(client, DELEGATED, session_key=session))
    run_id = await root_of(client, session)
    await flow_where(client, run_id, suspended=1, running=3)
    # Accepted a moment before: must not be lost either.
    sent = await client.send("[[reply: kept]]", session_key=f"{session}-beside")
    before, began = len(suite.lines), time.monotonic()
    suite.kill(service)
    told = await chatting
    took = time.monotonic() - began
    assert took < LEASE_SECONDS, "resumed in seconds, not after a lease"
    await check_once(suite, client, told)
    await run_where(client, sent.accepted.run.run_id, SUCCEEDED)
    assert replies(await suite.events(f"{session}-beside")) == ["kept"]
    await until_back(suite, service, before)


@pytest.mark.parametrize("service", ["scheduler", "agent", "gateway"])
async def test_a_service_is_killed_right_after_it_accepted(
    suite: Suite, client: ConveyorClient, session: str, service: str
) -> None:
    """The first turn may be anywhere: before its lease, in its model call, while it spawns."""
    before = len(suite.lines)
    sent = await client.send(DELEGATED, session_key=session, request_id=session[-60:])
    suite.kill(service)
    # The same request again joins the run that was accepted.
    told = await chat(client, DELEGATED, session_key=session, request_id=session[-60:])
    assert told.run_id == sent.accepted.run.run_id
    await check_once(suite, client, told)
    await until_back(suite, service, before)


async def test_all_services_are_killed_one_after_the_other(
    suite: Suite, client: ConveyorClient, session: str
) -> None:
    chatting = asyncio.create_task(chat(client, DELEGATED, session_key=session))
    run_id = await root_of(client, session)
    await flow_where(client, run_id, suspended=1, running=3)
    before = len(suite.lines)
    for service in ("agent", "scheduler", "gateway", "acp"):
        suite.kill(service)
    told = await chatting
    await check_once(suite, client, told)
    for service in MODULES:
        await until_back(suite, service, before)


async def test_messages_that_are_being_accepted_while_the_scheduler_dies_are_kept_once(
    suite: Suite, client: ConveyorClient, session: str
) -> None:
    """Whatever was answered is there, and what was repeated for lack of an answer is there once."""
    before = len(suite.lines)
    sending = [
        asyncio.create_task(
            client.send(
                f"[[reply: {n}]]",
                session_key=f"{session}-{n % 4}",
                request_id=f"{session[-40:]}{n}",
            )
        )
        for n in range(24)
    ]
    await asyncio.wait(sending, return_when=asyncio.FIRST_COMPLETED)
    suite.kill("scheduler")
    runs = [(await task).accepted.run.run_id for task in sending]
    assert len(set(runs)) == 24
    for run_id in runs:
        await run_where(client, run_id, SUCCEEDED)
    answers = [a for n in range(4) for a in replies(await suite.events(f"{session}-{n}"))]
    assert sorted(answers, key=int) == [str(n) for n in range(24)]
    await until_back(suite, "scheduler", before)


async def test_a_reader_of_server_sent_events_goes_on_behind_a_killed_gateway(
    suite: Suite, client: ConveyorClient, session: str
) -> None:
    before = len(suite.lines)
    run_id = (await client.send(DELEGATED, session_key=session)).accepted.run.run_id
    last, seen, killed = "", [], False
    async with httpx.AsyncClient(base_url=suite.http, timeout=60) as http:
        while not seen or "RUN_STATE_SUCCEEDED" not in str(seen[-1]):
            with contextlib.suppress(httpx.TransportError):
                async for item in read_sse(http, session, last):
                    last = item.get("id", last)
                    if item["event"] != "event":
                        continue
                    seen.append(json.loads(item["data"])["event"])
                    if len(payload_names(seen, "child_spawned")) == 3 and not killed:
                        suite.kill("gateway")
                        killed = True
                    if "RUN_STATE_SUCCEEDED" in str(seen[-1].get("run_state_changed")):
                        break
            if killed:
                await until_back(suite, "gateway", before)
    assert [int(event["sequence"]) for event in seen] == list(range(1, len(seen) + 1))
    assert len(payload_names(seen, "child_announced")) == 3
    await run_where(client, run_id, SUCCEEDED)


async def read_sse(
    http: httpx.AsyncClient, session: str, last: str
) -> AsyncIterator[Mapping[str, str]]:
    """Yield what the events of a session are, behind the id `last`."""
    headers = {"Last-Event-ID": last} if last else {}
    async with (
        http.stream("GET", f"/v1/sessions/{session}/events", headers=headers) as response,
        sse(response.aiter_lines()) as items,
    ):
        async for item in items:
            if "event" in item:
                yield item


def payload_names(events: list[dict[str, Any]], name: str) -> list[Any]:
    return [event[name] for event in events if name in event]


async def test_ten_requests_at_once_outlive_three_kills(
    suite: Suite, client: ConveyorClient, session: str
) -> None:
    """Two per customer, so that order is at stake too."""
    before = len(suite.lines)
    keys = [f"{session}-{n % 5}" for n in range(10)]
    known = {run.run_id for run in (await client.runs(page_size=500)).runs}
    chatting = [asyncio.create_task(chat(client, CLASSIC, session_key=key)) for key in keys]

    async def started(runs: int) -> bool:
        now = {run.run_id for run in (await client.runs(page_size=500)).runs}
        return len(now - known) >= runs

    for service, runs in (("agent", 3), ("scheduler", 12), ("gateway", 24)):
        await eventually(lambda wanted=runs: started(wanted), timeout=60)
        suite.kill(service)
    told = [await task for task in chatting]
    assert len({each.run_id for each in told}) == 10
    for each, key in zip(told, keys, strict=True):
        log = await suite.events(key)
        mine = [event for event in log if event.flow_id == each.run_id]
        assert len(replies(mine)) == 1
        assert len(payloads(mine, "child_announced")) == 3
        assert [event.sequence for event in each.events] == [event.sequence for event in mine]
    for key in set(keys):
        check_one_at_a_time(await suite.events(key))
    for service in ("agent", "scheduler", "gateway"):
        await until_back(suite, service, before)


def check_one_at_a_time(log: list[event_pb2.Event]) -> None:
    """Runs of one session, none of which gives its lane back, follow each other."""
    holder = ""
    for event in log:
        if event.WhichOneof("payload") != "run_state_changed":
            continue
        state = event.run_state_changed.state
        if state == run_pb2.RUN_STATE_RUNNING:
            assert holder in ("", event.run_id)
            holder = event.run_id
        elif state in TERMINAL:
            holder = ""
