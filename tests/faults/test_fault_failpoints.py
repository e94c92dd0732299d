"""Services are killed at chosen points of their work, under load; the history then says whether
anything was lost, doubled or out of order.

One suite lives through all points, one after the other: what a kill spoils shows later at the
latest, in the history of the whole.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from conveyor.events.v1 import event_pb2
from conveyor_client import ConveyorClient
from svckit.testing import eventually
from tests.history import assert_holds, of_sqlite
from tests.system.harness import SUCCEEDED, Suite, chat, nothing_unfinished, replies, running

# One of the scheduler and one of another service at a time.
ROUNDS = [
    ("scheduler.accept.unanswered", "agent.step.before"),
    ("scheduler.commit.before", "gateway.cursor.before"),
    ("scheduler.commit.open", "agent.step.stored"),
    ("scheduler.commit.after", "gateway.cursor.moved"),
    ("scheduler.announcement.before", "agent.spawn.answered"),
    ("scheduler.announcement.after", "gateway.accept.unanswered"),
    ("scheduler.lease.unanswered", "worker.end.unsent"),
    ("scheduler.end.unanswered", "worker.end.sent"),
]
DELEGATED = "[[spawn: [[reply: one]]]] [[spawn: [[sleep: 100ms]] [[reply: two]]]]"
CUSTOMERS = 3


@dataclass
class Load:
    """What was asked of a suite, and what came back."""

    suite: Suite
    points: Path
    accepted: dict[str, str] = field(default_factory=dict)
    watched: list[list[event_pb2.Event]] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def is_back(self, service: str, after: int) -> bool:
        """Whether the supervisor has said so since that line."""
        return any(f"{service} is back after" in line for line in self.suite.lines[after:])

    async def ask(self, client: ConveyorClient, customer: int) -> None:
        """A delegated request: its answer joins what both children said, once."""
        number = next(self.numbers)
        key, request_id = f"agent:main:web:direct:c{customer}", f"fail-{number}"
        told = await chat(client, DELEGATED, session_key=key, request_id=request_id)
        assert told.ended.state == SUCCEEDED
        assert "one" in told.answer
        assert "two" in told.answer
        self.accepted[request_id] = told.run_id
        self.watched.append([event for event in told.events if event.session_key == key])


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    directory, points = tmp_path_factory.mktemp("failpoints"), tmp_path_factory.mktemp("points")
    with running(directory, environ={"CONVEYOR_FAILPOINTS": str(points)}) as suite:
        yield Load(suite, points)


@pytest.fixture
async def client(load: Load) -> AsyncIterator[ConveyorClient]:
    async with load.suite.client() as open_client:
        yield open_client


@pytest.mark.parametrize("points", ROUNDS, ids=" ".join)
async def test_services_die_at_points_of_their_work(
    load: Load, client: ConveyorClient, points: tuple[str, str]
) -> None:
    before = len(load.suite.lines)
    for point in points:
        # Not the first passage, so that something is under way.
        (load.points / point).write_text("kill 2")
    async with asyncio.TaskGroup() as group:
        for customer in range(CUSTOMERS):
            group.create_task(load.ask(client, customer))
    assert not list(load.points.iterdir()), "a point was not passed"
    for point in points:
        service = point.partition(".")[0].replace("worker", "agent")
        await eventually(lambda name=service: load.is_back(name, before), timeout=60)


async def test_the_history_of_all_that_is_as_promised(load: Load, client: ConveyorClient) -> None:
    assert len(load.accepted) == CUSTOMERS * len(ROUNDS)
    await nothing_unfinished(client)
    history = await of_sqlite(load.suite.store / "scheduler.db")
    history.accepted, history.finished = load.accepted, True
    assert_holds(history)
    assert len(history.runs) == 3 * CUSTOMERS * len(ROUNDS), "no child was spawned twice"
    for customer in range(CUSTOMERS):
        log = await load.suite.events(f"agent:main:web:direct:c{customer}")
        assert len(replies(log)) == len(ROUNDS)
    for seen in load.watched:
        sequences = [event.sequence for event in seen]
        assert sequences == sorted(set(sequences)), "a client saw an event twice, or out of order"
