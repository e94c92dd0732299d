"""A weak model with an excuse, over real HTTP: what the customer gets, and what operators see.

The provider is scripted: `weak` says that it may not spawn, whatever it is told or made to do;
`strong` delegates.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest
from google.protobuf import json_format

from conveyor.agent.v1 import task_pb2 as task_pb
from conveyor.events.v1 import event_pb2
from svckit.testing import eventually
from svckit.testing.fake_openai import Answer, ChatRequest, Reply
from tests.otlp import SOON, Receiver, receiver
from tests.system.harness import (
    SUCCEEDED,
    Suite,
    chat,
    payloads,
    replies,
    running,
    sse,
    text_of,
)
from tests.system.provider import Provider, answered, last_user, provider_thread, spawn

EXCUSE = "I do not have permission to spawn sessions."
ASKED = "Compare the hotels and the flights to Porto."
TASKS = ("look at the hotels in Porto", "look at the flights to Porto")


@pytest.fixture(scope="module")
def collector() -> Iterator[Receiver]:
    with receiver() as made:
        yield made


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with provider_thread() as provider:
        provider.rules = [_weak_and_strong]
        yield provider
        provider.fake.assert_clean()


def _weak_and_strong(request: ChatRequest) -> Answer:
    if last_user(request) in TASKS:
        return Reply(f"{last_user(request)}: done")
    if request.body["model"] == "weak":
        return Reply(f"I'm sorry. {EXCUSE} Can I help with anything else?", pause=0.01)
    if answered(request):
        return Reply("Hotels and flights, both compared.")
    return Reply("I'll split this.", [spawn(task) for task in TASKS])


@pytest.fixture(scope="module")
def suite(
    provider: Provider,
    collector: Receiver,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Suite]:
    toml = f"""
[agents.defaults]
model = "local:weak"
[agents.defaults.guard]
fallback_model = "local:strong"
[agents.list.main]
[agents.list.unguarded.guard]
mode = "off"
[providers.local]
base_url = "{provider.fake.base_url}"
[telemetry]
otlp_endpoint = "{collector.endpoint}"
"""
    with running(tmp_path_factory.mktemp("guard"), toml, environ=SOON) as suite:
        yield suite


async def test_an_excuse_never_reaches_the_customer_who_gets_a_delegated_answer(
    suite: Suite, provider: Provider, collector: Receiver, session: str
) -> None:
    async with suite.client() as client:
        watching = asyncio.create_task(_read_sse(suite, session))
        told = await chat(client, ASKED, session_key=session)
        assert told.ended.state == SUCCEEDED
        assert told.answer == "Hotels and flights, both compared."

        # What the provider was asked: once plainly, once with the facts, once forced, then strong.
        asked = [r for r in provider.fake.requests if last_user(r) not in TASKS]
        assert [r.body["model"] for r in asked] == ["weak"] * 3 + ["strong"] * 2
        plain, insisted, forced, fallen, joining = asked
        assert plain.body.get("tool_choice", "auto") == "auto"
        assert "you are allowed to use it now" in last_user(insisted)
        assert forced.body["tool_choice"]["function"]["name"] == "sessions_spawn"
        for request in (fallen, joining):
            assert "permission" not in str(request.messages[1:]), (
                "the stronger model reads no excuse"
            )
        assert fallen.body.get("tool_choice", "auto") == "auto"

        # What the customer saw: the whole of two kinds of streams.
        seen = [json_format.MessageToJson(item) for item in told.items] + await watching
        assert any("both compared" in text for text in seen)
        assert not [text for text in seen if "permission" in text or "sorry" in text]
        guarded = payloads(told.events, "guard_intervened")
        assert [event_pb2.GuardStep.Name(did.step) for did in guarded] == [
            "GUARD_STEP_INSIST",
            "GUARD_STEP_FORCE_TOOL",
            "GUARD_STEP_FALL_BACK_MODEL",
        ]
        assert [did.resolved for did in guarded] == [False, False, True]

        # What operators see: the log, the result, the tree, the trace.
        log = await suite.events(session)
        caught = [e.message_completed for e in log if e.message_completed.caught]
        assert [EXCUSE in text_of(item.message) for item in caught] == [True] * 3
        assert {item.kind for item in caught} == {event_pb2.MESSAGE_KIND_INTERNAL}
        assert replies(log) == ["Hotels and flights, both compared."]
        run = (await client.run(told.run_id)).run
        result = task_pb.AgentResult()
        assert run.result.details.Unpack(result)
        assert (result.guard_steps, result.steps) == (3, 5)
        assert {EXCUSE in item.excerpt for item in result.interventions} == {True}
        shown = suite.cli("flow", "show", told.run_id).stdout
        assert "guard: false claim → insisted → forced → fell back to local:strong" in shown
        await eventually(lambda: len(_guard_spans(collector)) == 3)
        assert _guard_spans(collector) == ["insist", "force_tool", "fall_back_model"]


async def test_with_the_guard_off_the_excuse_goes_through(
    suite: Suite, provider: Provider, session: str
) -> None:
    """As it would without any guard: streamed word by word, and delivered."""
    provider.fake.requests.clear()
    session = session.replace(":main:", ":unguarded:")
    async with suite.client() as client:
        told = await chat(client, ASKED, session_key=session)
    assert EXCUSE in told.answer
    streamed = "".join(item.delta.text for item in told.items if item.HasField("delta"))
    assert EXCUSE in streamed
    assert len(provider.fake.requests) == 1
    assert not payloads(told.events, "guard_intervened")


def _guard_spans(collector: Receiver) -> list[str]:
    """The steps that the turn's spans tell of, in the order they were taken."""
    events = [
        event
        for span in collector.spans
        for event in span.events
        if event.name == "delegation guard"
    ]
    steps = []
    for event in sorted(events, key=lambda event: event.time):
        found = event.attributes
        assert found["conveyor.guard.trigger"] == "false_claim"
        assert EXCUSE not in str(found)
        steps.append(found["conveyor.guard.step"])
    return steps


async def _read_sse(suite: Suite, session: str) -> list[str]:
    """All that the customer's browser gets until the run has ended."""
    found: list[str] = []
    async with httpx.AsyncClient(base_url=suite.http, timeout=60) as http:
        path = f"/v1/sessions/{session}/events"
        while True:
            async with http.stream("GET", path) as response:
                if response.status_code == 404:  # nothing was said in it yet
                    await asyncio.sleep(0.02)
                    continue
                async with sse(response.aiter_lines()) as items:
                    async for item in items:
                        found.append(str(item.get("data", "")))
                        if (
                            '"RUN_STATE_SUCCEEDED"' in found[-1]
                            and "run_state_changed" in found[-1]
                        ):
                            return found
