"""Forty customers at once, and one flow with a budget, while workers are killed: nobody's text
reaches another's prompt, and no more is granted than the budget has."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from conveyor.scheduler.v1 import run_pb2
from conveyor_client import ConveyorClient
from svckit.grpc.status import from_proto
from svckit.testing.fake_openai import Answer, ChatRequest, Failure, Reply, ToolCall
from tests.faults.apart import Apart, started
from tests.faults.tap import Ledger, tapped
from tests.history import assert_holds, of_sqlite
from tests.system.harness import (
    SUCCEEDED,
    chat,
    free_addresses,
    nothing_unfinished,
    payloads,
    replies,
)
from tests.system.provider import Provider, answered, last_user, provider_thread, spawn

CUSTOMERS = 40
MARKER = re.compile(r"secret\d{3}x")
OTHERS = re.compile(r"There is no sub-agent 'agent:main:grpc:direct:c\d+' of yours")
KILLS = {"agent.step.before": 60, "call.EnqueueRuns.answered": 4}
"""Points at which a worker is killed, and after how many passages."""
BUDGET, RESERVE = 20_000, 0.25
BELOW = 15_000
"""What of the budget is there for others than the root's answer."""
WORKERS = 5
USED = 900
"""Tokens of each call below the root: less than is reserved for it."""


@dataclass
class Place:
    """The processes, the provider, and the account that is kept while a test wants one."""

    apart: Apart
    points: Path
    provider: Provider
    ledgers: list[Ledger]
    accepted: dict[str, str] = field(default_factory=dict)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    points = tmp_path_factory.mktemp("points")
    ledgers: list[Ledger] = []
    with ExitStack() as stack:
        provider = stack.enter_context(provider_thread())
        toml = f"""
[agents.defaults]
model = "local:big"
[agents.list.main]
[agents.list.frugal.subagents]
max_children_per_agent = {WORKERS}
budget = {{ max_tokens = {BUDGET}, reply_reserve = {RESERVE} }}
[runs]
max_attempts = 10
[runs.backoff]
initial_seconds = 0.05
[providers.local]
base_url = "{provider.fake.base_url}"
"""
        [between] = free_addresses(1)
        apart = Apart(
            tmp_path_factory.mktemp("customers"),
            toml,
            {"CONVEYOR_FAILPOINTS": str(points)},
            worker_to=between,
        )
        stack.enter_context(
            tapped(between, apart.scheduler, lambda _: ledgers[-1] if ledgers else None)
        )
        stack.enter_context(started(apart))
        yield Place(apart, points, provider, ledgers)


@pytest.fixture
def provider(place: Place) -> Iterator[Provider]:
    place.provider.reset()
    yield place.provider
    place.provider.fake.assert_clean()


@pytest.fixture
async def client(place: Place, provider: Provider) -> AsyncIterator[ConveyorClient]:
    async with place.apart.client() as open_client:
        yield open_client
        await nothing_unfinished(open_client)


# Nobody's text reaches another's prompt


def marker(number: int) -> str:
    return f"secret{number:03}x"


def leaks(requests: Sequence[ChatRequest]) -> list[str]:
    """What is wrong with the prompts: each must hold one customer's marker, and no other."""
    found = []
    for number, request in enumerate(requests):
        known = sorted(set(MARKER.findall(json.dumps(request.body))))
        if len(known) != 1:
            found.append(f"prompt {number} holds {known or 'nothing of anybody'}")
    return found


def test_the_look_for_leaks_finds_one() -> None:
    def request(*texts: str) -> ChatRequest:
        return ChatRequest({"messages": [{"role": "user", "content": t} for t in texts]}, {})

    clean = [request("a secret001x", "secret001x again"), request("secret002x")]
    assert leaks(clean) == []
    assert leaks([*clean, request("secret001x", "the other is secret002x")]) == [
        "prompt 2 holds ['secret001x', 'secret002x']"
    ]
    assert leaks([request("hello")]) == ["prompt 0 holds nothing of anybody"]


class Curious:
    """A model that delegates, looks at every session it can name, and repeats all it is told.

    A provider in some trouble: some calls are refused at first, some meet too many others.
    """

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def __call__(self, request: ChatRequest) -> Answer:
        text = last_user(request)
        own = marker_of(text)
        key = f"{text}{len(request.messages)}"
        self.calls[key] += 1
        if self.calls[key] == 1 and sum(self.calls.values()) % 9 == 0:
            return Failure(503, retry_after=0.01)
        if text.startswith("part of"):
            return Reply(f"a part for {own}")
        if text.startswith("ask"):
            if not answered(request):
                return Reply(f"I split {own}.", self._tools(own))
            return Reply("Told: " + " ".join(request.texts("tool")))
        return Reply(f"Noted for {own}: " + " ".join(request.texts("assistant"))[:2000])

    def _tools(self, own: str) -> list[ToolCall]:
        number = int(own[6:9])
        one, other = (f"agent:main:grpc:direct:c{(number + n) % CUSTOMERS}" for n in (1, 7))
        return [
            ToolCall("sessions_list"),
            ToolCall("sessions_history", {"session": one}),
            ToolCall("subagents", {"action": "log", "target": other}),
            spawn(f"part of {own}"),
            spawn(f"part of {own} later", wait=False),
        ]


def marker_of(text: str) -> str:
    """The marker in a text that must have one."""
    found = MARKER.search(text)
    assert found, text
    return found[0]


@pytest.mark.timeout(180)
async def test_no_prompt_ever_holds_the_text_of_another_customer(
    place: Place, client: ConveyorClient, provider: Provider
) -> None:
    provider.rules = [Curious()]
    for point, passages in KILLS.items():
        (place.points / point).write_text(f"kill {passages}")

    async def customer(number: int) -> None:
        session_key = f"agent:main:grpc:direct:c{number}"
        for what in ("ask", "then"):
            request_id = f"{what}-{number}"
            told = await chat(
                client,
                f"{what} {marker(number)}",
                session_key=session_key,
                customer_key=f"c{number}",
                request_id=request_id,
            )
            place.accepted[request_id] = told.run_id
            assert told.ended.state == SUCCEEDED, told.ended.error.message
            assert set(MARKER.findall(told.answer)) == {marker(number)}
            for event in told.events:
                assert set(MARKER.findall(str(event))) <= {marker(number)}

    async with asyncio.TaskGroup() as group:
        for number in range(CUSTOMERS):
            group.create_task(customer(number))
    assert not list(place.points.iterdir()), "a worker was not killed"
    requests = provider.fake.requests
    assert leaks(requests) == []
    seen = Counter(marker_of(json.dumps(request.body)) for request in requests)
    assert set(seen) == {marker(number) for number in range(CUSTOMERS)}
    assert min(seen.values()) >= 5, "two parts, and three prompts of its own"
    # What a curious model was told about others is that they are none of its own.
    shown = " ".join(text for request in requests for text in request.texts("tool"))
    assert len(OTHERS.findall(shown)) >= 2 * CUSTOMERS
    for number in range(CUSTOMERS):
        log = await place.apart.events(f"agent:main:grpc:direct:c{number}")
        assert len(replies(log)) >= 2
        assert len(payloads(log, "child_announced")) == 2


# A budget


async def test_what_is_settled_and_reserved_never_passes_the_budget_of_a_flow(
    place: Place, client: ConveyorClient, provider: Provider
) -> None:
    """Five children at once use all there is; the root answers from what was kept for it."""

    ledger, rounds = Ledger(), Counter[int]()

    async def dig(number: int) -> Answer:
        # Answered together, so that all that may ask hold a reservation at the same time.
        rounds[number] += 1
        for _ in range(1000):
            if rounds[number] + len(ledger.refused) >= WORKERS:
                break
            await asyncio.sleep(0.005)
        # There is no such tool, so it asks again, until it may not.
        return Reply("", [ToolCall("shovel")], input_tokens=USED - 100, output_tokens=100)

    def model(request: ChatRequest) -> Answer | Awaitable[Answer]:
        if last_user(request).startswith("dig"):
            return dig(len(request.texts("tool")))
        if answered(request):
            return Reply("Told: " + " ".join(request.texts("tool")), input_tokens=500)
        return Reply("", [spawn(f"dig {n}") for n in range(WORKERS)], input_tokens=500)

    provider.rules = [model]
    place.ledgers.append(ledger)
    told = await chat(client, "find gold", session_key="agent:frugal:grpc:direct:a")
    assert told.ended.state == SUCCEEDED
    of_root = ledger.totals.pop(told.run_id)
    of_children = [total for totals in ledger.totals.values() for total in totals]
    assert max(of_root) <= BUDGET
    assert BELOW - 2 * USED < max(of_children) <= BELOW, "they used what there was, and no more"
    assert ledger.most_at_once == WORKERS, "they competed"

    # The refusal names the budget, to the model as well.
    flow = await client.flow(told.run_id)
    root, *children = flow.nodes
    assert [child.state for child in children] == [run_pb2.RUN_STATE_FAILED] * WORKERS
    for child in children:
        error = from_proto(child.error)
        assert (error.reason, error.metadata["budget"], error.metadata["runId"]) == (
            "BUDGET_EXCEEDED",
            "max_tokens",
            root.run_id,
        )
    assert len(ledger.refused) == WORKERS
    assert told.answer.count(f"the budget of {BELOW} tokens") == WORKERS

    # What was counted is what the provider was asked for, and what the log adds up to.
    asked = len(provider.asked("dig"))
    paid = asked * USED + (len(provider.fake.requests) - asked) * 505
    assert ledger.settled == paid
    usage = flow.flow.usage
    assert usage.input_tokens + usage.output_tokens == paid <= BUDGET


async def test_the_history_of_all_that_is_as_promised(place: Place, client: ConveyorClient) -> None:
    history = await of_sqlite(place.apart.store / "scheduler.db")
    history.accepted, history.finished = place.accepted, True
    assert_holds(history)
