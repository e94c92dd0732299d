"""`kill -9` of the agent at every step boundary of a request with three sub-agents.

A first request tells which boundaries there are: every stored step, before and after; every call
that a turn makes, before it leaves and when its answer is here; the model's too. Then, for each of
them, a request of its own is killed there. A boundary that a later change adds is found and tested
by itself.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from conveyor_client import ConveyorClient
from svckit.testing.fake_openai import Answer, ChatRequest, Reply, ToolCall
from tests.faults.apart import Apart, running_apart
from tests.history import assert_holds, of_sqlite
from tests.system.harness import SUCCEEDED, Chat, chat, payloads, replies
from tests.system.provider import Provider, answered, last_user, provider_thread, spawn

CHILDREN = ("left", "middle", "right")
TURNS = ("root.1", "left.1", "middle.1", "right.1", "root.2")
STEPS = ("split", *CHILDREN, "join")
PATIENCE_SECONDS = 90.0
CALM_REQUESTS = 4
MOST_TRIES = 8
EXPECTED = {
    "worker.turn.leased",
    *(f"agent.{what}" for what in ("begin.before", "begin.stored", "step.before", "step.stored")),
    "agent.model.unsent",
    "agent.model.answered",
    *(
        f"call.{method}.{moment}"
        for method in (
            *("Reserve", "Report", "AppendEvents", "EnqueueRuns", "SuspendRun", "CompleteRuns"),
        )
        for moment in ("unsent", "answered")
    ),
}
"""Points that a request must have, whatever others come with time."""


@dataclass(frozen=True, order=True)
class Boundary:
    """A point of one turn, and how often the turn passes it until then, this time included."""

    turn: str
    point: str
    passage: int

    def __str__(self) -> str:
        return f"{self.turn} {self.point} {self.passage}"


@dataclass(frozen=True)
class Passage:
    """One process passes a point in one turn."""

    process: int
    turn: str
    point: str


@dataclass
class Trials:
    """Requests, each with a number of its own, and what is known of them."""

    apart: Apart
    points: Path
    provider: Provider
    number: int = 0
    accepted: dict[str, str] = field(default_factory=dict)

    def model(self, request: ChatRequest) -> Answer:
        text = last_user(request)
        found = re.fullmatch(r"request (\d+): (\w+)", text)
        assert found, text
        number, what = found.groups()
        if what in CHILDREN:
            return Reply(f"{what} {number} is done")
        if not answered(request):
            tasks = [f"request {number}: {child}" for child in CHILDREN]
            calls = [
                spawn(task, label=f"{child}-{number}")
                for task, child in zip(tasks, CHILDREN, strict=True)
            ]
            return Reply("I split this.", [ToolCall("agents_list"), *calls])
        results = " ".join(request.texts("tool"))
        done = [child for child in CHILDREN if f"{child} {number} is done" in results]
        return Reply(f"Together {number}: {' '.join(done)}")

    async def run(self, client: ConveyorClient) -> tuple[int, Chat]:
        """Send the next request and follow it to its end."""
        number = self.number
        session_key = f"agent:main:grpc:direct:root-{number}"
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                told = await chat(
                    client,
                    f"request {number}: everything",
                    session_key=session_key,
                    request_id=f"request-{number}",
                )
        except TimeoutError:
            history = await of_sqlite(self.apart.store / "scheduler.db")
            flow = [
                r.run_id for r in history.runs.values() if r.session_key.startswith(session_key)
            ]
            stories = "\n".join(f"{run}:\n{history.story(run)}" for run in flow)
            raise AssertionError(f"request {number} has no end:\n{stories}") from None
        self.accepted[f"request-{number}"] = told.run_id
        return number, told

    def arm(self, *boundaries: Boundary) -> dict[Boundary, Path]:
        """Have the agent killed when the next request passes each of these; a file each says that
        it was not yet."""
        self.number += 1
        files = {}
        for boundary in boundaries:
            name, turn = boundary.turn.split(".")
            file = self.points / f"{boundary.point}@{name}-{self.number}.{turn}"
            file.write_text(f"kill {boundary.passage}")
            files[boundary] = file
        return files

    def passages(self, number: int) -> list[Passage]:
        """What the turns of a request passed, in order."""
        found = []
        for line in (self.points / "passed").read_text().splitlines():
            process, _, passage = line.partition(" ")
            point, _, place = passage.rpartition("@")
            name, _, rest = place.rpartition("-")
            whose, _, turn = rest.partition(".")
            if whose == str(number):
                found.append(Passage(int(process), f"{name}.{turn}", point))
        return found

    def boundaries(self, number: int) -> list[Boundary]:
        """The boundaries that a request which was left alone passed."""
        counts: Counter[tuple[str, str]] = Counter()
        found = []
        for passage in self.passages(number):
            key = (passage.turn, passage.point)
            counts[key] += 1
            found.append(Boundary(*key, counts[key]))
        return found

    def asked(self, number: int) -> dict[str, int]:
        """How often the model was asked for each step of a request."""
        counts: Counter[str] = Counter()
        for request in self.provider.fake.requests:
            found = re.fullmatch(rf"request {number}: (\w+)", last_user(request))
            if found and found[1] in CHILDREN:
                counts[found[1]] += 1
            elif found:
                counts["join" if answered(request) else "split"] += 1
        return dict(counts)


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trials]:
    points = tmp_path_factory.mktemp("points")
    (points / "passed").touch()
    with provider_thread() as provider:
        toml = f"""
[agents.defaults]
model = "local:big"
[runs]
max_attempts = 10
[runs.backoff]
initial_seconds = 0
[providers.local]
base_url = "{provider.fake.base_url}"
"""
        environ = {"CONVEYOR_FAILPOINTS": str(points)}
        with running_apart(tmp_path_factory.mktemp("boundaries"), toml, environ) as apart:
            found = Trials(apart, points, provider)
            provider.rules = [found.model]
            yield found
        provider.fake.assert_clean()


@pytest.fixture
async def client(trials: Trials) -> AsyncIterator[ConveyorClient]:
    async with trials.apart.client() as open_client:
        yield open_client


@pytest.mark.timeout(480)
async def test_the_agent_is_killed_at_every_boundary(
    trials: Trials, client: ConveyorClient
) -> None:
    todo = await boundaries_of_calm_requests(trials, client)
    assert {boundary.turn for boundary in todo} == set(TURNS)
    assert {boundary.point for boundary in todo} >= EXPECTED, "a point is not passed any more"
    tries: Counter[Boundary] = Counter()
    killed: set[Boundary] = set()
    left = list(todo)
    while left:
        # One in each turn at most, and later ones alone: what one kill finishes or repeats may
        # take another's boundary away, as may children that end at the same moment.
        chosen = one_of_each_turn(left) if len(left) > len(TURNS) else left[:1]
        files = trials.arm(*chosen)
        number, told = await trials.run(client)
        deaths = [boundary for boundary in chosen if not files[boundary].exists()]
        for file in files.values():
            file.unlink(missing_ok=True)
        await check(trials, client, number, told, deaths)
        killed.update(deaths)
        tries.update(chosen)
        late = [boundary for boundary in chosen if boundary not in killed]
        assert all(tries[boundary] < MOST_TRIES for boundary in late), f"never passed: {late}"
        left = [boundary for boundary in left if boundary not in chosen] + late
    assert killed == set(todo)
    lives = trials.apart.said("agent").count('"event": "ready"')
    assert lives == len(killed) + 1, "every kill ended a process, and another one took over"


async def boundaries_of_calm_requests(trials: Trials, client: ConveyorClient) -> list[Boundary]:
    """Those that every one of some requests which were left alone passed.

    Text is shown every 50 ms while it comes, so there may be a call more in one than in another.
    """
    found = []
    for _ in range(CALM_REQUESTS):
        trials.arm()
        number, told = await trials.run(client)
        await check(trials, client, number, told, [])
        found.append(trials.boundaries(number))
    always = set(found[0]).intersection(*found[1:])
    return [boundary for boundary in found[0] if boundary in always]


def one_of_each_turn(left: list[Boundary]) -> list[Boundary]:
    """The first of each turn."""
    first: dict[str, Boundary] = {}
    for boundary in left:
        first.setdefault(boundary.turn, boundary)
    return list(first.values())


async def check(
    trials: Trials, client: ConveyorClient, number: int, told: Chat, deaths: list[Boundary]
) -> None:
    """One answer, three children, and no call for a step that a process finished."""
    case = f"request {number}, killed at {', '.join(map(str, deaths)) or 'no boundary'}"
    assert told.ended.state == SUCCEEDED, f"{case}: {told.ended.error.message}"
    assert told.answer == f"Together {number}: left middle right", case
    flow = await client.flow(told.run_id)
    assert sorted(run.spec.label for run in flow.nodes) == sorted(
        ["", *(f"{child}-{number}" for child in CHILDREN)]
    ), case
    assert {run.state for run in flow.nodes} == {SUCCEEDED}, case
    assert [run.spawn.parent_run_id for run in flow.nodes] == ["", *[told.run_id] * 3], case
    assert replies(told.events) == [told.answer], case
    assert len(payloads(told.events, "child_announced")) == 3, case
    # What the provider counted, beside what the processes had stored when they died.
    asked, passages = trials.asked(number), trials.passages(number)
    for step, turn in zip(STEPS, TURNS, strict=True):
        assert 1 <= asked[step] <= begun(passages, turn), (
            f"{case}: {step} asked {asked[step]} times"
        )
    if not deaths:
        assert set(asked.values()) == {1}, case


def begun(passages: list[Passage], turn: str) -> int:
    """How many calls of the model a turn may have made: one, and one more for each process that
    died after it had begun a call and before it had stored the reply."""
    mine = [passage for passage in passages if passage.turn == turn]
    processes = list(dict.fromkeys(passage.process for passage in mine))
    count = 0
    for process in processes:
        points = [passage.point for passage in mine if passage.process == process]
        if "agent.model.unsent" in points:
            count += 1
            called = points.index("agent.model.unsent")
            if "agent.step.stored" in points[called:]:
                break
    assert count, f"{turn} made no call"
    return count


async def test_the_history_of_all_that_is_as_promised(
    trials: Trials, client: ConveyorClient
) -> None:
    history = await of_sqlite(trials.apart.store / "scheduler.db")
    history.accepted, history.finished = trials.accepted, True
    assert_holds(history)
    assert len(history.runs) == 4 * len(trials.accepted), "no tree was forked"
