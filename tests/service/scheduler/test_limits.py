"""Model calls reserved over RPC: limits that all workers share, and budgets of whole trees."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from conveyor.common.v1 import usage_pb2
from conveyor.scheduler.v1 import announcement_pb2 as ann
from conveyor.scheduler.v1 import limit_service_pb2 as pb
from conveyor.scheduler.v1 import run_pb2
from conveyor.scheduler.v1 import scheduler_service_pb2 as scheduler_pb
from conveyor.scheduler.v1 import worker_service_pb2 as ws
from svckit.errors import ModelUnavailable, ServiceError
from svckit.grpc.status import from_proto, from_rpc_error
from svckit.testing import eventually
from tests.service.scheduler.conftest import Driver, driver, settings

# 40 a minute: more than the second that a worker waits itself, little more for the sake of time.
GONE = ModelUnavailable("gone", metadata={"providerId": "p", "model": "m"})
LIMITED = {"CONVEYOR_PROVIDERS__P__REQUESTS_PER_MINUTE": "40", "CONVEYOR_LANES__MAIN__LIMIT": "1"}


@pytest.fixture
async def s(tmp_path: Path) -> AsyncIterator[Driver]:
    async with driver(settings(tmp_path, **LIMITED)) as found:
        yield found


async def reserve(
    s: Driver,
    leased: Any,
    call: str = "1",
    *,
    provider: str = "p",
    tokens: int = 10,
    cost: int = 0,
) -> pb.ReserveResponse:
    run_id = leased.run.run_id
    found: pb.ReserveResponse = await s.limits.Reserve(
        pb.ReserveRequest(
            call=pb.ModelCall(provider_id=provider, model="m", run_id=run_id),
            lease_id=leased.lease.lease_id,
            request_id=f"{run_id}/{call}",
            estimated_tokens=tokens,
            estimated_cost_micros_usd=cost,
        )
    )
    return found


async def granted(s: Driver, leased: Any, call: str = "1", **more: Any) -> pb.ReserveGrant:
    response = await reserve(s, leased, call, **more)
    assert response.WhichOneof("outcome") == "granted", response
    return response.granted


async def refused(s: Driver, leased: Any, call: str = "1", **more: Any) -> ServiceError:
    response = await reserve(s, leased, call, **more)
    assert response.WhichOneof("outcome") == "refused", response
    return from_proto(response.refused.error)


async def report(
    s: Driver,
    run_id: str,
    call: str = "1",
    *,
    outcome: pb.CallOutcome.ValueType = pb.CALL_OUTCOME_ANSWERED,
    reservation: str | None = None,
    retry_after: float = 0,
    provider: str = "p",
    **usage: int,
) -> pb.ReportResponse:
    used = usage_pb2.Usage(model_calls=1, **usage) if usage else None
    asked = None
    if retry_after:
        asked = Duration()
        asked.FromMilliseconds(round(retry_after * 1000))
    found: pb.ReportResponse = await s.limits.Report(
        pb.ReportRequest(
            reservation_id=f"{run_id}/{call}" if reservation is None else reservation,
            request_id=f"{run_id}/{call}",
            call=pb.ModelCall(provider_id=provider, model="m", run_id=run_id),
            outcome=outcome,
            usage=used,
            retry_after=asked,
        )
    )
    return found


async def wait_for(s: Driver, leased: Any, reservation: str) -> run_pb2.Run:
    response = await s.worker.SuspendRun(
        ws.SuspendRunRequest(
            lease_id=leased.lease.lease_id,
            condition=run_pb2.WaitCondition(
                limit=run_pb2.LimitWait(reservation_id=reservation, name="p:m")
            ),
            hold_session_lane=True,
        )
    )
    found: run_pb2.Run = response.run
    return found


async def test_a_long_wait_gives_the_slot_back_and_resumes_with_the_grant(s: Driver) -> None:
    for session in ("a", "b", "c"):
        await s.send(session)
    first = await s.lease_one()
    grant = await granted(s, first)
    assert not grant.HasField("delay")
    await report(s, first.run.run_id, input_tokens=1)
    await s.complete(first)
    second = await s.lease_one()
    grant = await granted(s, second)
    assert 1.0 < grant.delay.ToMicroseconds() / 1e6 <= 1.54
    assert grant.limit == "requests_per_minute"
    run = await wait_for(s, second, grant.reservation_id)
    assert run.state == run_pb2.RUN_STATE_SUSPENDED
    assert run.suspension.condition.limit.reservation_id == grant.reservation_id
    assert run.suspension.holds_session_lane
    third = await s.lease_one()  # the only slot of the lane is free
    assert third.run.spec.session_key == "c"
    await s.complete(third)
    resumed = await s.lease_one()
    assert resumed.run.run_id == second.run.run_id
    assert resumed.run.turn == 2
    assert resumed.resumption.reason == ann.RESUME_REASON_LIMIT_GRANTED
    assert resumed.resumption.condition.limit.name == "p:m"
    assert resumed.resumption.grant.reservation_id == grant.reservation_id
    assert not resumed.resumption.grant.HasField("delay")
    await report(s, run.run_id, input_tokens=3, output_tokens=4)
    await s.complete(resumed)
    assert not s.engine._kernel.limits.reservations


async def test_the_same_request_gets_the_same_reservation(s: Driver) -> None:
    await s.send("a")
    leased = await s.lease_one()
    once = await granted(s, leased)
    again = await granted(s, leased)
    assert again.reserved_time == once.reserved_time
    assert len(s.engine._kernel.limits.reservations) == 1


async def test_only_the_holder_of_the_lease_reserves(s: Driver) -> None:
    await s.send("a")
    leased = await s.lease_one()
    await s.complete(leased)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await reserve(s, leased)
    assert from_rpc_error(caught.value).reason == "LEASE_LOST"
    leased.run.run_id, leased.lease.lease_id = "nobody", "nobody:1"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await reserve(s, leased)
    assert from_rpc_error(caught.value).reason == "RUN_NOT_FOUND"


async def test_a_reservation_of_another_run_is_not_waited_for(s: Driver) -> None:
    async with driver_with_two(s) as (first, second):
        grant = await granted(s, first)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await wait_for(s, second, grant.reservation_id)
        assert from_rpc_error(caught.value).metadata["field"] == "condition.limit.reservation_id"


class driver_with_two:
    """Two runs at work at the same time."""

    def __init__(self, s: Driver) -> None:
        self.s = s

    async def __aenter__(self) -> tuple[Any, Any]:
        await self.s.scheduler.UpdateLane(scheduler_pb.UpdateLaneRequest(name="main", limit=2))
        await self.s.send("a")
        await self.s.send("b")
        leased = await self.s.lease(2, 5)
        while len(leased) < 2:
            leased += await self.s.lease(2 - len(leased), 5)
        return leased[0], leased[1]

    async def __aexit__(self, *_: object) -> None:
        pass


async def test_a_429_makes_everybody_wait_and_one_probe_goes(s: Driver) -> None:
    """A provider without limits, so that only the cool-down holds anything back."""
    async with driver_with_two(s) as (first, second):
        grant = await granted(s, first, provider="free")
        told = await report(
            s,
            first.run.run_id,
            outcome=pb.CALL_OUTCOME_THROTTLED,
            provider="free",
            retry_after=1.2,
            reservation=grant.reservation_id,
        )
        assert told.HasField("cool_down_until")
        mine = await granted(s, first, "2", provider="free")
        other = await granted(s, second, provider="free")
        assert (mine.limit, other.limit) == ("cool_down", "cool_down")
        assert mine.delay.ToMicroseconds() > 1_000_000
        await wait_for(s, first, mine.reservation_id)
        await wait_for(s, second, other.reservation_id)
        probe = await s.lease_one()
        assert probe.run.run_id == first.run.run_id
        assert not await s.lease(1, 0.3), "the other waits for the probe's answer"
        await report(s, probe.run.run_id, "2", provider="free", input_tokens=1)
        follower = await s.lease_one()
        assert follower.run.run_id == second.run.run_id
        assert not follower.resumption.grant.HasField("delay")


async def test_a_probe_whose_worker_is_lost_gives_way_to_the_next(s: Driver) -> None:
    async with driver_with_two(s) as (first, second):
        await report(
            s,
            first.run.run_id,
            outcome=pb.CALL_OUTCOME_THROTTLED,
            provider="free",
            reservation="",
            retry_after=0.01,
        )
        limiter = s.engine._kernel.limits.limiters["free/"]
        await eventually(lambda: limiter.state.cool_until <= s.engine.now())
        probe = await granted(s, first, "2", provider="free")
        assert not probe.HasField("delay")
        other = await granted(s, second, provider="free")
        await wait_for(s, second, other.reservation_id)
        assert not await s.lease(1, 0.2)
        await s.worker.ReleaseRun(ws.ReleaseRunRequest(lease_id=first.lease.lease_id))
        again = await s.lease(2, 5)
        while second.run.run_id not in {item.run.run_id for item in again}:
            again += await s.lease(2, 5)
        [resumed] = [item for item in again if item.run.run_id == second.run.run_id]
        assert not resumed.resumption.grant.HasField("delay")


async def test_what_waits_for_a_limit_survives_a_restart(tmp_path: Path) -> None:
    config = settings(tmp_path, **LIMITED)
    async with driver(config) as s:
        for session in ("a", "b"):
            await s.send(session)
        first = await s.lease_one()
        await granted(s, first)
        await s.complete(first)
        second = await s.lease_one()
        grant = await granted(s, second)
        await wait_for(s, second, grant.reservation_id)
    async with driver(config) as s:
        limiter = s.engine._kernel.limits.limiters["p/"]
        time = limiter.next_time()
        assert time is not None
        assert time >= s.engine.now() - 100_000 + 1_000_000, "buckets start empty"
        resumed = await s.lease_one()
        assert resumed.resumption.grant.reservation_id == grant.reservation_id


async def test_a_cancelled_run_leaves_the_line(s: Driver) -> None:
    async with driver_with_two(s) as (first, second):
        await granted(s, first)
        grant = await granted(s, second)
        await wait_for(s, second, grant.reservation_id)
        await s.scheduler.CancelRun(scheduler_pb.CancelRunRequest(run_id=second.run.run_id))
        assert await s.state(second.run.run_id) == "CANCELLED"
        assert list(s.engine._kernel.limits.reservations) == [f"{first.run.run_id}/1"]


async def test_a_wait_for_what_was_granted_meanwhile_or_is_gone_ends_at_once(s: Driver) -> None:
    await s.send("a")
    leased = await s.lease_one()
    grant = await granted(s, leased)
    run = await wait_for(s, leased, grant.reservation_id)
    assert run.state == run_pb2.RUN_STATE_QUEUED
    again = await s.lease_one()
    assert again.resumption.grant.reservation_id == grant.reservation_id
    run = await wait_for(s, again, "long-gone")
    assert run.state == run_pb2.RUN_STATE_QUEUED
    again = await s.lease_one()
    assert not again.resumption.HasField("grant")


async def test_a_run_that_waits_for_limits_between_its_failures_runs_out_of_attempts(
    s: Driver,
) -> None:
    """Each wait ends a turn. With a provider that was gone a run began anew after each."""
    policy = run_pb2.RetryPolicy(max_attempts=3)
    policy.initial_backoff.FromMilliseconds(1)
    await s.send("a", retry_policy=policy)
    numbers = []
    for waits in (False, True, False, True):
        leased = await s.lease_one()
        numbers.append((leased.lease.turn, leased.lease.attempt))
        if waits:
            await wait_for(s, leased, "long-gone")
        else:
            await s.fail(leased, GONE, retryable=True)
    assert numbers == [(1, 1), (1, 2), (2, 1), (2, 2)]
    run = await s.fail(await s.lease_one(), GONE, retryable=True)
    assert run.state == run_pb2.RUN_STATE_FAILED
    error = from_proto(run.error)
    assert (error.reason, error.metadata["attempts"]) == ("ATTEMPTS_EXHAUSTED", "3")


async def test_what_got_on_has_all_its_attempts_again(s: Driver) -> None:
    policy = run_pb2.RetryPolicy(max_attempts=2)
    policy.initial_backoff.FromMilliseconds(1)
    await s.send("a", retry_policy=policy)
    await s.fail(await s.lease_one(), GONE, retryable=True)
    await wait_for(s, await s.lease_one(), "long-gone")
    parent = await s.lease_one()
    await s.wait_for_children(parent, *await s.spawn(parent, "work", turn=2))
    await s.complete(await s.lease_one())
    run = await s.fail(await s.lease_one(), GONE, retryable=True)
    assert run.state == run_pb2.RUN_STATE_QUEUED


async def test_calls_without_limit_and_budget_leave_no_trace(s: Driver) -> None:
    await s.send("a")
    leased = await s.lease_one()
    await granted(s, leased, provider="free")
    assert not s.engine._kernel.limits.reservations
    await report(s, leased.run.run_id, provider="free", input_tokens=5)
    assert (await s.run(leased.run.run_id)).usage.input_tokens == 5


# -- Budgets --------------------------------------------------------------------------------------


async def test_a_budget_is_reserved_before_and_settled_after(s: Driver) -> None:
    await s.send("a", budget=run_pb2.Budget(max_tokens=100))
    leased = await s.lease_one()
    assert leased.budgeted
    grant = await granted(s, leased, provider="free", tokens=60)
    error = await refused(s, leased, "2", provider="free", tokens=41)
    assert error.reason == "BUDGET_EXCEEDED"
    assert error.metadata == {
        "budget": "max_tokens",
        "limit": "100",
        "used": "60",
        "requested": "41",
        "runId": leased.run.run_id,
    }
    await report(s, leased.run.run_id, provider="free", input_tokens=10, output_tokens=10)
    assert grant.expire_time.seconds > grant.reserved_time.seconds
    await granted(s, leased, "3", provider="free", tokens=80)


async def test_late_usage_over_a_cap_says_so(s: Driver) -> None:
    await s.send("a", budget=run_pb2.Budget(max_cost_micros_usd=1000))
    leased = await s.lease_one()
    told = await report(s, leased.run.run_id, "x", reservation="", cost_micros_usd=1000)
    assert not told.HasField("budget_error")
    told = await report(s, leased.run.run_id, "y", reservation="", cost_micros_usd=1)
    error = from_proto(told.budget_error)
    assert (error.metadata["budget"], error.metadata["used"]) == ("max_cost_micros_usd", "1001")


async def test_the_models_of_a_runs_newest_call_are_shown_while_it_works_and_kept(
    tmp_path: Path,
) -> None:
    def call(run_id: str, number: int, requested: str, model: str) -> pb.ReportRequest:
        return pb.ReportRequest(
            request_id=f"{run_id}/{number}",
            call=pb.ModelCall(provider_id="p", model=model, run_id=run_id),
            outcome=pb.CALL_OUTCOME_ANSWERED,
            usage=usage_pb2.Usage(model_calls=1, input_tokens=7, output_tokens=3),
            requested_model=requested,
        )

    async def shown(s: Driver, run_id: str) -> tuple[str, str, int]:
        found = await s.scheduler.ListRuns(
            scheduler_pb.ListRunsRequest(filter=run_pb2.RunFilter(flow_id=run_id))
        )
        [run] = found.runs
        return run.requested_model, run.effective_model, run.usage.input_tokens

    async with driver(settings(tmp_path)) as s:
        await s.send("a")
        run_id = (await s.lease_one()).run.run_id
        assert await shown(s, run_id) == ("", "", 0)
        await s.limits.Report(call(run_id, 1, "p:large", "large"))
        assert await shown(s, run_id) == ("p:large", "p:large", 7)
        await s.limits.Report(call(run_id, 2, "p:large", "small"))
        # A repeated report is no newer one, and a call that failed was answered by no model.
        await s.limits.Report(call(run_id, 1, "p:large", "large"))
        await report(s, run_id, "3", outcome=pb.CALL_OUTCOME_UNAVAILABLE, reservation="")
        assert await shown(s, run_id) == ("p:large", "p:small", 14)
    async with driver(settings(tmp_path)) as s:
        assert await shown(s, run_id) == ("p:large", "p:small", 14)


async def test_a_model_with_a_blank_in_its_name_is_counted(tmp_path: Path) -> None:
    """Providers name models as they like; every report of such a one was refused."""
    async with driver(settings(tmp_path)) as s:
        await s.send("a")
        run_id = (await s.lease_one()).run.run_id
        await s.limits.Report(
            pb.ReportRequest(
                request_id="1",
                call=pb.ModelCall(provider_id="p", model="My Model", run_id=run_id),
                outcome=pb.CALL_OUTCOME_ANSWERED,
                usage=usage_pb2.Usage(model_calls=1),
                requested_model="p:My Model",
            )
        )
        found = await s.scheduler.GetRun(scheduler_pb.GetRunRequest(run_id=run_id))
        assert found.run.requested_model == found.run.effective_model == "p:My Model"


async def test_children_share_what_their_parent_may_and_leave_it_its_answer(s: Driver) -> None:
    await s.send("a", budget=run_pb2.Budget(max_tokens=1000))
    root = await s.lease_one()
    assert root.run.spec.budget.reply_reserve == 0.1
    await s.spawn(root, "x", "y", budget=run_pb2.Budget(max_tokens=700))
    one, two = [await s.lease_one(), await s.lease_one()]
    assert one.budgeted
    error = await refused(s, one, provider="free", tokens=701)
    assert error.metadata["runId"] == one.run.run_id, "its own cap"
    await granted(s, one, provider="free", tokens=500)
    error = await refused(s, two, provider="free", tokens=401)
    assert error.metadata["runId"] == root.run.run_id
    assert error.metadata["limit"] == "900"
    await granted(s, two, provider="free", tokens=400)
    await granted(s, root, provider="free", tokens=100)


async def test_what_a_lost_worker_reserved_stays_used(tmp_path: Path) -> None:
    config = settings(tmp_path, CONVEYOR_RUNS__BACKOFF__INITIAL_SECONDS="0")
    async with driver(config) as s:
        await s.send("a", budget=run_pb2.Budget(max_tokens=100))
        await granted(s, await s.lease_one(), tokens=60)
        s.me = ws.Worker(name="agent-0", incarnation=2)
        again = await s.lease_one()
        assert again.run.attempt == 2
        assert (await refused(s, again, "2", tokens=60)).metadata["used"] == "60"
    async with driver(config) as s:  # also after a restart
        assert (await refused(s, again, "3", tokens=60)).metadata["used"] == "60"


async def test_a_tree_over_its_wall_time_stops(s: Driver) -> None:
    wall = Duration()
    wall.FromMilliseconds(300)
    await s.send("a", budget=run_pb2.Budget(max_wall_time=wall))
    root = await s.lease_one()
    [child] = await s.spawn(root, "x")
    await s.wait_for_children(root, child)

    async def ended() -> bool:
        return await s.state(root.run.run_id) == "EXPIRED"

    await eventually(ended)
    assert await s.state(child) == "CANCELLED"
    error = from_proto((await s.run(root.run.run_id)).error)
    assert (error.reason, error.metadata["budget"]) == ("BUDGET_EXCEEDED", "max_wall_time")


async def test_budgets_that_make_no_sense_are_refused(s: Driver) -> None:
    for budget, field in (
        (run_pb2.Budget(max_tokens=-1), "spec.budget.max_tokens"),
        (run_pb2.Budget(reply_reserve=0.6), "spec.budget.reply_reserve"),
        (run_pb2.Budget(max_wall_time=Duration()), "spec.budget.max_wall_time"),
    ):
        error = from_proto(await s.refused(s.item("a", "x", budget=budget)))
        assert error.metadata["field"] == field


async def test_waiting_for_the_limit_takes_no_slot_of_many(tmp_path: Path) -> None:
    """Six runs, a lane of two and one call in 1.5 s: never more than two at work, all served."""
    config = settings(tmp_path, **(LIMITED | {"CONVEYOR_LANES__MAIN__LIMIT": "2"}))
    async with driver(config) as s:
        for index in range(4):
            await s.send(f"s{index}")
        done: list[str] = []
        times: list[int] = []

        async def work(leased: Any) -> None:
            run_id = leased.run.run_id
            grant = leased.resumption.grant
            if not leased.resumption.HasField("grant"):
                grant = await granted(s, leased)
            if grant.delay.ToMicroseconds() > 1_000_000:
                await wait_for(s, leased, grant.reservation_id)
                return
            await asyncio.sleep(grant.delay.ToMicroseconds() / 1e6)
            times.append(s.engine.now())
            await report(s, run_id, input_tokens=1)
            await s.complete(leased)
            done.append(run_id)

        async with asyncio.timeout(20):
            while len(done) < 4:
                for leased in await s.lease(2, 1):
                    await work(leased)
        assert all(b - a > 1_400_000 for a, b in itertools.pairwise(times))


async def test_a_probe_of_a_turn_that_ended_without_a_report_stops_nobody(s: Driver) -> None:
    """Found by the simulation, seed 31: its children waited a quarter of an hour for it."""
    await s.send("a")
    parent = await s.lease_one()
    await granted(s, parent, "1", provider="free")
    await report(
        s,
        parent.run.run_id,
        "1",
        provider="free",
        outcome=pb.CALL_OUTCOME_THROTTLED,
        retry_after=0.1,
    )
    await granted(s, parent, "2", provider="free")  # the probe, of which nobody hears
    await s.spawn(parent, "child")
    await s.wait_for_children(parent)
    child = await s.lease_one()
    grant = await granted(s, child, "1", provider="free")
    assert grant.delay.ToMicroseconds() <= 1_000_000
