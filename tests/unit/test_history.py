"""The history checker finds what is planted, and nothing in a history that is as promised.

A real engine makes one rich history; each test breaks a copy of it in one way.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from conveyor.common.v1 import content_pb2
from conveyor.events.v1 import event_pb2
from conveyor.scheduler.v1 import run_pb2
from scheduler_svc.domain import accounting, admission, settling, turns
from scheduler_svc.domain.emits import Appended
from scheduler_svc.domain.kernel import Config
from scheduler_svc.domain.leasing import Leased
from scheduler_svc.domain.records import (
    SECOND,
    AnnounceMode,
    Failure,
    NewRun,
    RetryPolicy,
    Usage,
    Wait,
    WaitKind,
)
from scheduler_svc.engine import Engine
from scheduler_svc.store.memory import MemoryStore
from svckit.clock import FakeClock
from tests.history import History, Limits, assert_holds, check, of_store

MESSAGE = content_pb2.Message(message_id="m", role=content_pb2.ROLE_USER)
RUNNING = run_pb2.RUN_STATE_RUNNING


class Play:
    """A gateway and a worker, by hand."""

    def __init__(self, engine: Engine, clock: FakeClock) -> None:
        self.engine, self.clock = engine, clock
        self.ids = itertools.count(1)
        self.accepted: dict[str, str] = {}

    async def send(self, session: str, parent: Leased | None = None, **more: Any) -> str:
        number = next(self.ids)
        request_id = f"q{number}"
        payload = run_pb2.Run(spec=run_pb2.RunSpec(session_key=session, queue="agent"))
        entry = payload.inputs.add(request_id=request_id)
        new = NewRun(
            run_id=f"r{number}",
            request_id=request_id,
            body_hash=b"h",
            session_key=session,
            customer_key=session,
            queue="agent",
            lane="subagent" if parent else "main",
            retry=RetryPolicy(initial_backoff=SECOND),
            payload=payload.SerializeToString(),
            payload_input=entry.SerializeToString(),
            message=MESSAGE.SerializeToString(),
            **more,
        )
        under = (parent.run.run_id, parent.lease.token) if parent else None
        found = await self.engine.submit(
            lambda k, now: admission.enqueue(
                k, new, now, parent_lease=under, tool_call_id=f"1.1.{number}" if under else ""
            ),
            requests=[request_id],
            sessions=[session] if session else [],
        )
        self.accepted[request_id] = found.run_id
        return found.run_id

    async def lease(self, count: int) -> list[Leased]:
        self.clock.advance(1)
        leased = await self.engine.lease("agent", "w", 1, count, 0)
        assert len(leased) == count
        return leased

    async def act(self, leased: Leased, verb: Callable[..., Any], **more: Any) -> None:
        self.clock.advance(1)
        run_id, token = leased.run.run_id, leased.lease.token
        await self.engine.submit(
            lambda k, now: verb(k, run_id, token, f"d{token}", now=now, **more) and None,
            runs=[run_id],
        )

    async def complete(self, leased: Leased) -> None:
        await self.act(
            leased,
            turns.complete,
            result=b"",
            reply=MESSAGE.SerializeToString(),
            mode=AnnounceMode.ALL,
            taken=[],
            steered_is_next_prompt=False,
        )

    async def wait(self, leased: Leased) -> None:
        wait = Wait(kind=WaitKind.CHILDREN)
        await self.act(leased, turns.suspend, wait=wait, hold_lane=True, interim=b"", taken=[])

    async def retry(self, leased: Leased) -> None:
        await self.act(
            leased,
            turns.fail,
            failure=Failure("TURN_FAILED", "no"),
            retryable=True,
            retry_after=0,
            taken=[],
        )
        self.clock.advance(2)

    async def write(self, leased: Leased, event_id: str) -> None:
        event = event_pb2.Event(event_id=event_id)
        event.note_added.code = "step"
        await self.engine.submit(
            lambda k, now: turns.append(
                k,
                leased.run.run_id,
                leased.lease.token,
                [Appended(event_id, event.SerializeToString())],
                now,
            )
        )

    async def use(self, run_id: str) -> None:
        usage = Usage(model_calls=1, input_tokens=10, output_tokens=5)
        await self.engine.submit(
            lambda k, now: accounting.report(k, run_id, f"u{run_id}", b"", usage, "", "m", now),
            requests=[f"u{run_id}"],
        )

    async def cancel(self, run_id: str) -> None:
        self.clock.advance(1)
        await self.engine.submit(
            lambda k, now: settling.cancel(k, k.runs[run_id], "stop", "request", now)
        )


@asynccontextmanager
async def playing() -> AsyncIterator[Play]:
    clock = FakeClock()
    store = MemoryStore()
    engine = Engine(store, Config(lanes={"main": 2, "subagent": 2}, lease_ttl=60 * SECOND), clock)
    await engine.start()
    task = asyncio.create_task(engine.run())
    try:
        yield Play(engine, clock)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await engine.close()


# r1 and r2 in session a; r1 spawns r3 and r4 and waits; r4 needs a second attempt; r5 in b is
# cancelled with its child r6 while both execute.
@pytest.fixture
async def history() -> History:
    async with playing() as play:
        await play.send("a")
        await play.send("a")
        (root,) = await play.lease(1)
        await play.write(root, "step-1")
        await play.use("r1")
        await play.send("", root)
        await play.send("", root)
        await play.wait(root)
        one, two = await play.lease(2)
        await play.use("r3")
        await play.retry(two)
        await play.complete(one)
        (two,) = await play.lease(1)
        await play.complete(two)
        (root,) = await play.lease(1)
        await play.complete(root)
        await play.send("b")
        second, flow = await play.lease(2)
        await play.send("", flow)
        (leaf,) = await play.lease(1)
        await play.cancel("r5")
        await play.complete(leaf)
        await play.complete(flow)
        await play.complete(second)
        found = await of_store(play.engine.store)
        found.accepted = play.accepted
    found.limits = Limits({"main": 2, "subagent": 2})
    found.finished = True
    return found


def at(history: History, run_id: str, kind: str, number: int = 0) -> event_pb2.Event:
    """The number-th event of a kind, or change to a state, of a run."""
    return [
        event
        for event in history.events
        if event.run_id == run_id
        and (
            event.WhichOneof("payload") == kind
            or f"RUN_STATE_{kind}" == run_pb2.RunState.Name(event.run_state_changed.state)
        )
    ][number]


def renumber(history: History) -> None:
    """Closes the gaps that taking events out, or adding some, has left."""
    heads: dict[str, int] = {}
    for position, event in enumerate(history.events, 1):
        event.position = position
        heads[event.session_key] = event.sequence = heads.get(event.session_key, 0) + 1


def move(history: History, event: event_pb2.Event, before: event_pb2.Event) -> None:
    history.events.remove(event)
    history.events.insert(history.events.index(before), event)
    renumber(history)


def drop(history: History, event: event_pb2.Event) -> None:
    history.events.remove(event)
    renumber(history)


def again(history: History, event: event_pb2.Event) -> event_pb2.Event:
    """Repeats an event right after itself."""
    twin = copy.deepcopy(event)
    twin.event_id += "-again"
    history.events.insert(history.events.index(event) + 1, twin)
    renumber(history)
    return twin


def test_a_history_as_promised_is_fine(history: History) -> None:
    states = {run_id: run_pb2.RunState.Name(row.state) for run_id, row in history.runs.items()}  # type: ignore[arg-type]
    assert {s.removeprefix("RUN_STATE_") for s in states.values()} == {"SUCCEEDED", "CANCELLED"}
    assert_holds(history)


def test_the_message_tells_the_story_of_the_run(history: History) -> None:
    drop(history, at(history, "r4", "SUCCEEDED"))
    with pytest.raises(AssertionError, match="story of r4:") as caught:
        assert_holds(history)
    assert "running -> queued 1.1" in str(caught.value)


def two_at_once(h: History) -> None:
    move(h, at(h, "r2", "RUNNING"), before=at(h, "r1", "SUSPENDED"))


def one_while_the_lane_is_held(h: History) -> None:
    move(h, at(h, "r2", "RUNNING"), before=at(h, "r1", "QUEUED", 1))


def out_of_order(h: History) -> None:
    h.runs["r1"].order, h.runs["r2"].order = 2, 1


def over_the_limit(h: History) -> None:
    h.limits = Limits({"main": 2, "subagent": 1})


def never_ended(h: History) -> None:
    drop(h, at(h, "r2", "SUCCEEDED"))
    h.runs["r2"].state = RUNNING


def ended_twice(h: History) -> None:
    again(h, at(h, "r2", "SUCCEEDED"))


def goes_on_after_its_end(h: History) -> None:
    move(h, at(h, "r2", "SUCCEEDED"), before=at(h, "r2", "RUNNING"))


def stored_otherwise(h: History) -> None:
    h.runs["r2"].state = run_pb2.RUN_STATE_FAILED


def accepted_and_lost(h: History) -> None:
    h.accepted["q99"] = "r99"


def a_run_that_is_not_stored(h: History) -> None:
    del h.runs["r2"]
    del h.accepted["q2"]


def replied_twice(h: History) -> None:
    reply = next(e for e in h.events if e.message_completed.kind == event_pb2.MESSAGE_KIND_REPLY)
    again(h, reply)


def an_old_attempt_writes(h: History) -> None:
    late = copy.deepcopy(at(h, "r1", "note_added"))
    late.event_id = "late"
    h.events.insert(h.events.index(at(h, "r1", "SUCCEEDED")), late)
    renumber(h)


def an_attempt_is_skipped(h: History) -> None:
    at(h, "r4", "RUNNING", 1).run_state_changed.attempt = 3


def one_request_two_runs(h: History) -> None:
    h.runs["r2"].requests = ["q1"]
    del h.accepted["q2"]


def told_another_run(h: History) -> None:
    h.accepted["q1"] = "r2"


def spawned_twice(h: History) -> None:
    again(h, at(h, "r1", "child_spawned"))


def resumed_too_early(h: History) -> None:
    for event in (at(h, "r1", "QUEUED", 1), at(h, "r1", "RUNNING", 1)):
        move(h, event, before=at(h, "r1", "child_announced", 1))


def resumed_twice(h: History) -> None:
    resumed = at(h, "r1", "QUEUED", 1)
    at_start = h.events.index(at(h, "r1", "RUNNING", 1)) + 1
    waits = copy.deepcopy(at(h, "r1", "SUSPENDED"))
    twins = [waits, copy.deepcopy(resumed), copy.deepcopy(at(h, "r1", "RUNNING", 1))]
    twins[2].run_state_changed.turn = 3
    for number, twin in enumerate(twins):
        twin.event_id = f"twin-{number}"
    h.events[at_start:at_start] = twins
    renumber(h)


def a_wait_goes_on(h: History) -> None:
    resumed, ran = at(h, "r1", "QUEUED", 1), at(h, "r1", "RUNNING", 1)
    resumed.create_time.FromMicroseconds(ran.create_time.ToMicroseconds())
    move(h, resumed, before=ran)


def ended_before_its_child(h: History) -> None:
    move(h, at(h, "r5", "CANCELLED"), before=at(h, "r5", "child_announced"))


def a_child_told_twice(h: History) -> None:
    again(h, at(h, "r1", "child_announced"))


def a_child_never_told(h: History) -> None:
    drop(h, at(h, "r5", "child_announced"))


def a_child_told_otherwise(h: History) -> None:
    at(
        h, "r5", "child_announced"
    ).child_announced.announcement.result.status = run_pb2.RUN_STATE_SUCCEEDED


def a_gap(h: History) -> None:
    h.events.remove(at(h, "r1", "note_added"))


def out_of_position(h: History) -> None:
    h.events[3].position = 99


def an_event_id_twice(h: History) -> None:
    events = [e for e in h.events if e.session_key == "a"]
    events[3].event_id = events[2].event_id


def a_watch_with_a_gap(h: History) -> None:
    events = [e for e in h.events if e.session_key == "a"]
    h.watched = [events[:3] + events[4:]]


def a_watch_of_something_else(h: History) -> None:
    h.watched = [copy.deepcopy([e for e in h.events if e.session_key == "a"])]
    h.watched[0][2].event_id = "other"


def starts_after_the_cancel(h: History) -> None:
    move(h, at(h, "r6", "RUNNING"), before=at(h, "r6", "CANCELLED"))
    move(h, at(h, "r5", "CANCELLING"), before=at(h, "r6", "RUNNING"))


def spawned_after_the_cancel(h: History) -> None:
    move(h, at(h, "r5", "child_spawned"), before=at(h, "r5", "child_announced"))


def usage_that_was_not_reported(h: History) -> None:
    drop(h, at(h, "r1", "usage_reported"))


def usage_that_the_tree_lacks(h: History) -> None:
    h.runs["r1"].tree_usage.model_calls -= 1


def a_child_too_deep(h: History) -> None:
    h.runs["r6"].depth = 2


def descendants_not_counted(h: History) -> None:
    h.runs["r1"].descendants = 1


def waiting_counts_as_executing(h: History) -> None:
    h.runs["r1"].executed += h.runs["r1"].suspended


def succeeded_while_it_waited(h: History) -> None:
    ended = at(h, "r1", "SUCCEEDED")
    for event in (at(h, "r1", "QUEUED", 1), at(h, "r1", "RUNNING", 1)):
        drop(h, event)
    ended.run_state_changed.previous_state = run_pb2.RUN_STATE_SUSPENDED


@pytest.mark.parametrize(
    ("invariant", "plant"),
    [
        (1, two_at_once),
        (1, one_while_the_lane_is_held),
        (2, out_of_order),
        (3, over_the_limit),
        (5, never_ended),
        (5, ended_twice),
        (5, goes_on_after_its_end),
        (5, stored_otherwise),
        (5, accepted_and_lost),
        (5, a_run_that_is_not_stored),
        (5, replied_twice),
        (6, an_old_attempt_writes),
        (6, an_attempt_is_skipped),
        (7, one_request_two_runs),
        (7, told_another_run),
        (7, spawned_twice),
        (8, resumed_too_early),
        (8, resumed_twice),
        (8, a_wait_goes_on),
        (9, ended_before_its_child),
        (9, a_child_told_twice),
        (9, a_child_never_told),
        (9, a_child_told_otherwise),
        (10, a_gap),
        (10, out_of_position),
        (10, an_event_id_twice),
        (10, a_watch_with_a_gap),
        (10, a_watch_of_something_else),
        (11, starts_after_the_cancel),
        (11, spawned_after_the_cancel),
        (12, usage_that_was_not_reported),
        (12, usage_that_the_tree_lacks),
        (12, a_child_too_deep),
        (12, descendants_not_counted),
        (15, waiting_counts_as_executing),
        (16, succeeded_while_it_waited),
    ],
)
def test_a_planted_violation_is_found(
    history: History, invariant: int, plant: Callable[[History], None]
) -> None:
    plant(history)
    found = check(history)
    assert invariant in {violation.invariant for violation in found}, [str(v) for v in found]


def test_limits_as_far_as_they_are_known() -> None:
    limits = Limits({"main": 4})
    limits.changed("main", 1, asked=100, answered=110)
    limits.unanswered("main", 2, asked=200)
    assert [limits.most("main", t) for t in (99, 105, 111, 205)] == [4, 4, 1, 2]
    assert limits.most("other", 5) is None
