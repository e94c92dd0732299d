"""`WatchSession` and `WatchAnnouncements`."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from grpc import aio

from conveyor.gateway.v1 import gateway_service_pb2 as gw
from svckit.testing import eventually
from tests.service.gateway.suite import Suite, delegating, kind, payload, reason_of


def watch(gateway: Suite, key: str, **more: Any) -> Any:
    return gateway.stub.WatchSession(gw.WatchSessionRequest(session_key=key, **more))


async def until(call: Any, wanted: Any) -> list[Any]:
    """Read until a response is the wanted one, then leave."""
    seen = []
    async with asyncio.timeout(30):
        async for response in call:
            seen.append(response)
            if wanted(response):
                break
    call.cancel()
    return seen


def is_live(response: Any) -> bool:
    return kind(response) == "progress" and response.progress.live


def ends(key: str) -> Any:
    def wanted(response: Any) -> bool:
        return (
            kind(response) == "event"
            and response.event.session_key == key
            and payload(response.event) == "run_state_changed"
            and response.event.run_state_changed.state >= 5
        )

    return wanted


def told(responses: list[Any]) -> list[tuple[str, int]]:
    return [(r.event.session_key, r.event.sequence) for r in responses if kind(r) == "event"]


async def test_a_watch_tells_what_was_and_what_comes(gateway: Suite) -> None:
    sent = await gateway.send("alice", "one")
    await until(watch(gateway, "alice"), ends("alice"))
    call = watch(gateway, "alice", resume_token=sent.resume_token)
    stored = []
    async for response in call:
        stored.append(response)
        if is_live(response):
            break
    await gateway.send("alice", "two")
    live = await until(call, ends("alice"))
    sequences = [sequence for _, sequence in told(stored) + told(live)]
    assert sequences == list(range(1, len(sequences) + 1))


async def test_every_token_of_a_watch_resumes_it(gateway: Suite) -> None:
    gateway.agent.on("go", delegating("one", "two"))
    await gateway.send("alice", "go")
    whole = await until(
        watch(gateway, "alice", include_descendants=True),
        ends("alice"),
    )
    # Children may still be read when the root's end is told: read the whole log once more.
    everything = await until(watch(gateway, "alice", include_descendants=True), is_live)
    assert told(everything)
    root = [event for event in told(whole) if event[0] == "alice"]
    for response in whole:
        if kind(response) != "event" or response.event.session_key != "alice":
            continue
        rest = await until(watch(gateway, "alice", resume_token=response.resume_token), is_live)
        at = root.index(("alice", response.event.sequence)) + 1
        assert told(rest) == root[at:]


async def test_descendants_are_followed_to_their_ends(gateway: Suite) -> None:
    gateway.agent.on("go", delegating("one", "two"))
    for text in ("one", "two"):
        gateway.agent.hold(text)
    await gateway.send("alice", "go")
    call = watch(gateway, "alice", include_descendants=True)
    seen: list[Any] = []
    ended: set[str] = set()
    async with asyncio.timeout(30):
        async for response in call:
            seen.append(response)
            if kind(response) == "event" and payload(response.event) == "run_state_changed":
                state = response.event.run_state_changed.state
                if state == 2 and response.event.session_key != "alice":
                    gateway.agent.let_go("one")
                    gateway.agent.let_go("two")
                if state >= 5:
                    ended.add(response.event.session_key)
                if len(ended) == 3:
                    break
    call.cancel()
    for key in ended:
        sequences = [sequence for session, sequence in told(seen) if session == key]
        assert sequences == list(range(1, len(sequences) + 1))
    deltas = [r.delta.session_key for r in seen if kind(r) == "delta"]
    assert set(deltas) <= ended

    # Resumed in the middle, what was told is not told again, and nothing is left out.
    middle = next(
        index
        for index, response in enumerate(seen)
        if kind(response) == "event" and ":subagent:" in response.event.session_key
    )
    rest = await until(
        watch(
            gateway,
            "alice",
            include_descendants=True,
            resume_token=seen[middle].resume_token,
        ),
        ends("alice"),
    )
    again = told(rest)
    before = told(seen[: middle + 1])
    assert len(again) == len(set(again))
    assert not set(again) & {event for event in before if event[0] == "alice"}


async def test_a_deep_history_of_trees_is_replayed(gateway: Suite) -> None:
    """More ended trees than are read at a time."""
    gateway.agent.on("go", delegating("one"))
    for number in range(12):
        await gateway.send("alice", "go", request_id=f"go-{number}")
    await eventually(lambda: gateway.agent.started.count("one") == 12)
    call = watch(gateway, "alice", include_descendants=True)
    roots, children = set(), set()
    async with asyncio.timeout(20):
        async for response in call:
            if kind(response) != "event" or payload(response.event) != "run_state_changed":
                continue
            if response.event.run_state_changed.state >= 5:
                own = response.event.session_key == "alice"
                (roots if own else children).add(response.event.run_id)
            if len(roots) == len(children) == 12:
                break
    call.cancel()


async def test_from_now_tells_only_what_comes_and_its_token_too(gateway: Suite) -> None:
    await gateway.send("alice", "one")
    await until(watch(gateway, "alice"), ends("alice"))
    first = await until(watch(gateway, "alice", from_now=True), is_live)
    assert told(first) == []
    await gateway.send("alice", "two")
    rest = await until(
        watch(gateway, "alice", from_now=True, resume_token=first[-1].resume_token),
        ends("alice"),
    )
    assert payload(rest[0].event) == "message_completed"
    sequences = [sequence for _, sequence in told(rest)]
    assert sequences[0] > 4
    assert sequences == list(range(sequences[0], sequences[-1] + 1))


async def test_the_token_of_a_session_starts_after_its_newest_event(gateway: Suite) -> None:
    await gateway.send("alice", "one")
    await until(watch(gateway, "alice"), ends("alice"))
    token = (await gateway.stub.GetSession(gw.GetSessionRequest(session_key="alice"))).resume_token
    assert told(await until(watch(gateway, "alice", resume_token=token), is_live)) == []


async def test_payloads_choose(gateway: Suite) -> None:
    gateway.agent.on("go", delegating("one"))
    await gateway.send("alice", "go")
    await until(watch(gateway, "alice"), ends("alice"))
    some = await until(
        watch(gateway, "alice", payloads=["message_completed"], include_descendants=True), is_live
    )
    assert {payload(r.event) for r in some if kind(r) == "event"} == {"message_completed"}
    with pytest.raises(aio.AioRpcError) as refused:
        await until(watch(gateway, "alice", payloads=["nothing"]), is_live)
    assert reason_of(refused.value) == "INVALID_FIELD"


async def test_an_unknown_session_is_not_watched(gateway: Suite) -> None:
    with pytest.raises(aio.AioRpcError) as refused:
        await until(watch(gateway, "nobody"), is_live)
    assert reason_of(refused.value) == "SESSION_NOT_FOUND"


async def test_a_token_belongs_to_its_session(gateway: Suite) -> None:
    sent = await gateway.send("alice", "one")
    await gateway.send("bob", "one")
    with pytest.raises(aio.AioRpcError) as refused:
        await until(watch(gateway, "bob", resume_token=sent.resume_token), is_live)
    assert reason_of(refused.value) == "INVALID_FIELD"


async def test_watches_end_well_when_the_gateway_drains(gateway: Suite) -> None:
    await gateway.send("alice", "one")
    call = watch(gateway, "alice")
    async for response in call:
        if is_live(response):
            break
    gateway.gateway.context.draining.set()
    async with asyncio.timeout(30):
        rest = [response async for response in call]
    assert kind(rest[-1]) == "progress"
    assert (await call.code()).name == "OK"


@pytest.mark.parametrize("scope", ["session", "flow", "all"])
async def test_announcements_of_every_scope(gateway: Suite, scope: str) -> None:
    gateway.agent.on("go", delegating("one", "two"))
    sent = await gateway.send("alice", "go")
    flow = sent.accepted.run.run_id
    await until(watch(gateway, "alice"), ends("alice"))
    requests: dict[str, dict[str, Any]] = {
        "session": {"session_key": "alice"},
        "flow": {"flow_id": flow},
        "all": {"all_sessions": True},
    }
    call = gateway.stub.WatchAnnouncements(gw.WatchAnnouncementsRequest(**requests[scope]))
    responses = await until(call, is_live)
    announced = [r.announcement for r in responses if kind(r) == "announcement"]
    assert sorted(a.result.label for a in announced) == ["one", "two"]
    assert {a.flow_id for a in announced} == {flow}
    resumed = gateway.stub.WatchAnnouncements(
        gw.WatchAnnouncementsRequest(**requests[scope], resume_token=responses[0].resume_token)
    )
    rest = [r for r in await until(resumed, is_live) if kind(r) == "announcement"]
    assert [r.announcement for r in rest] == announced[1:]


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (gw.WatchAnnouncementsRequest(), "INVALID_FIELD"),
        (gw.WatchAnnouncementsRequest(all_sessions=False), "INVALID_FIELD"),
        (gw.WatchAnnouncementsRequest(session_key="nobody"), "SESSION_NOT_FOUND"),
        (gw.WatchAnnouncementsRequest(flow_id="nothing"), "FLOW_NOT_FOUND"),
    ],
)
async def test_announcements_of_nothing(
    gateway: Suite, request_: gw.WatchAnnouncementsRequest, reason: str
) -> None:
    with pytest.raises(aio.AioRpcError) as refused:
        await until(gateway.stub.WatchAnnouncements(request_), is_live)
    assert reason_of(refused.value) == reason
