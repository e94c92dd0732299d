"""Model calls that are reserved before and reported after, waits, refusals, and prices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from agent_svc.domain.prompt import Prompt
from agent_svc.models.demo import DemoModel
from agent_svc.prices import Prices
from agent_svc.reserving import Reserver
from conveyor.scheduler.v1 import announcement_pb2 as ann
from conveyor.scheduler.v1 import limit_service_pb2 as limit_pb
from conveyor.scheduler.v1 import limit_service_pb2_grpc as limit_grpc
from conveyor.scheduler.v1 import run_pb2
from svckit.clock import FakeClock
from svckit.errors import BudgetExceeded
from svckit.grpc.channel import make_channel
from svckit.grpc.status import from_proto
from svckit.settings import load
from svckit.testing import eventually
from svckit.testing.fake_openai import Failure, FakeOpenAI, Reply, ToolCall
from svckit.testing.inprocess import InProcess
from svckit.turn import LeasedTurn
from svckit.usage import UsageReporter
from tests.service.agent.conftest import StartAgent
from tests.service.agent.fake_scheduler import FakeScheduler, reply_text


def with_fallback(provider: FakeOpenAI) -> str:
    return f"""
[agents.defaults]
model = "fake:big"
fallback_models = ["other:small"]
[providers.fake]
base_url = "{provider.base_url}"
[providers.other]
base_url = "{provider.base_url}"
"""


@pytest.fixture
async def live(start_agent: StartAgent, provider: FakeOpenAI) -> AsyncIterator[InProcess]:
    toml = f"""
[agents.defaults]
model = "fake:big"
[providers.fake]
base_url = "{provider.base_url}"
requests_per_minute = 15
input_price_usd = 2
output_price_usd = 10
"""
    async with start_agent(toml) as service:
        yield service


def granted(reservation: str, model: str = "fake:big", *, delay: float = 0) -> ann.Resumption:
    grant = limit_pb.ReserveGrant(reservation_id=reservation)
    if delay:
        grant.delay.FromMilliseconds(round(delay * 1000))
    return ann.Resumption(
        reason=ann.RESUME_REASON_LIMIT_GRANTED,
        condition=run_pb2.WaitCondition(
            limit=run_pb2.LimitWait(reservation_id=reservation, name=model)
        ),
        grant=grant,
    )


async def test_a_call_is_reserved_reported_and_priced(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    provider.script(Reply("hello", input_tokens=100, output_tokens=20))
    end = await scheduler.answer(scheduler.leased("hi"))
    assert reply_text(end) == "hello"
    (asked,) = scheduler.reserved
    assert (asked.call.provider_id, asked.call.model, asked.call.run_id) == ("fake", "big", "R1")
    assert asked.lease_id == "R1:1"
    assert asked.estimated_tokens > 1000
    assert asked.estimated_cost_micros_usd > 10_000
    told = scheduler.reports["R1/1.2"]
    assert told.reservation_id == asked.request_id
    assert (told.usage.cost_micros_usd, told.usage.unpriced_calls) == (400, 0)


async def test_a_short_wait_is_slept(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    scheduler.reservations = [0.3]
    end = await scheduler.answer(scheduler.leased("hi"))
    assert reply_text(end) == "ok"


async def test_a_longer_wait_gives_the_slot_back_and_goes_on_where_it_was(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    """The reply and the tool result that are stored stay; nothing is asked or paid again."""
    provider.script(Reply("Looking.", [ToolCall("agents_list")]), Reply("All there."))
    scheduler.reservations = [0, 4.0]
    end = await scheduler.answer(scheduler.leased("who is there?"))
    limit = end.condition.limit
    assert (limit.reservation_id, limit.name) == ("R1/1.4/1.1", "fake:big")
    assert end.hold_session_lane
    assert not end.HasField("timeout")
    assert len(provider.requests) == 1

    resumption = granted(limit.reservation_id)
    end = await scheduler.answer(scheduler.leased("who is there?", turn=2, resumption=resumption))
    assert reply_text(end) == "All there."
    assert len(scheduler.reserved) == 2, "the grant was used, not reserved again"
    assert scheduler.reports["R1/2.2"].reservation_id == limit.reservation_id
    roles = [m["role"] for m in provider.requests[1].messages]
    assert roles == ["system", "user", "assistant", "tool"]


async def test_a_grant_that_moved_while_the_run_woke_is_waited_for_again(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    resumption = granted("r", delay=3)
    end = await scheduler.answer(scheduler.leased("hi", turn=2, resumption=resumption))
    assert end.condition.limit.reservation_id == "r"
    assert not provider.requests
    assert not scheduler.reserved


async def test_an_attempt_that_was_handed_back_shares_no_reservation_with_the_next(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    """Handing back is not counted, so both are attempt 1; the first may have made its call."""
    scheduler.reservations = [4.0, 0]
    await scheduler.answer(scheduler.leased("hi"))
    assert reply_text(await scheduler.answer(scheduler.leased("hi"))) == "ok"
    assert len({asked.request_id for asked in scheduler.reserved}) == 2


async def test_a_429_waits_for_the_scheduler_and_never_fails_the_turn(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    """However often: four times is more than a model in trouble is asked."""
    provider.script(*(Failure(429, retry_after=30) for _ in range(4)))
    scheduler.reservations = [0, 0.1, 0.1, 0.1, 9.0]
    end = await scheduler.answer(scheduler.leased("hi"))
    assert end.condition.limit.reservation_id == scheduler.reserved[-1].request_id
    outcomes = list(scheduler.reports.values())
    assert [r.outcome for r in outcomes] == 4 * [limit_pb.CALL_OUTCOME_THROTTLED]
    assert [r.reservation_id for r in outcomes] == [r.request_id for r in scheduler.reserved[:4]]
    assert outcomes[0].retry_after.seconds == 30
    assert len({r.request_id for r in scheduler.reserved}) == 5


async def test_a_provider_that_is_gone_is_not_waited_for_again_and_again(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    """It failed, and the next moment for it is far off: that is a failed attempt, and no wait."""
    provider.script(Failure(503))
    scheduler.reservations = [0, 4.0]
    end = await scheduler.answer(scheduler.leased("hi"))
    assert from_proto(end.error).reason == "MODEL_UNAVAILABLE"
    assert end.retryable
    assert len(provider.requests) == 1


async def test_a_provider_that_is_gone_gives_way_to_its_fallback(
    scheduler: FakeScheduler, start_agent: StartAgent, provider: FakeOpenAI
) -> None:
    provider.script(Failure(503))
    scheduler.reservations = [0, 4.0]
    async with start_agent(with_fallback(provider)):
        end = await scheduler.answer(scheduler.leased("hi"))
    assert reply_text(end) == "ok"
    assert [r.body["model"] for r in provider.requests] == ["big", "small"]


async def test_a_refused_budget_ends_the_run_and_names_itself(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    facts = {"budget": "max_tokens", "limit": "10", "used": "9", "requested": "2", "runId": "R1"}
    scheduler.reservations = [BudgetExceeded("the budget is used up", metadata=facts)]
    end = await scheduler.answer(scheduler.leased("hi"))
    error = from_proto(end.error)
    assert (error.reason, error.metadata) == ("BUDGET_EXCEEDED", facts)
    assert not end.retryable
    assert not provider.requests


async def test_a_turn_that_resumed_for_a_fallback_asks_that_one(
    scheduler: FakeScheduler, start_agent: StartAgent, provider: FakeOpenAI
) -> None:
    async with start_agent(with_fallback(provider)):
        resumption = granted("r", "other:small")
        end = await scheduler.answer(scheduler.leased("hi", turn=2, resumption=resumption))
    assert reply_text(end) == "ok"
    assert [r.body["model"] for r in provider.requests] == ["small"]
    (note,) = (e.note_added for e in scheduler.events.values() if e.HasField("note_added"))
    assert note.text == "fake:big did not answer (earlier): other:small did."
    assert not scheduler.reserved


async def test_the_demo_model_asks_only_when_there_is_something_to_keep(
    scheduler: FakeScheduler, start_agent: StartAgent
) -> None:
    async with start_agent():
        await scheduler.answer(scheduler.leased("hi"))
        assert not scheduler.reserved
        await scheduler.answer(scheduler.leased("hi", run_id="R2", budgeted=True))
        assert [r.call.provider_id for r in scheduler.reserved] == ["demo"]
    async with start_agent("[providers.demo]\nrequests_per_minute = 15"):
        await scheduler.answer(scheduler.leased("hi", run_id="R3"))
        assert len(scheduler.reserved) == 2


async def test_a_turn_that_is_stopped_while_it_waits_gives_its_place_back(
    scheduler: FakeScheduler,
) -> None:
    clock, settings = FakeClock(), load(None, {})
    async with make_channel(scheduler.address) as channel:  # type: ignore[attr-defined]
        stub = limit_grpc.LimitServiceStub(channel)
        usage = UsageReporter(stub, clock)
        reserver = Reserver(stub, usage, Prices({}), settings, clock)
        leased = scheduler.leased("hi", budgeted=True)
        turn = LeasedTurn(leased)
        work: Any = SimpleNamespace(
            turn=turn, run_id="R1", number=1, steps=[], summaries=[], first_call=True
        )
        scheduler.reservations = [0.9]
        tickets = reserver.tickets(work, "2", Prompt("", []))
        taking = asyncio.create_task(tickets.take(DemoModel("demo", clock)))
        await eventually(lambda: clock.sleepers)
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)
        await eventually(lambda: scheduler.reports)
        await usage.drain(1)
    (told,) = scheduler.reports.values()
    assert told.outcome == limit_pb.CALL_OUTCOME_NOT_SENT
    assert told.reservation_id == scheduler.reserved[0].request_id


async def test_an_answer_that_was_paid_for_is_delivered_though_the_budget_is_gone(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    scheduler.over_budget = BudgetExceeded("over", metadata={"budget": "max_tokens"})
    provider.script(Reply("the answer"))
    assert reply_text(await scheduler.answer(scheduler.leased("hi"))) == "the answer"
    provider.script(Reply("", [ToolCall("agents_list")]))
    end = await scheduler.answer(scheduler.leased("hi", run_id="R2"))
    assert from_proto(end.error).reason == "BUDGET_EXCEEDED"


async def test_a_sub_agent_gets_the_budget_that_its_parent_says(
    scheduler: FakeScheduler, live: InProcess, provider: FakeOpenAI
) -> None:
    budget = {"max_tokens": 500, "max_cost_usd": 0.25}
    provider.script(Reply("", [ToolCall("sessions_spawn", {"task": "a", "budget": budget})]))
    await scheduler.answer(scheduler.leased("go"))
    (child,) = scheduler.children.values()
    assert child.spec.budget.max_tokens == 500
    assert child.spec.budget.max_cost_micros_usd == 250_000
    assert not child.spec.budget.HasField("max_wall_time")
