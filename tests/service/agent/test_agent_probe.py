"""Probes over the wire: what is asked, what is streamed, what is stored, and what ends one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from agent_svc.domain.prompt import Prompt
from agent_svc.models.provider import ProviderModel
from agent_svc.outside import Outside
from agent_svc.prices import Prices
from agent_svc.probing import FEW, published
from conveyor.agent.v1 import agent_service_pb2 as pb
from conveyor.agent.v1 import agent_service_pb2_grpc as agent_grpc
from conveyor.agent.v1 import probe_pb2 as probe_pb
from conveyor.scheduler.v1 import limit_service_pb2 as limit_pb
from svckit.clock import FakeClock
from svckit.errors import ModelUnavailable, ServiceError
from svckit.grpc.status import from_rpc_error
from svckit.settings import load
from svckit.settings_model import ProviderSettings
from svckit.testing import eventually, free_port
from svckit.testing.fake_openai import ChatRequest, Failure, FakeOpenAI, Hang, Reply, ToolCall
from svckit.testing.inprocess import InProcess
from tests.service.agent.conftest import StartAgent
from tests.service.agent.fake_scheduler import FakeScheduler

PROMPTS = {prompt.text: prompt for prompt in published().prompt}


def config(base_url: str, more: str = "") -> str:
    return f"""
[providers.fake]
base_url = "{base_url}"
input_price_usd = 2
output_price_usd = 10
{more}
"""


async def probe(
    service: InProcess, model: str, tiers: Sequence[probe_pb.ProbeTier.ValueType] = (), **more: int
) -> list[pb.ProbeModelResponse]:
    stub = agent_grpc.AgentServiceStub(service.channel)
    request = pb.ProbeModelRequest(model=model, tiers=tiers, **more)
    return [item async for item in stub.ProbeModel(request)]


async def refused(service: InProcess, model: str, **more: int) -> ServiceError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await probe(service, model, **more)
    return from_rpc_error(caught.value)


async def listed(service: InProcess) -> dict[str, pb.Model]:
    stub = agent_grpc.AgentServiceStub(service.channel)
    return {model.model: model for model in (await stub.ListModels(pb.ListModelsRequest())).models}


def right(request: ChatRequest) -> Reply:
    """A capable model: as many sub-agents as are right."""
    children = PROMPTS[request.texts("user")[0]].children
    spawns = [ToolCall("sessions_spawn", {"task": f"part {n}"}) for n in range(children)]
    return Reply("" if spawns else "It is Lisbon.", spawns, input_tokens=100, output_tokens=10)


async def test_a_probe_streams_every_try_and_stores_what_it_found(
    scheduler: FakeScheduler, start_agent: StartAgent, provider: FakeOpenAI
) -> None:
    provider.when(lambda _: True, right)
    async with start_agent(config(provider.base_url)) as service:
        *results, last = await probe(service, "fake:big")
        report = last.report
        assert report.verdict == probe_pb.PROBE_VERDICT_ORCHESTRATOR
        assert [item.total for item in results] == [len(PROMPTS)] * len(PROMPTS)
        assert {item.result.prompt_id for item in results} == {p.id for p in PROMPTS.values()}
        assert all(item.result.asked_children == item.result.expected_children for item in results)
        assert sum(figure.count for figure in report.figures) == len(PROMPTS)
        assert report.usage.model_calls == len(PROMPTS)
        assert report.usage.cost_micros_usd == len(PROMPTS) * 300
        # Not an agent's model, and listed all the same: somebody looked at it.
        found = await listed(service)
        assert found["fake:big"].probe == report
        assert not found["demo"].HasField("probe")
        # Every call stood in the provider's line and was reported, without a run.
        assert len(scheduler.reserved) == len(PROMPTS)
        await eventually(lambda: len(scheduler.reports) == len(PROMPTS))
        assert {r.call.run_id for r in scheduler.reports.values()} == {""}
        assert {r.reservation_id for r in scheduler.reports.values()} == {
            r.request_id for r in scheduler.reserved
        }
    # After a restart it is still there; at another address nobody has looked yet.
    async with start_agent(config(provider.base_url)) as service:
        assert (await listed(service))["fake:big"].probe == report
    async with start_agent(config("http://127.0.0.1:9/v1")) as service:
        assert "fake:big" not in await listed(service)


async def test_a_probe_asks_as_a_root_turn_does_and_forces_only_its_last_tier(
    scheduler: FakeScheduler, start_agent: StartAgent, provider: FakeOpenAI
) -> None:
    provider.when(lambda _: True, right)
    toml = config(provider.base_url) + '[agents.defaults]\nmodel = "fake:big"\n'
    async with start_agent(toml) as service:
        text = next(prompt.text for prompt in PROMPTS.values() if not prompt.children)
        await scheduler.answer(scheduler.leased(text))
        (turn,) = provider.requests
        await probe(service, "fake:big")
    asked = provider.requests[1:]
    for request in asked:
        prompt = PROMPTS[request.texts("user")[0]]
        assert request.body["tools"] == turn.body["tools"]
        assert request.texts("system") == turn.texts("system")
        forced = {"type": "function", "function": {"name": "sessions_spawn"}}
        if prompt.tier == "forced":
            assert request.body["tool_choice"] == forced
        else:
            assert request.body.get("tool_choice") == turn.body.get("tool_choice")


async def test_outcomes_of_a_weak_model_are_told_apart(
    start_agent: StartAgent, provider: FakeOpenAI
) -> None:
    replies: dict[str, Reply | Failure] = {
        "explicit-iceland": Reply("I do not have permission to spawn sessions."),
        "explicit-haiku": Reply(
            '{"name": "sessions_spawn", "arguments": {"task": "a haiku about rain"}}'
        ),
        "explicit-delegate": Reply("", [ToolCall("sessions_spawn", {"label": "no task"})]),
        "explicit-opinions": Reply("", [ToolCall("sessions_spawn", {"task": "one"})]),
        "explicit-tool": Reply("The causes were many."),
        "explicit-five": Reply("The sub-agents have finished. All five reported lovely walks."),
        "explicit-some": Failure(400, "no"),
        "explicit-none": Reply("", [ToolCall("sessions_spawn", {"task": "too much"})]),
    }
    provider.when(
        lambda _: True,
        lambda request: replies.get(PROMPTS[request.texts("user")[0]].id, right(request)),
    )
    async with start_agent(config(provider.base_url)) as service:
        found = await probe(service, "fake:big", [probe_pb.PROBE_TIER_EXPLICIT])
        outcomes = {item.result.prompt_id: item.result for item in found if item.HasField("result")}
        names = {
            key: probe_pb.ProbeOutcome.Name(outcomes[key].outcome).removeprefix("PROBE_OUTCOME_")
            for key in replies
        }
        assert names == {
            "explicit-iceland": "INVENTED_REFUSAL",
            "explicit-haiku": "INVALID_CALL",
            "explicit-delegate": "INVALID_CALL",
            "explicit-opinions": "WRONG_COUNT",
            "explicit-tool": "IGNORED_TOOL",
            "explicit-five": "INVENTED_RESULT",
            "explicit-some": "PROVIDER_ERROR",
            "explicit-none": "WRONG_COUNT",
        }
        assert outcomes["explicit-iceland"].excerpt.startswith("I do not have permission")
        assert outcomes["explicit-some"].error.message.startswith("fake refused the request")
        report = found[-1].report
        assert report.provider_errors == 1
        assert report.verdict == probe_pb.PROBE_VERDICT_UNSPECIFIED
        # One tier says too little about a model to replace what is known of it.
        assert "fake:big" not in await listed(service)


async def test_a_model_may_look_around_before_it_delegates(
    start_agent: StartAgent, provider: FakeOpenAI
) -> None:
    provider.when(lambda request: not request.texts("tool"), Reply("", [ToolCall("agents_list")]))
    provider.when(lambda _: True, right)
    async with start_agent(config(provider.base_url)) as service:
        *results, _ = await probe(service, "fake:big", [probe_pb.PROBE_TIER_EXPLICIT])
    assert {item.result.outcome for item in results} == {probe_pb.PROBE_OUTCOME_RIGHT}


async def test_repetitions_are_numbered_and_counted(start_agent: StartAgent) -> None:
    async with start_agent() as service:
        *results, last = await probe(service, "demo", [probe_pb.PROBE_TIER_FORCED], repetitions=3)
        forced = [prompt for prompt in PROMPTS.values() if prompt.tier == "forced"]
        assert sorted(item.result.repetition for item in results) == [
            number for number in (1, 2, 3) for _ in forced
        ]
        (score,) = last.report.scores
        assert (score.tries, score.good) == (3 * len(forced), 3 * len(forced))


async def test_an_unreachable_provider_ends_the_probe_and_is_named(
    start_agent: StartAgent,
) -> None:
    base_url = f"http://127.0.0.1:{free_port()}/v1"
    async with start_agent(config(base_url.replace("//", "//user:secret@"))) as service:
        stub = agent_grpc.AgentServiceStub(service.channel)
        begun = time.monotonic()
        call = stub.ProbeModel(pb.ProbeModelRequest(model="fake:big"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()  # the first message: no results of nobody
        error = from_rpc_error(caught.value)
        assert time.monotonic() - begun < 20
        assert error.reason == "MODEL_UNAVAILABLE"
        assert error.metadata == {"providerId": "fake", "model": "big", "cause": "connection"}
        assert error.message == (
            f"probe of fake:big at {base_url} stopped: fake did not answer: the connection failed"
        )
        assert "fake:big" not in await listed(service)


async def test_a_refused_credential_ends_the_probe_at_once(
    start_agent: StartAgent, provider: FakeOpenAI
) -> None:
    provider.when(lambda _: True, Failure(401, "sk-secret is wrong"))
    async with start_agent(config(provider.base_url)) as service:
        error = await refused(service, "fake:big")
    assert (error.reason, error.metadata["cause"]) == ("MODEL_REJECTED", "auth")
    assert "sk-secret" not in error.message
    assert len(provider.requests) <= 2 * FEW


async def test_single_failures_do_not_end_a_probe(
    start_agent: StartAgent, provider: FakeOpenAI
) -> None:
    provider.script(*(Failure(400) for _ in range(FEW - 1)))
    provider.when(lambda _: True, right)
    async with start_agent(config(provider.base_url)) as service:
        *_, last = await probe(service, "fake:big")
    assert last.report.provider_errors == FEW - 1
    assert last.report.verdict == probe_pb.PROBE_VERDICT_ORCHESTRATOR


async def test_a_throttled_provider_is_told_to_the_scheduler_and_asked_again(
    scheduler: FakeScheduler, start_agent: StartAgent, provider: FakeOpenAI
) -> None:
    provider.script(Failure(429, retry_after=0.5))
    provider.when(lambda _: True, right)
    scheduler.reservations = [0.1, 0.2]
    async with start_agent(config(provider.base_url)) as service:
        *results, last = await probe(service, "fake:big", [probe_pb.PROBE_TIER_FORCED])
        assert last.report.provider_errors == 0
        await eventually(lambda: len(scheduler.reports) == len(results) + 1)
    (told,) = (
        r for r in scheduler.reports.values() if r.outcome == limit_pb.CALL_OUTCOME_THROTTLED
    )
    assert told.retry_after.ToMilliseconds() == 500


async def test_a_probe_that_nobody_waits_for_stops_and_stores_nothing(
    start_agent: StartAgent, provider: FakeOpenAI
) -> None:
    provider.when("Hamlet", Hang())
    provider.when(lambda _: True, right)
    async with start_agent(config(provider.base_url)) as service:
        stub = agent_grpc.AgentServiceStub(service.channel)
        call = stub.ProbeModel(pb.ProbeModelRequest(model="fake:big"))
        first = await call.read()
        assert isinstance(first, pb.ProbeModelResponse)
        await eventually(lambda: any("Hamlet" in str(r.body) for r in provider.requests))
        call.cancel()
        await asyncio.gather(call.wait_for_connection(), return_exceptions=True)
        await eventually(lambda: provider.abandoned >= 1)
        assert "fake:big" not in await listed(service)


async def test_what_cannot_be_probed_is_said(start_agent: StartAgent) -> None:
    async with start_agent() as service:
        assert (await refused(service, "")).metadata["field"] == "model"
        assert (await refused(service, "demo", repetitions=21)).metadata["field"] == "repetitions"
        assert (await refused(service, "demo", repetitions=-1)).metadata["field"] == "repetitions"
        assert (await refused(service, "gone:x")).reason == "MODEL_NOT_FOUND"
        stub = agent_grpc.AgentServiceStub(service.channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.ProbeModel(pb.ProbeModelRequest(model="demo", tiers=[0])):
                pass
        assert from_rpc_error(caught.value).metadata["field"] == "tiers[0]"


class _Line:
    """A `LimitService` whose answers are scripted: seconds to wait, or granted for a moment."""

    def __init__(self, *delays: float, granted: bool = False) -> None:
        self.delays = list(delays)
        self.granted = granted
        self.asked: list[str] = []

    async def reserve(self, request: limit_pb.ReserveRequest) -> limit_pb.ReserveResponse:
        self.asked.append(request.request_id)
        grant = limit_pb.ReserveGrant(reservation_id=request.request_id)
        delay = self.delays.pop(0) if self.delays else 0.0
        grant.delay.FromMilliseconds(round(delay * 1000))
        if self.granted:
            grant.expire_time.FromSeconds(2_000_000_000)
        return limit_pb.ReserveResponse(granted=grant)


async def test_a_place_in_line_is_kept_while_it_is_waited_for() -> None:
    clock, line = FakeClock(), _Line(12.0, 7.0, 2.0)
    taking = asyncio.create_task(_outside(line, clock).line(Prompt("", [])).take(REAL))
    for pause in (5.0, 5.0, 2.0):
        await eventually(lambda: clock.sleepers)
        clock.advance(pause)
        await asyncio.sleep(0)
    assert await taking == line.asked[0]
    assert len(line.asked) == 4
    assert len(set(line.asked)) == 1, "asking again is no new place"


async def test_a_line_that_takes_too_long_is_left() -> None:
    outside = _outside(_Line(1000.0), FakeClock())
    with pytest.raises(ModelUnavailable) as caught:
        await outside.line(Prompt("", [])).take(REAL)
    assert caught.value.metadata["cause"] == "throttled"
    assert outside.usage.left  # type: ignore[attr-defined]


async def test_a_probe_that_is_stopped_in_line_leaves_it() -> None:
    clock, line = FakeClock(), _Line(0.8, granted=True)
    outside = _outside(line, clock)
    taking = asyncio.create_task(outside.line(Prompt("", [])).take(REAL))
    await eventually(lambda: clock.sleepers)
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)
    assert outside.usage.left == line.asked  # type: ignore[attr-defined]


REAL = ProviderModel("fake", "big", ProviderSettings(base_url="http://127.0.0.1:9"))


def _outside(line: _Line, clock: FakeClock) -> Outside:
    left: list[str] = []
    usage: Any = SimpleNamespace(
        left=left, not_sent=lambda reservation, run_id, model: left.append(reservation)
    )
    stub: Any = SimpleNamespace(Reserve=line.reserve)
    return Outside(stub, usage, Prices({}), load(None, {}), clock)
