from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

import conveyor_client
from conveyor.agent.v1 import agent_service_pb2 as agent_pb
from conveyor.gateway.v1 import gateway_service_pb2 as gateway_pb
from conveyor.scheduler.v1 import announcement_pb2, flow_service_pb2, run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as scheduler_pb
from conveyor_client import ConveyorClient, Patience
from svckit.errors import (
    AcpBackendUnavailable,
    LaneFull,
    NotImplementedYet,
    NotLeader,
    RunNotFound,
    ShuttingDown,
    StoreUnavailable,
    Unreachable,
)
from svckit.testing import ScriptedServicer, eventually, scripted_server

from .conftest import GATEWAY, Gateway
from .items import accepted, announced, ended, replied

QUICK = Patience(first=1.0, later=2.0, longest_pause=0.05)


def test_the_public_face_is_sorted_and_complete() -> None:
    assert conveyor_client.__all__ == sorted(conveyor_client.__all__)
    for name in conveyor_client.__all__:
        assert getattr(conveyor_client, name).__doc__
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = conveyor_client.nothing_like_it


async def test_a_message_is_sent_once_with_an_id(gateway: Gateway) -> None:
    gateway.script.always(
        "SendMessage", gateway_pb.SendMessageResponse(accepted=accepted().accepted)
    )
    async with ConveyorClient(gateway.address, token="secret") as client:
        answer = await client.send("hello", session_key="s", labels={"a": "b"})
    assert answer.accepted.run.run_id == "R"
    (request,) = gateway.script.calls["SendMessage"]
    assert request.request_id
    assert request.inbound.session_key == "s"
    assert request.inbound.labels == {"a": "b"}
    assert request.inbound.message.parts[0].text == "hello"


async def test_errors_are_those_of_the_table(gateway: Gateway) -> None:
    full = LaneFull("50 messages wait", metadata={"cap": "50"}, retry_after=3.0)
    gateway.script.queue("SendMessage", full)
    gateway.script.queue("GetRun", RunNotFound("there is no such run", metadata={"runId": "x"}))
    async with ConveyorClient(gateway.address, patience=QUICK) as client:
        with pytest.raises(LaneFull) as caught:
            await client.send("hello")
        assert caught.value.metadata == {"cap": "50"}
        assert caught.value.retry_after == 3.0
        with pytest.raises(RunNotFound):
            await client.run("x")


async def test_what_may_be_repeated_is_repeated_with_the_same_id(gateway: Gateway) -> None:
    gateway.script.queue("SendMessage", *[StoreUnavailable("full", retry_after=0.01)] * 3)
    gateway.script.always("SendMessage", gateway_pb.SendMessageResponse())
    async with ConveyorClient(gateway.address, patience=QUICK) as client:
        await client.send("hello")
    calls = gateway.script.calls["SendMessage"]
    assert len(calls) >= 4
    assert len({call.request_id for call in calls}) == 1


async def test_a_harness_that_does_not_start_is_said_at_once(gateway: Gateway) -> None:
    gateway.script.always("SpawnAcpSession", AcpBackendUnavailable("no", retry_after=5))
    async with ConveyorClient(gateway.address, patience=QUICK) as client:
        with pytest.raises(AcpBackendUnavailable):
            await client.acp_spawn()
    assert len(gateway.script.calls["SpawnAcpSession"]) == 1


async def test_patience_ends(gateway: Gateway) -> None:
    gateway.script.always("ListRuns", NotLeader("an election is on", metadata={"leader": ""}))
    patience = Patience(first=1.0, later=0.3, longest_pause=0.05)
    async with ConveyorClient(gateway.address, patience=patience) as client:
        with pytest.raises(NotLeader):
            await client.runs()
    assert len(gateway.script.calls["ListRuns"]) > 2


async def test_the_doctor_is_called_once_only(gateway: Gateway) -> None:
    gateway.script.always("AcpDoctor", StoreUnavailable("no"))
    async with ConveyorClient(gateway.address, patience=QUICK) as client:
        with pytest.raises(StoreUnavailable):
            await client.doctor()
    assert len(gateway.script.calls["AcpDoctor"]) == 1


async def test_a_suite_that_does_not_run_is_said_soon() -> None:
    began = time.monotonic()
    async with ConveyorClient("127.0.0.1:1", patience=Patience(first=0.2)) as client:
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1 does not answer"):
            await client.runs()
    assert time.monotonic() - began < 10


async def test_a_standby_names_its_leader_and_is_followed(gateway: Gateway) -> None:
    leader = ScriptedServicer(GATEWAY)
    leader.always("ListRuns", scheduler_pb.ListRunsResponse(next_page_token="leader"))
    async with scripted_server(leader) as (address, _):
        gateway.script.queue("ListRuns", NotLeader("an election is on", metadata={"leader": ""}))
        gateway.script.queue("ListRuns", NotLeader("ask there", metadata={"leader": address}))
        async with ConveyorClient(gateway.address, patience=QUICK) as client:
            assert (await client.runs()).next_page_token == "leader"
            assert (await client.runs()).next_page_token == "leader"
    assert len(gateway.script.calls["ListRuns"]) == 2


async def test_a_leader_that_is_no_gateway_sends_us_back(gateway: Gateway) -> None:
    async with scripted_server() as (address, _):
        gateway.script.queue("ListRuns", NotLeader("ask there", metadata={"leader": address}))
        gateway.script.always("ListRuns", scheduler_pb.ListRunsResponse(next_page_token="home"))
        async with ConveyorClient(gateway.address, patience=QUICK) as client:
            assert (await client.runs()).next_page_token == "home"


async def test_what_is_not_implemented_is_said_and_not_repeated(gateway: Gateway) -> None:
    gateway.script.always(
        "ExplainRun", NotImplementedYet("not in this release", metadata={"feature": "ExplainRun"})
    )
    async with ConveyorClient(gateway.address, patience=QUICK) as client:
        with pytest.raises(NotImplementedYet, match="not in this release"):
            await client.explain("R")
    assert len(gateway.script.calls["ExplainRun"]) == 1


async def test_a_chat_survives_broken_streams_and_repeats_nothing(gateway: Gateway) -> None:
    async def breaks(request: gateway_pb.ChatRequest) -> AsyncIterator[gateway_pb.ChatResponse]:
        yield accepted()
        yield announced("one", 1)
        raise ShuttingDown("the server drains")

    gateway.script.queue(
        "Chat",
        breaks,
        # Ends well before the end: means "reconnect". Repeats one event, at least once is allowed.
        [accepted(), announced("one", 1), announced("two", 2)],
        [accepted(), replied("both done", 3), ended()],
    )
    async with ConveyorClient(gateway.address, patience=QUICK) as client:
        items = [item async for item in client.chat("do two things", request_id="id-1")]
    assert [item.WhichOneof("message") for item in items] == [
        "accepted",
        "event",
        "event",
        "event",
        "ended",
    ]
    calls = gateway.script.calls["Chat"]
    assert [call.resume_token for call in calls] == ["", "t1", "t2"]
    assert {call.request_id for call in calls} == {"id-1"}
    assert {call.inbound.message.parts[0].text for call in calls} == {"do two things"}


async def test_a_chat_goes_on_in_another_process(gateway: Gateway) -> None:
    gateway.script.queue("Chat", [accepted(), replied("done", 3), ended()])
    async with ConveyorClient(gateway.address, patience=QUICK) as client:
        stream = client.chat("text", request_id="id-1", resume_token="t2")
        assert len([item async for item in stream]) == 3
    assert gateway.script.calls["Chat"][0].resume_token == "t2"


async def test_leaving_a_chat_ends_its_call(gateway: Gateway) -> None:
    left = asyncio.Event()

    async def endless(request: gateway_pb.ChatRequest) -> AsyncIterator[gateway_pb.ChatResponse]:
        try:
            yield accepted()
            await asyncio.Event().wait()
        finally:
            left.set()

    gateway.script.queue("Chat", endless)
    async with ConveyorClient(gateway.address) as client:
        async with aclosing(client.chat("text")) as stream:
            async for _ in stream:
                break
        await asyncio.wait_for(left.wait(), 30)


async def test_a_chat_that_is_refused_raises(gateway: Gateway) -> None:
    gateway.script.queue("Chat", LaneFull("50 messages wait"))
    async with ConveyorClient(gateway.address, patience=QUICK) as client:
        with pytest.raises(LaneFull):
            async for _ in client.chat("text"):
                pass


async def test_a_stream_that_always_ends_at_once_is_given_up(gateway: Gateway) -> None:
    gateway.script.always("Chat", [])
    patience = Patience(first=1.0, later=0.3, longest_pause=0.05)
    async with ConveyorClient(gateway.address, patience=patience) as client:
        with pytest.raises(Unreachable, match="ends every stream at once"):
            async for _ in client.chat("text"):
                pass


async def test_a_watch_goes_on_after_its_last_token(gateway: Gateway) -> None:
    def item(announcement_id: str, token: str) -> gateway_pb.WatchAnnouncementsResponse:
        return gateway_pb.WatchAnnouncementsResponse(
            announcement=announcement_pb2.Announcement(announcement_id=announcement_id),
            resume_token=token,
        )

    progress = gateway_pb.WatchAnnouncementsResponse(
        progress=gateway_pb.WatchProgress(live=True), resume_token="t5"
    )
    gateway.script.queue("WatchAnnouncements", [item("a", "t1"), progress], [item("a", "t1")])
    gateway.script.always("WatchAnnouncements", [item("b", "t6")])
    seen = []
    async with (
        ConveyorClient(gateway.address, patience=QUICK) as client,
        aclosing(client.watch_announcements(from_now=True)) as stream,
    ):
        async for told in stream:
            seen.append(told.announcement.announcement_id or "progress")
            if seen[-1] == "b":
                break
    assert seen == ["a", "progress", "b"]
    first, second, *_ = gateway.script.calls["WatchAnnouncements"]
    assert first.all_sessions
    assert (first.resume_token, second.resume_token) == ("", "t5")


async def test_a_flow_comes_with_all_pages_of_its_tree(gateway: Gateway) -> None:
    def page(run_id: str, token: str) -> flow_service_pb2.GetFlowResponse:
        return flow_service_pb2.GetFlowResponse(
            nodes=[run_pb2.Run(run_id=run_id)], next_page_token=token
        )

    gateway.script.queue("GetFlow", page("a", "1"), page("b", "2"), page("c", ""))
    async with ConveyorClient(gateway.address) as client:
        whole = await client.flow("a")
    assert [node.run_id for node in whole.nodes] == ["a", "b", "c"]
    assert not whole.next_page_token


async def test_a_gateway_that_comes_back_is_found_again(gateway: Gateway) -> None:
    """The gateway's process dies in the middle of a chat and a new one takes its place."""
    first = ScriptedServicer(GATEWAY)

    async def stalls(request: gateway_pb.ChatRequest) -> AsyncIterator[gateway_pb.ChatResponse]:
        yield accepted()
        yield announced("one", 1)
        await asyncio.Event().wait()

    first.queue("Chat", stalls)
    second = ScriptedServicer(GATEWAY)
    second.queue("Chat", [accepted(), replied("done", 2), ended()])
    second.always("ListAgents", agent_pb.ListAgentsResponse())
    seen: list[str] = []

    async def talk(address: str) -> None:
        async with ConveyorClient(address) as client:
            async for item in client.chat("text"):
                kind = str(item.WhichOneof("message"))
                seen.append(kind)
            await client.agents()

    async with scripted_server(first) as (address, _):
        talking = asyncio.create_task(talk(address))
        await eventually(lambda: seen == ["accepted", "event"])
    async with scripted_server(second, address=address):
        await asyncio.wait_for(talking, 20)
    assert seen == ["accepted", "event", "event", "ended"]
    assert second.calls["Chat"][0].resume_token == "t1"
