"""What a customer sees of delegated work over gRPC and SSE: a word at once, an open conversation,
one closing answer; and what becomes of a message that is steered into a turn."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field

import httpx
import pytest
from google.protobuf import json_format

from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import lane_pb2, run_pb2
from conveyor_client import ConveyorClient
from svckit.testing import eventually
from svckit.testing.fake_openai import Answer, ChatRequest, Reply, ToolCall
from tests.system.harness import (
    RUNNING,
    SUCCEEDED,
    Suite,
    chat,
    nothing_unfinished,
    payloads,
    replies,
    run_where,
    running,
    sse,
    text_of,
)
from tests.system.provider import Gate, Provider, answered, last_user, spawn

SOON = 5.0
"""Seconds for an interim message; promised is one, which `python -m bench.trees` measures."""
AFTER = 0.3
"""Seconds until the agent `brisk` says by itself that it takes longer."""
CLOSING = "Work that you started"
REPLY, INTERIM = event_pb2.MESSAGE_KIND_REPLY, event_pb2.MESSAGE_KIND_INTERIM


@pytest.fixture(scope="module")
def suite(serving: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    toml = f"""
[agents.defaults]
model = "local:big"
[agents.list.main]
[agents.list.brisk.subagents]
yield_after_seconds = {AFTER}
[providers.local]
base_url = "{serving.fake.base_url}"
"""
    with running(tmp_path_factory.mktemp("yield"), toml) as started:
        yield started


@pytest.fixture
async def client(suite: Suite, provider: Provider) -> AsyncIterator[ConveyorClient]:
    async with suite.client() as open_client:
        yield open_client
        await nothing_unfinished(open_client)


@dataclass
class Seen:
    """Events as a customer got them, with the seconds since `began`."""

    began: float = 0.0
    items: list[tuple[float, event_pb2.Event]] = field(default_factory=list)

    def add(self, event: event_pb2.Event) -> None:
        self.items.append((time.monotonic() - self.began, event))

    @property
    def events(self) -> list[event_pb2.Event]:
        return [event for _, event in self.items]

    def said(self, kind: event_pb2.MessageKind.ValueType) -> list[str]:
        return [
            text_of(m.message) for m in payloads(self.events, "message_completed") if m.kind == kind
        ]

    def after(self, kind: event_pb2.MessageKind.ValueType) -> float:
        """Seconds until the first message of a kind."""
        return next(at for at, event in self.items if event.message_completed.kind == kind)

    def place(self, text: str) -> int:
        """Where a message stands in the log."""
        (found,) = [
            event.sequence
            for event in self.events
            if text_of(event.message_completed.message) == text
        ]
        return found


async def follow(client: ConveyorClient, text: str, session: str, seen: Seen) -> run_pb2.Run:
    """Chat, and note what comes when."""
    async with aclosing(client.chat(text, session_key=session)) as stream:
        async for item in stream:
            if item.HasField("event"):
                seen.add(item.event)
            if item.HasField("ended"):
                return item.ended
    raise AssertionError("the chat broke off")


async def watch(suite: Suite, session: str, seen: Seen, open_: asyncio.Event) -> None:
    """Read the session's server-sent events until cancelled."""
    async with (
        httpx.AsyncClient(base_url=suite.http, timeout=None) as http,
        http.stream("GET", f"/v1/sessions/{session}/events") as response,
    ):
        assert response.status_code == 200
        async with sse(response.aiter_lines()) as items:
            async for item in items:
                open_.set()
                body = json.loads(item.get("data", "{}"))
                if "event" in body:
                    seen.add(json_format.ParseDict(body["event"], event_pb2.Event()))


@pytest.mark.parametrize("how", ["asked", "automatic"])
async def test_a_yield_answers_at_once_and_once_more_after_the_last_child(
    suite: Suite, client: ConveyorClient, provider: Provider, session: str, how: str
) -> None:
    if how == "automatic":
        session = session.replace(":main:", ":brisk:")
    digging = {"left": Gate(), "right": Gate()}

    def model(request: ChatRequest) -> Answer | Awaitable[Answer]:
        text = last_user(request)
        if text in digging:
            return digging[text].then(Reply(f"{text} gold"))
        if text == "dig" and not answered(request):
            later = [ToolCall("sessions_yield", {"message": "I'll get back to you."})]
            return Reply("I dig.", [*map(spawn, digging), *(later if how == "asked" else [])])
        if CLOSING in text or answered(request):
            whole = json.dumps(request.messages)
            found = [side for side in digging if f"{side} gold" in whole]
            return Reply("Here it is: " + ", ".join(found))
        return Reply(f"{text}: yes")

    provider.rules = [model]
    over_grpc, over_sse, open_ = Seen(), Seen(), asyncio.Event()
    await chat(client, "are you there?", session_key=session)
    watching = asyncio.create_task(watch(suite, session, over_sse, open_))
    await open_.wait()
    over_grpc.began = over_sse.began = time.monotonic()
    first = asyncio.create_task(follow(client, "dig", session, over_grpc))
    for seen in (over_grpc, over_sse):
        await eventually(lambda seen=seen: seen.said(INTERIM), timeout=60)
        took = seen.after(INTERIM) - (AFTER if how == "automatic" else 0.0)
        print(f"{how} {'gRPC' if seen is over_grpc else 'SSE'}: {took:.3f} s")
        assert 0 <= took < SOON
    for gate in digging.values():
        await gate.until_reached()

    for text in ("and you?", "still there?"):
        assert (await chat(client, text, session_key=session)).answer == f"{text}: yes"
    digging["left"].open()
    await eventually(lambda: payloads(over_grpc.events, "child_announced"), timeout=60)
    assert not first.done()
    assert not provider.asked(CLOSING), "one child is at work"
    digging["right"].open()
    ended = await first
    assert ended.state == SUCCEEDED
    assert text_of(ended.result.reply) == "Here it is: left, right"
    assert (await chat(client, "thanks", session_key=session)).answer == "thanks: yes"

    log = await suite.events(session)
    await eventually(lambda: len(over_sse.events) == len(log), timeout=60)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    for seen in (over_sse, Seen(items=[(0.0, event) for event in log])):
        assert len(seen.said(INTERIM)) == 1
        assert seen.said(REPLY) == [
            "are you there?: yes",
            "and you?: yes",
            "still there?: yes",
            "Here it is: left, right",
            "thanks: yes",
        ]
        told = [e.sequence for e in seen.events if e.WhichOneof("payload") == "child_announced"]
        assert len(told) == 2
        assert max(told) < seen.place("Here it is: left, right")
    assert over_grpc.said(INTERIM) == over_sse.said(INTERIM)
    assert replies(over_grpc.events, ended.run_id) == ["Here it is: left, right"]


async def test_what_is_steered_into_a_turn_is_seen_by_its_next_call_and_by_no_other(
    suite: Suite, client: ConveyorClient, provider: Provider, session: str
) -> None:
    walking = Gate()

    async def step() -> Answer:
        walking.reached.set()
        await asyncio.sleep(0.1)
        return Reply("", [ToolCall("agents_list")])

    def model(request: ChatRequest) -> Answer | Awaitable[Answer]:
        return Reply("I went left.") if last_user(request) == "turn left" else step()

    provider.rules = [model]
    walk = asyncio.create_task(chat(client, "walk", session_key=session))
    await walking.until_reached()
    run_id = await at_work(client, session)
    await client.steer(run_id, "turn left")
    told = await walk
    assert told.answer == "I went left."
    assert told.ended.turn == 1, "the same turn took it"
    assert len(payloads(told.events, "steer_accepted")) == 1
    assert not payloads(told.events, "steer_missed")
    (steered,) = provider.asked("turn left")
    *before, last = steered.messages
    assert last["role"] == "user", "it comes after all that was done, and before anything else is"
    assert sum(m["role"] == "tool" for m in before) == len(provider.fake.requests) - 1
    runs = await client.runs(run_pb2.RunFilter(session_key=session))
    assert len(runs.runs) == 1


async def test_what_is_steered_into_the_last_words_of_a_turn_is_reported_missed(
    suite: Suite, client: ConveyorClient, provider: Provider, session: str
) -> None:
    """A message of the customer's is answered by a run of its own, an operator's hint is not."""
    last_words = Gate()

    def model(request: ChatRequest) -> Answer | Awaitable[Answer]:
        if last_user(request) == "and one more":
            return Reply("One more.")
        return last_words.then(Reply("The end."))

    provider.rules = [model]
    first = asyncio.create_task(chat(client, "tell me", session_key=session))
    await last_words.until_reached()
    run_id = await at_work(client, session)
    await client.steer(run_id, "a hint", request_id="hint")
    steered = lane_pb2.QUEUE_MODE_STEER
    sent = await client.send(
        "and one more", session_key=session, queue_mode=steered, request_id="more"
    )
    assert sent.accepted.outcome == lane_pb2.ENQUEUE_OUTCOME_STEERED
    last_words.open()
    assert (await first).answer == "The end."
    log = await suite.events(session)
    missed = {item.request_id: item.fallback_run_id for item in payloads(log, "steer_missed")}
    assert set(missed) == {"hint", "more"}
    assert not payloads(log, "steer_accepted")
    assert not missed["hint"]
    await run_where(client, missed["more"], SUCCEEDED)
    assert replies(await suite.events(session)) == ["The end.", "One more."]
    assert not provider.asked("a hint")
    assert len(provider.asked("and one more")) == 1


async def at_work(client: ConveyorClient, session: str) -> str:
    """Wait until the session's run executes."""

    async def look() -> str:
        runs = (await client.runs(run_pb2.RunFilter(session_key=session))).runs
        return next((run.run_id for run in runs if run.state == RUNNING), "")

    return await eventually(look, timeout=60)
