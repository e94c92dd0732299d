"""Limits of providers and budgets, with real processes and a provider that counts."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from dataclasses import dataclass, field

import pytest

from conveyor.scheduler.v1 import run_pb2
from conveyor_client import ConveyorClient
from svckit.grpc.status import from_proto
from svckit.testing import eventually
from svckit.testing.fake_openai import Answer, ChatRequest, Failure, Reply, ToolCall
from tests.system.harness import (
    RUNNING,
    SUCCEEDED,
    SUSPENDED,
    Suite,
    chat,
    nothing_unfinished,
    payloads,
    running,
    seconds,
)
from tests.system.provider import Provider, answered, last_user, provider_thread, spawn

# Slots of the lane `main`: fewer than the runs that wait at the same time.
SLOTS = 2
CUSTOMERS = 5
# The provider takes 7 calls in any 10 s. That is six times as strict about a call that comes late
# as counting minutes is, so the configured rate leaves about the room that a minute has.
WINDOW, IN_WINDOW, CONFIGURED = 10.0, 7, 40


@dataclass
class Strict:
    """Counts calls in a sliding window and refuses what is over it, as the real ones do."""

    window: float
    most: int
    retry_after: float | None = None
    taken: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def check(self) -> Failure | None:
        """Return the refusal of a call that is over the limit."""
        now = time.monotonic()
        with self.lock:
            if sum(t > now - self.window for t in self.taken) >= self.most:
                self.refused.append(now)
                return Failure(429, retry_after=self.retry_after)
            self.taken.append(now)
            return None


@pytest.fixture(scope="module")
def served() -> Iterator[Provider]:
    with provider_thread() as provider:
        yield provider


@pytest.fixture(scope="module")
def suite(served: Provider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    url = served.fake.base_url
    toml = f"""
[lanes.main]
limit = {SLOTS}
[agents.defaults]
model = "strict:m"
[agents.list.main]
[agents.list.free]
model = "wild:m"
[agents.list.demo]
model = "demo"
[agents.list.frugal]
model = "wild:m"
[agents.list.frugal.subagents]
budget = {{ max_tokens = 8000, reply_reserve = 0.5 }}
[agents.list.poor]
model = "priced:m"
[agents.list.poor.subagents]
budget = {{ max_cost_usd = 0.001 }}
[agents.list.backed]
model = "refusing:r"
fallback_models = ["wild:m"]
[providers.refusing]
base_url = "{url}"
[providers.strict]
base_url = "{url}"
requests_per_minute = {CONFIGURED}
[providers.wild]
base_url = "{url}"
[providers.priced]
base_url = "{url}"
input_price_usd = 1
output_price_usd = 10
"""
    with running(tmp_path_factory.mktemp("limits"), toml) as suite:
        yield suite


@pytest.fixture
def provider(served: Provider) -> Provider:
    served.reset()
    return served


@pytest.fixture
async def client(suite: Suite) -> AsyncIterator[ConveyorClient]:
    async with suite.client() as open_client:
        yield open_client
        await nothing_unfinished(open_client)


def key(agent: str, peer: object) -> str:
    return f"agent:{agent}:http:direct:{peer}"


@pytest.mark.timeout(120)
async def test_a_provider_with_a_limit_never_has_to_refuse_and_holds_no_slot(
    suite: Suite, client: ConveyorClient, provider: Provider
) -> None:
    """Two calls for each customer: at the limit for the whole time, and nobody notices."""
    strict = Strict(WINDOW, IN_WINDOW)

    def model(request: ChatRequest) -> Answer:
        refusal = strict.check()
        if refusal is not None:
            return refusal
        if answered(request):
            return Reply("Done: " + last_user(request))
        return Reply("", [ToolCall("agents_list")])

    provider.rules = [model]
    # The first call loads the provider's package, which takes longer than a call.
    await chat(client, "warm up", session_key=key("main", "warm-up"))
    chats = [
        asyncio.create_task(chat(client, f"question {n}", session_key=key("main", n)))
        for n in range(CUSTOMERS)
    ]

    async def all_wait() -> bool:
        flow = await client.runs(run_pb2.RunFilter(states=[SUSPENDED]))
        return len(flow.runs) > SLOTS

    await eventually(all_wait, timeout=60)
    began = time.monotonic()
    between = await chat(client, "[[reply: at once]]", session_key=key("demo", "quick"))
    assert between.answer == "at once"
    assert time.monotonic() - began < 5, "the lane is free for others meanwhile"
    told = await asyncio.gather(*chats)
    assert [one.answer for one in told] == [f"Done: question {n}" for n in range(CUSTOMERS)]
    assert len(strict.taken) == 2 * (1 + CUSTOMERS)
    assert not strict.refused, "with right reservations the provider refuses nothing"
    executing, waiting = await _at_once(suite, [key("main", n) for n in range(CUSTOMERS)])
    assert executing <= SLOTS
    assert waiting > SLOTS, "what waits for the limit holds no slot"


@pytest.mark.timeout(120)
async def test_a_429_is_waited_for_and_reaches_no_customer(
    suite: Suite, client: ConveyorClient, provider: Provider
) -> None:
    """Nothing is configured for this provider: it says itself when it has enough."""
    strict = Strict(2.0, 3, retry_after=1.0)
    provider.rules = [lambda request: strict.check() or Reply("Done: " + last_user(request))]
    told = await asyncio.gather(
        *(chat(client, f"q{n}", session_key=key("free", n)) for n in range(7))
    )
    assert [one.answer for one in told] == [f"Done: q{n}" for n in range(7)]
    assert {one.ended.state for one in told} == {SUCCEEDED}
    assert strict.refused, "it had to refuse"
    # Calls that were under way together may be refused together; then one asks for all.
    assert len(strict.refused) <= SLOTS + 4


async def test_a_provider_that_cools_down_is_passed_over_while_another_is_left(
    suite: Suite, client: ConveyorClient, provider: Provider
) -> None:
    """The first customer's call is refused for a minute; the second is not even asked for."""
    provider.rules = [
        lambda r: Failure(429, retry_after=60) if r.body["model"] == "r" else Reply("here")
    ]
    for peer in ("first", "second"):
        told = await chat(client, "hi", session_key=key("backed", peer))
        assert (told.answer, told.ended.state) == ("here", SUCCEEDED)
        assert (told.ended.requested_model, told.ended.effective_model) == ("refusing:r", "wild:m")
        (note,) = payloads(await suite.events(key("backed", peer)), "note_added")
        assert note.code == "model_fallback"
        assert note.text == "refusing:r did not answer (throttled): wild:m did."
    assert [r.body["model"] for r in provider.fake.requests] == ["r", "m", "m"]


async def test_a_budget_ends_the_work_below_and_the_answer_says_so(
    suite: Suite, client: ConveyorClient, provider: Provider
) -> None:
    """The sub-agent is refused by the root's budget; half of it is kept for the root's answer."""

    def model(request: ChatRequest) -> Answer | Awaitable[Answer]:
        if last_user(request) == "expensive work":
            return Reply("", [ToolCall("agents_list")], input_tokens=3000, output_tokens=900)
        if answered(request):
            return Reply("I could not: " + request.texts("tool")[-1])
        return Reply("", [spawn("expensive work")])

    provider.rules = [model]
    told = await chat(client, "do it", session_key=key("frugal", "a"), include_descendants=True)
    assert told.ended.state == SUCCEEDED
    assert "budget of 4000 tokens" in told.answer
    (child,) = [r for r in (await client.flow(told.run_id)).nodes if r.spawn.depth == 1]
    error = from_proto(child.error)
    assert error.reason == "BUDGET_EXCEEDED"
    assert (error.metadata["budget"], error.metadata["runId"]) == ("max_tokens", told.run_id)
    assert len(provider.asked("expensive work")) == 1


async def test_a_root_without_budget_left_says_which_one(
    suite: Suite, client: ConveyorClient, provider: Provider
) -> None:
    told = await chat(client, "anything", session_key=key("poor", "a"))
    assert told.ended.state == run_pb2.RUN_STATE_FAILED
    error = from_proto(told.ended.error)
    assert (error.reason, error.metadata["budget"]) == ("BUDGET_EXCEEDED", "max_cost_micros_usd")
    assert not provider.fake.requests


async def _at_once(suite: Suite, sessions: list[str]) -> tuple[int, int]:
    """Most runs of some sessions that executed, and that waited, at the same time."""
    changes = []
    for session in sessions:
        changes += [
            # Within one moment a slot is given back before it is given out again.
            (
                seconds(event.create_time),
                event.run_state_changed.state == RUNNING,
                event.run_state_changed,
            )
            for event in await suite.events(session)
            if event.WhichOneof("payload") == "run_state_changed"
        ]
    counts, most = {RUNNING: 0, SUSPENDED: 0}, {RUNNING: 0, SUSPENDED: 0}
    for *_, change in sorted(changes, key=lambda entry: entry[:2]):
        if change.previous_state in counts:
            counts[change.previous_state] -= 1
        if change.state in counts:
            counts[change.state] += 1
        most = {state: max(most[state], counts[state]) for state in counts}
    return most[RUNNING], most[SUSPENDED]
