"""What is counted of model calls and tools."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from agent_svc.counts import Counts
from agent_svc.domain import steps as s
from agent_svc.models.base import CallFailed, Model, ModelReply
from svckit.errors import ModelUnavailable
from svckit.metrics import Metrics
from tests.metric_names import figures


class Named:
    """A model of which only the name matters."""

    provider_id, provider_kind, name = "openai", "openai", "gpt"


class Other:
    """Whoever watches too."""

    def __init__(self) -> None:
        self.saw: list[str] = []

    def asks(self, model: Model, passed_over: str) -> None:
        self.saw.append(f"asks {model.name}")

    def trying(self) -> AbstractContextManager[object]:
        return self._trying()

    @contextmanager
    def _trying(self) -> Iterator[None]:
        self.saw.append("trying")
        yield

    def failed(self, failure: CallFailed) -> None:
        self.saw.append(f"failed {failure.outcome}")

    def answered(self, reply: ModelReply) -> None:
        self.saw.append("answered")

    def priced(self, cost_micros: int | None) -> None:
        self.saw.append(f"priced {cost_micros}")


async def test_calls_retries_tokens_and_cost_are_counted_by_model() -> None:
    metrics, other = Metrics(), Other()
    watch = Counts(metrics, ["openai:gpt"]).beside(other)
    model: Model = Named()  # type: ignore[assignment]
    watch.asks(model, "")
    throttled = CallFailed(ModelUnavailable("busy"), outcome="throttled", cause="throttled")
    with pytest.raises(CallFailed), watch.trying():
        raise throttled
    watch.failed(throttled)
    with watch.trying():
        pass
    watch.answered(ModelReply("hi", usage=s.Usage(read=100, cached=40, written=7)))
    watch.priced(2_500_000)
    watch.asks(model, "")
    with watch.trying():  # another turn's first call is no retry
        pass
    watch.answered(ModelReply("hi"))
    watch.priced(None)
    found = await figures(metrics)
    expected = {
        'conveyor_model_calls_total{model="openai:gpt",outcome="answered"}': 2,
        'conveyor_model_calls_total{model="openai:gpt",outcome="throttled"}': 1,
        'conveyor_model_calls_total{model="openai:gpt",outcome="rejected"}': 0,
        'conveyor_model_failures_total{cause="throttled",model="openai:gpt"}': 1,
        'conveyor_model_retries_total{model="openai:gpt"}': 1,
        'conveyor_model_call_seconds_count{model="openai:gpt"}': 2,
        'conveyor_tokens_total{direction="input",model="openai:gpt"}': 60,
        'conveyor_tokens_total{direction="cached_input",model="openai:gpt"}': 40,
        'conveyor_tokens_total{direction="output",model="openai:gpt"}': 7,
        'conveyor_cost_usd_total{model="openai:gpt"}': 2.5,
        'conveyor_unpriced_calls_total{model="openai:gpt"}': 1,
    }
    assert {series: found[series] for series in expected} == expected
    assert other.saw[:4] == ["asks gpt", "trying", "failed throttled", "trying"]
    assert "priced 2500000" in other.saw


async def test_a_tool_that_only_the_model_knows_becomes_no_series() -> None:
    metrics = Metrics()
    counts = Counts(metrics)
    with counts.tool("search") as ended:
        ended.append(s.Returned("1", "found"))
    with counts.tool("") as ended:
        ended.append(s.Returned("2", "there is no such tool", failed=True))
    counts.stored([s.Returned("1", "found")])
    found = await figures(metrics)
    assert found['conveyor_tool_calls_total{outcome="ok",tool="search"}'] == 1
    assert found['conveyor_tool_calls_total{outcome="failed",tool="unknown"}'] == 1
    assert found['conveyor_steps_total{kind="returned"}'] == 1
