"""The suite with a model behind HTTP: chat-completions with tools, and the hard cases of spawning.

The provider refuses every prompt in which a tool call has no answer, as real ones do, and each test
ends by looking that it never had to.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator

import pytest

from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import announcement_pb2, lane_pb2, run_pb2
from conveyor_client import ConveyorClient
from svckit.grpc.status import from_proto
from svckit.testing import eventually, free_port
from svckit.testing.fake_openai import Answer, ChatRequest, Failure, Reply, ToolCall
from tests.system.harness import (
    CLASSIC,
    SUCCEEDED,
    TASKS,
    Suite,
    chat,
    flow_where,
    nothing_unfinished,
    payloads,
    replies,
    run_where,
    running,
    span,
    text_of,
)
from tests.system.provider import Gate, Provider, answered, last_user, spawn

YIELD = "sessions_yield"


@pytest.fixture(scope="module")
def live(serving: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    toml = f"""
[agents.defaults]
model = "local:big"
[agents.defaults.subagents]
max_spawn_depth = 2
[agents.list.main]
[agents.list.lost]
model = "gone:big"
[agents.list.brisk.subagents]
yield_after_seconds = 0.2
[agents.list.each.subagents]
announce = "each"
wait = false
[runs]
max_attempts = 2
[providers.local]
base_url = "{serving.fake.base_url}"
[providers.gone]
base_url = "http://127.0.0.1:{free_port()}/v1"
"""
    with running(tmp_path_factory.mktemp("live"), toml) as suite:
        yield suite


@pytest.fixture
def suite(live: Suite) -> Suite:
    return live


@pytest.fixture
async def client(suite: Suite, provider: Provider) -> AsyncIterator[ConveyorClient]:
    async with suite.client() as open_client:
        yield open_client
        await nothing_unfinished(open_client)


async def test_the_classic_request_over_real_http(
    suite: Suite, client: ConveyorClient, provider: Provider, session: str
) -> None:
    def model(request: ChatRequest) -> Answer:
        if last_user(request) != CLASSIC:
            return Reply(f"{last_user(request)}: found it", pause=0.01)
        if answered(request):
            return Reply("All three together.", pause=0.01)
        return Reply("I'll split this.", [spawn(task) for task in TASKS], input_tokens=100)

    provider.rules = [model]
    told = await chat(client, CLASSIC, session_key=session)
    assert told.answer == "All three together."
    first, joining = provider.asked(CLASSIC)
    assert first.body["stream"] is True
    assert {"sessions_spawn", "sessions_yield", "agents_list"} <= set(first.tools)
    results = joining.texts("tool")
    assert [task in text and "found it" in text for task, text in zip(TASKS, results, strict=True)]
    calls = joining.messages[-4]["tool_calls"]
    assert [c["id"] for c in calls] == [m["tool_call_id"] for m in joining.messages[-3:]]

    flow = await client.flow(told.run_id)
    spans = [span(node) for node in flow.nodes[1:]]
    assert max(start for start, _ in spans) < min(end for _, end in spans)
    assert flow.flow.usage.input_tokens == 100 + 4 * 10
    assert len(payloads(told.events, "child_announced")) == 3
    streamed = [item.delta.text for item in told.items if item.HasField("delta")]
    assert len(streamed) > 1
    assert replies(await suite.events(session)) == ["All three together."]


async def test_a_background_child_that_settles_while_its_parents_turn_is_executing(
    suite: Suite, client: ConveyorClient, provider: Provider, session: str
) -> None:
    """It is untold when the turn ends, so the run gets its closing turn at once."""
    late = Gate()

    def model(request: ChatRequest) -> Answer | Awaitable[Answer]:
        text = last_user(request)
        if text == "quick work":
            return Reply("quick result")
        if "Work that you started" in text:
            return Reply("Closing: " + ("quick result" if "quick result" in text else "?"))
        if answered(request):
            return late.then(Reply("I have started it."))
        return Reply("", [spawn("quick work", wait=False)])

    provider.rules = [model]
    chatting = asyncio.create_task(chat(client, "go", session_key=session))
    await late.until_reached()
    run_id = await _root_of(client, session)
    await flow_where(client, run_id, succeeded=1, running=1)
    late.open()
    told = await chatting
    assert told.ended.turn == 2
    assert replies(told.events) == ["I have started it.", "Closing: quick result"]
    resumed = [c.resume_reason for c in payloads(told.events, "run_state_changed")]
    assert announcement_pb2.RESUME_REASON_CHILD_UNTOLD in resumed
    assert len(payloads(told.events, "child_announced")) == 1


async def test_a_provider_that_repeats_tool_call_ids(
    suite: Suite, client: ConveyorClient, provider: Provider, session: str
) -> None:
    def model(request: ChatRequest) -> Answer:
        if last_user(request) != "again":
            return Reply(f"{last_user(request)} done")
        seen = len(request.texts("tool"))
        if seen == 0:
            return Reply("", [spawn("a", call_id="call_0"), spawn("b", call_id="call_0")])
        if seen == 2:
            return Reply("", [spawn("c", call_id="call_0")])
        return Reply(" / ".join(request.texts("tool")))

    provider.rules = [model]
    told = await chat(client, "again", session_key=session)
    assert told.ended.state == SUCCEEDED
    assert [f"{name} done" in told.answer for name in "abc"] == [True] * 3
    spawned = payloads(told.events, "child_spawned")
    assert len({item.tool_call_id for item in spawned}) == 3
    assert "call_0" not in str(provider.fake.requests[-1].messages)


async def test_two_spawns_and_another_tool_in_one_reply(
    suite: Suite, client: ConveyorClient, provider: Provider, session: str
) -> None:
    def model(request: ChatRequest) -> Answer:
        if last_user(request) != "mixed":
            return Reply(f"{last_user(request)} done")
        if answered(request):
            return Reply(" | ".join(request.texts("tool")))
        return Reply("", [spawn("left"), ToolCall("agents_list"), spawn("right")])

    provider.rules = [model]
    told = await chat(client, "mixed", session_key=session)
    left, listing, right = told.answer.split(" | ")
    assert "left done" in left
    assert "main" in listing
    assert "right done" in right
    started = [item.tool_name for item in payloads(told.events, "tool_call_started")]
    assert started == ["agents_list", "sessions_spawn", "sessions_spawn"]
    assert len(payloads(told.events, "tool_call_ended")) == 3


async def test_a_yield_followed_by_another_message(
    suite: Suite, client: ConveyorClient, provider: Provider, session: str
) -> None:
    digging = Gate()

    def model(request: ChatRequest) -> Answer | Awaitable[Answer]:
        text = last_user(request)
        if text == "deep work":
            return digging.then(Reply("gold"))
        if text == "how is the weather?":
            return Reply("sunny")
        if "Work that you started" in text:
            return Reply("Here it is: gold" if "gold" in text else "?")
        later = ToolCall(YIELD, {"message": "I'll get back to you."})
        return Reply("", [spawn("deep work"), later])

    provider.rules = [model]
    first = asyncio.create_task(chat(client, "dig", session_key=session))
    await digging.until_reached()
    second = await chat(client, "how is the weather?", session_key=session)
    assert second.answer == "sunny"
    assert not first.done()
    (meanwhile,) = provider.asked("how is the weather?")
    assert "I'll get back to you." in str(meanwhile.messages)
    assert any("running since" in text for text in meanwhile.texts("user"))
    digging.open()
    told = await first
    assert told.answer == "Here it is: gold"
    closing = provider.fake.requests[-1]
    assert "sunny" in str(closing.messages), "what was said meanwhile is known"
    assert "> dig" in last_user(closing), "it knows which message it answers"
    log = await suite.events(session)
    assert replies(log) == ["sunny", "Here it is: gold"]
    interim = [
        text_of(m.message)
        for m in payloads(log, "message_completed")
        if m.kind == event_pb2.MESSAGE_KIND_INTERIM
    ]
    assert interim == ["I'll get back to you."]


async def test_a_steered_message_while_a_waiting_run_holds_the_lane(
    suite: Suite, client: ConveyorClient, provider: Provider, session: str
) -> None:
    """It wakes the run, which answers it while its child goes on; the child is told later."""
    working = Gate()

    def model(request: ChatRequest) -> Answer | Awaitable[Answer]:
        text = last_user(request)
        if text == "long work":
            return working.then(Reply("long result"))
        if text == "hurry up":
            return Reply("I hurry.")
        if "Work that you started" in text:
            return Reply("In the end: " + ("long result" if "long result" in text else "?"))
        return Reply("", [spawn("long work")])

    provider.rules = [model]
    first = asyncio.create_task(chat(client, "begin", session_key=session))
    await working.until_reached()
    run_id = await _root_of(client, session)
    await flow_where(client, run_id, suspended=1, running=1)
    sent = await client.send("hurry up", session_key=session, queue_mode=lane_pb2.QUEUE_MODE_STEER)
    assert sent.accepted.outcome == lane_pb2.ENQUEUE_OUTCOME_STEERED
    await eventually(lambda: provider.asked("hurry up"))

    async def hurried() -> bool:
        return "I hurry." in replies(await suite.events(session))

    await eventually(hurried)
    working.open()
    told = await first
    assert told.answer == "In the end: long result"
    assert replies(told.events) == ["I hurry.", "In the end: long result"]
    assert len(payloads(told.events, "steer_accepted")) == 1
    assert not payloads(told.events, "steer_missed")
    runs = await client.runs(run_pb2.RunFilter(session_key=session))
    assert len(runs.runs) == 1, "it became no run of its own"


async def test_a_followup_while_a_waiting_run_holds_the_lane(
    suite: Suite, client: ConveyorClient, provider: Provider, session: str
) -> None:
    working = Gate()

    def model(request: ChatRequest) -> Answer | Awaitable[Answer]:
        text = last_user(request)
        if text == "long work":
            return working.then(Reply("long result"))
        if text == "and then?":
            return Reply("Then this.")
        if answered(request):
            return Reply("First that.")
        return Reply("", [spawn("long work")])

    provider.rules = [model]
    first = asyncio.create_task(chat(client, "begin", session_key=session))
    await working.until_reached()
    await flow_where(client, await _root_of(client, session), suspended=1, running=1)
    sent = await client.send("and then?", session_key=session)
    estimate = sent.accepted.estimate
    assert estimate.session_lane_ahead == 1
    assert estimate.session_lane_wait.WhichOneof("condition") == "children"
    assert not provider.asked("and then?")
    working.open()
    assert (await first).answer == "First that."
    await run_where(client, sent.accepted.run.run_id, SUCCEEDED)
    assert replies(await suite.events(session)) == ["First that.", "Then this."]


async def test_a_new_conversation_while_children_work(
    suite: Suite, client: ConveyorClient, provider: Provider, session: str
) -> None:
    """The work is answered as it was asked; the new conversation knows nothing but a note of it."""
    working = Gate()

    def model(request: ChatRequest) -> Answer | Awaitable[Answer]:
        text = last_user(request)
        if text == "secret work":
            return working.then(Reply("secret result"))
        if "Work that you started" in text:
            return Reply("Old answer." if "secret result" in text else "?")
        if text == "old question":
            later = ToolCall(YIELD, {"message": "Later."})
            return Reply("", [spawn("secret work"), later])
        return Reply(f"answer to {text}")

    provider.rules = [model]
    await chat(client, "small talk", session_key=session)
    first = asyncio.create_task(chat(client, "old question", session_key=session))
    await working.until_reached()
    await flow_where(client, await _root_of(client, session), suspended=1, running=1)
    forgotten = await client.reset(session)
    assert (forgotten.epoch, forgotten.forgotten_messages > 0) == (1, True)
    fresh = await chat(client, "new question", session_key=session)
    assert fresh.answer == "answer to new question"
    (asked,) = provider.asked("new question")
    assert "small talk" not in str(asked.messages)
    assert "old question" not in str(asked.messages)
    working.open()
    told = await first
    assert told.answer == "Old answer."
    closing = str(provider.asked("Work that you started")[0].messages)
    assert "small talk" in closing
    assert "new question" not in closing
    now = await client.messages(session, since_reset=True)
    assert "answer to new question" in [text_of(m) for m in now.messages]
    await chat(client, "last question", session_key=session)
    (asked,) = provider.asked("last question")
    assert "small talk" not in str(asked.messages)
    assert "new question" in str(asked.messages)
    assert "old question" in str(asked.messages), "as a note"


async def test_an_unreachable_model_is_a_typed_end_that_says_why(
    suite: Suite, client: ConveyorClient, session: str
) -> None:
    told = await chat(client, "anybody there?", session_key=session.replace(":main:", ":lost:"))
    assert told.ended.state == run_pb2.RUN_STATE_FAILED
    error = from_proto(told.ended.error)
    assert error.reason == "ATTEMPTS_EXHAUSTED"
    assert error.metadata["lastReason"] == "MODEL_UNAVAILABLE"
    assert "gone did not answer" in error.message
    assert replies(told.events) == []


async def test_a_probe_of_an_unreachable_model_says_so(suite: Suite) -> None:
    said = suite.cli("model", "probe", "gone:big", code=1).stderr
    assert "probe of gone:big at http://127.0.0.1:" in said
    assert "stopped: gone did not answer: the connection failed (MODEL_UNAVAILABLE)" in said
    models = suite.cli_json("model", "list")["models"]
    assert not any("probe" in model for model in models)


async def test_a_model_in_trouble_is_asked_again(
    suite: Suite, client: ConveyorClient, provider: Provider, session: str
) -> None:
    trouble = iter([Failure(503, retry_after=0.01), Failure(429, retry_after=0.01)])
    provider.rules = [lambda _: next(trouble, None)]
    assert (await chat(client, "and now?", session_key=session)).answer == "ok"
    assert len(provider.fake.requests) == 3


async def test_a_rejecting_model_is_a_typed_end_without_a_second_try(
    suite: Suite, client: ConveyorClient, provider: Provider, session: str
) -> None:
    provider.rules = [lambda _: Failure(401)]
    told = await chat(client, "may I?", session_key=session)
    assert from_proto(told.ended.error).reason == "MODEL_REJECTED"
    assert "scripted" not in told.ended.error.message
    assert len(provider.fake.requests) == 1


async def _root_of(client: ConveyorClient, session: str) -> str:
    """Return the newest run of a session."""
    return (await client.runs(run_pb2.RunFilter(session_key=session))).runs[0].run_id


async def test_a_leaf_that_calls_a_tool_it_was_not_given_is_refused(
    suite: Suite, client: ConveyorClient, provider: Provider, session: str
) -> None:
    """Two levels may spawn here. The third asks nevertheless, and its answer goes up the tree."""

    def model(request: ChatRequest) -> Answer:
        if answered(request):
            return Reply("I was told: " + request.texts("tool")[-1])
        return Reply("", [spawn("deeper")])

    provider.rules = [model]
    told = await chat(client, "deep", session_key=session, include_descendants=True)
    flow = await client.flow(told.run_id)
    assert [node.spawn.depth for node in flow.nodes] == [0, 1, 2]
    log = await suite.events(flow.nodes[2].spec.session_key)
    (ended,) = payloads(log, "tool_call_ended")
    assert from_proto(ended.error).reason == "TURN_FAILED"
    assert "cannot be started at this depth" in told.answer


async def test_a_long_wait_gives_the_lane_to_the_message_behind_it(
    suite: Suite, client: ConveyorClient, provider: Provider, session: str
) -> None:
    """The customer hears once that it takes longer, and may go on talking meanwhile."""
    session = session.replace(":main:", ":brisk:")
    working = Gate()

    def model(request: ChatRequest) -> Answer | Awaitable[Answer]:
        text = last_user(request)
        if text == "long work":
            return working.then(Reply("long result"))
        if text == "meanwhile?":
            return Reply("Meanwhile this.")
        if "Work that you started" in text:
            return Reply("At last: " + ("long result" if "long result" in text else "?"))
        return Reply("Give me a moment.", [spawn("long work")])

    provider.rules = [model]
    first = asyncio.create_task(chat(client, "begin", session_key=session))
    await working.until_reached()
    second = await chat(client, "meanwhile?", session_key=session)
    assert second.answer == "Meanwhile this."
    working.open()
    told = await first
    assert told.answer == "At last: long result"
    said = [
        (m.kind, text_of(m.message))
        for m in payloads(await suite.events(session), "message_completed")
        if m.kind in (event_pb2.MESSAGE_KIND_INTERIM, event_pb2.MESSAGE_KIND_REPLY)
    ]
    assert said == [
        (event_pb2.MESSAGE_KIND_INTERIM, "Give me a moment."),
        (event_pb2.MESSAGE_KIND_REPLY, "Meanwhile this."),
        (event_pb2.MESSAGE_KIND_REPLY, "At last: long result"),
    ]


async def test_children_in_the_background_are_told_one_by_one_when_configured(
    suite: Suite, client: ConveyorClient, provider: Provider, session: str
) -> None:
    session = session.replace(":main:", ":each:")
    slow = Gate()

    def model(request: ChatRequest) -> Answer | Awaitable[Answer]:
        text = last_user(request)
        if text == "slow":
            return slow.then(Reply("slow result"))
        if text == "fast":
            return Reply("fast result")
        if "Work that you started" in text:
            return Reply("Now: " + ("slow" if "slow result" in text else "fast"))
        if answered(request):
            return Reply("Both are under way.")
        # Without `wait`: what the agent's configuration says.
        calls = [ToolCall("sessions_spawn", {"task": task}) for task in ("fast", "slow")]
        return Reply("", calls)

    provider.rules = [model]
    chatting = asyncio.create_task(chat(client, "both", session_key=session))
    await slow.until_reached()

    async def told_of_the_fast_one() -> bool:
        return "Now: fast" in replies(await suite.events(session))

    await eventually(told_of_the_fast_one)
    slow.open()
    told = await chatting
    assert replies(told.events) == ["Both are under way.", "Now: fast", "Now: slow"]
    assert told.ended.turn == 3
