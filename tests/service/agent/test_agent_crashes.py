"""A crash between any two steps: the next attempt goes on, and nothing finished is done twice."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from agent_svc.domain import steps as s
from agent_svc.store.transcripts import Transcripts
from conveyor.scheduler.v1 import worker_service_pb2 as ws
from svckit.errors import LeaseLost, StoreUnavailable
from svckit.testing.fake_openai import FakeOpenAI, Reply, ToolCall
from svckit.turn import Complete, Fail, LeasedTurn, Outcome, Release, Suspend
from tests.service.agent.fake_scheduler import FakeScheduler
from tests.service.agent.workbench import Bench, Crash, a_bench

Lease = Callable[[int], ws.LeasedRun]


@pytest.fixture
async def bench(
    scheduler: FakeScheduler, provider: FakeOpenAI, tmp_path: Path, database_url: str
) -> AsyncIterator[Bench]:
    config = tmp_path / "conveyor.toml"
    config.write_text(
        '[agents.defaults]\nmodel = "fake:m"\n[agents.defaults.subagents]\nannounce = "each"\n'
        '[agents.defaults.guard]\nfallback_model = "fake:strong"\n'
        f'[providers.fake]\nbase_url = "{provider.base_url}"\n'
    )
    async with a_bench(scheduler, config, database_url) as made:
        yield made


def answer(request: Any) -> Reply:
    """A model that lists agents, spawns in the background and waits, then sums up."""
    tools = len(request.texts("tool"))
    if tools == 0:
        return Reply("looking", [ToolCall("agents_list")])
    if tools == 1:
        return Reply("", [ToolCall("sessions_spawn", {"task": "b", "wait": False})])
    if tools == 2:
        calls = [ToolCall("sessions_spawn", {"task": task}) for task in ("x", "y")]
        return Reply("", [calls[0], ToolCall("agents_list"), calls[1]])
    return Reply("summed up")


async def play(bench: Bench, lease: Callable[[int], ws.LeasedRun], die_at: int) -> Outcome:
    """Attempt a turn; crash it once at the given store; attempt it again."""
    bench.store.die_at = die_at
    with contextlib.suppress(Crash):
        return await bench.attempt(lease(1))
    bench.store.die_at = 0
    return await bench.attempt(lease(2))


def at_any(*points: int) -> pytest.MarkDecorator:
    """Dies at each on SQLite, and at every third on PostgreSQL: what a store does has its tests."""
    params = [pytest.param(n, "sqlite", id=f"sqlite-{n}") for n in points]
    params += [pytest.param(n, "postgres", id=f"postgres-{n}") for n in points[1::3]]
    return pytest.mark.parametrize(("die_at", "database_url"), params, indirect=["database_url"])


@pytest.mark.parametrize("after", [True, False], ids=["after", "before"])
@at_any(*range(1, 9))
async def test_a_crash_at_any_step(
    bench: Bench, provider: FakeOpenAI, scheduler: FakeScheduler, die_at: int, after: bool
) -> None:
    provider.when(lambda _: True, answer)
    bench.store.after = after

    outcome = await play(bench, lambda attempt: scheduler.leased("go", attempt=attempt), die_at)
    assert isinstance(outcome, Suspend)
    assert list(outcome.request.condition.children.run_ids) == ["C2", "C3"]
    resumption = scheduler.resumption(
        scheduler.child_result("C2", "xx"), scheduler.child_result("C3", "yy")
    )
    last = await play(
        bench,
        lambda attempt: scheduler.leased("go", turn=2, attempt=attempt, resumption=resumption),
        max(0, die_at - 7),
    )
    assert isinstance(last, Complete)
    assert last.result is not None
    assert last.result.reply.parts[0].text == "summed up"

    # Every step was stored once, and a child started once, whatever happened.
    kinds = [s.kind_of(record) for record in bench.store.stored]
    assert kinds == [
        *("replied", "returned"),
        *("replied", "spawned"),
        *("replied", "returned", "spawned", "spawned"),
        "replied",
    ]
    assert len(scheduler.children) == 3
    # A finished model call is never made again; only one in flight at the crash may be.
    in_flight = not after and die_at in (1, 3, 5, 8)
    assert len(provider.requests) == 4 + in_flight
    assert sorted(r for r in scheduler.reports if r.count("/") == 1) == [
        "R1/1.2",
        "R1/1.4",
        "R1/1.6",
        "R1/2.2",
    ]
    # The log tells the same story as without a crash.
    started = {text for text in scheduler.texts() if "started" in text}
    ended = {text for text in scheduler.texts() if "ended" in text}
    calls = ["1.2.1", "1.4.1", "1.6.1", "1.6.2", "1.6.3"]
    assert started == {f"tool_call_started {call}" for call in calls}
    assert ended == {f"tool_call_ended {call}" for call in calls}


@at_any(*range(1, 9), -3, -4)
async def test_a_crash_between_any_two_steps_of_the_guards_ladder(
    bench: Bench, provider: FakeOpenAI, scheduler: FakeScheduler, die_at: int
) -> None:
    """Behind each stored step; and, with a minus, before one."""
    after, die_at = die_at > 0, abs(die_at)

    def model(request: Any) -> Reply:
        if request.body["model"] == "strong":
            return Reply("", [ToolCall("sessions_spawn", {"task": "x"})])
        return Reply("I do not have permission to spawn sessions.")

    provider.when(lambda _: True, model)
    bench.store.after = after
    outcome = await play(bench, lambda attempt: scheduler.leased("go", attempt=attempt), die_at)
    assert isinstance(outcome, Suspend)
    assert list(outcome.request.condition.children.run_ids) == ["C1"]
    kinds = [s.kind_of(record) for record in bench.store.stored]
    assert kinds == ["replied", "guarded"] * 3 + ["replied", "spawned"]
    rungs = [record.step for record in bench.store.stored if isinstance(record, s.Guarded)]
    assert rungs == ["insist", "force_tool", "fall_back_model"]
    # Only a call in flight at the crash is made again.
    in_flight = not after and die_at % 2 == 1
    assert len(provider.requests) == 4 + in_flight
    told = [text for text in scheduler.texts() if text == "guard_intervened"]
    assert len(told) == 3
    assert not scheduler.deltas


async def test_an_attempt_sees_what_its_first_one_saw(
    bench: Bench, provider: FakeOpenAI, scheduler: FakeScheduler
) -> None:
    provider.when(lambda _: True, answer)
    bench.store.die_at = 1
    with pytest.raises(Crash):
        await bench.attempt(scheduler.leased("go"))
    await bench.attempt(scheduler.leased("go", attempt=2))
    assert provider.requests[0].messages == provider.requests[1].messages


async def test_an_old_lease_writes_nothing_more(
    bench: Bench, provider: FakeOpenAI, scheduler: FakeScheduler
) -> None:
    old = scheduler.leased("go")
    new = scheduler.leased("go", attempt=2)
    provider.when(lambda _: True, Reply("done"))
    assert isinstance(await bench.attempt(new), Complete)
    with pytest.raises(LeaseLost):
        await bench.attempt(old)
    with pytest.raises(LeaseLost):
        await bench.store.add_steps("R1", 0, 1, 9, [s.Returned("x", "y")], 0)


async def test_a_lease_lost_in_the_middle_stops_the_turn(
    bench: Bench, provider: FakeOpenAI, scheduler: FakeScheduler
) -> None:
    leased = scheduler.leased("go")

    def lose(_: Any) -> Reply:
        scheduler.lost.add(leased.lease.lease_id)
        return Reply("", [ToolCall("sessions_spawn", {"task": "x"})])

    provider.when(lambda _: True, lose)
    with pytest.raises(LeaseLost):
        await bench.attempt(leased)
    assert not scheduler.children


async def test_a_draining_worker_gives_back_between_steps(
    bench: Bench, provider: FakeOpenAI, scheduler: FakeScheduler
) -> None:
    turn = LeasedTurn(scheduler.leased("go"))

    def drain(_: Any) -> Reply:
        turn.draining.set()
        return Reply("", [ToolCall("agents_list")])

    provider.when(lambda _: True, drain)
    assert await bench.runner(turn) == Release("draining")
    provider.script(Reply("done"))
    assert isinstance(await bench.attempt(scheduler.leased("go", attempt=1)), Complete)
    assert len(provider.requests) == 2


async def test_a_steered_message_is_taken_once(
    bench: Bench, provider: FakeOpenAI, scheduler: FakeScheduler
) -> None:
    from tests.service.agent.fake_scheduler import said

    provider.when(lambda _: True, Reply("both"))
    steered = [said("s1", "and this")]
    bench.store.die_at, bench.store.after = 1, True
    with pytest.raises(Crash):
        await bench.attempt(scheduler.leased("go", steered=steered))
    outcome = await bench.attempt(scheduler.leased("go", attempt=2, steered=steered))
    assert isinstance(outcome, Complete)
    assert outcome.taken == ["s1"]
    assert provider.requests[-1].texts("user") == ["go", "and this"]


async def test_a_full_disk_is_said_as_such(
    bench: Bench, provider: FakeOpenAI, scheduler: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object, **__: object) -> None:
        raise StoreUnavailable("the store takes no writes now; nothing was changed")

    monkeypatch.setattr(Transcripts, "add_steps", full)
    with pytest.raises(StoreUnavailable):
        await bench.attempt(scheduler.leased("go"))


async def test_a_passed_budget_ends_the_turn(
    bench: Bench, provider: FakeOpenAI, scheduler: FakeScheduler
) -> None:
    from conveyor.scheduler.v1 import limit_service_pb2 as limit_pb
    from svckit.errors import BudgetExceeded
    from svckit.grpc.status import to_proto

    error = to_proto(BudgetExceeded("max_tokens is used up", metadata={"budget": "max_tokens"}))
    scheduler.limits.always("Report", limit_pb.ReportResponse(budget_error=error))
    provider.when(lambda _: True, answer)
    outcome = await bench.attempt(scheduler.leased("go"))
    assert isinstance(outcome, Fail)
    assert isinstance(outcome.error, BudgetExceeded)
    assert not outcome.retryable
    assert len(provider.requests) == 1
