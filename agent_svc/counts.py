"""What the service counts of turns: model calls, tools, steps, and what the guard did."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from agent_svc.domain import steps as s
from agent_svc.models.asking import Watch
from agent_svc.models.base import CallFailed, Model, ModelReply, full_name
from svckit.metrics import NOBODY, Metrics
from svckit.metrics import definitions as d

UNKNOWN = "unknown"


class Counts:
    """One per process. Models are those of the configuration, tools those that were offered."""

    def __init__(self, metrics: Metrics = NOBODY, models: Sequence[str] = ()) -> None:
        self._calls = metrics.counter(d.MODEL_CALLS)
        self._failures = metrics.counter(d.MODEL_FAILURES)
        self._seconds = metrics.histogram(d.MODEL_SECONDS)
        self._retries = metrics.counter(d.MODEL_RETRIES)
        self._fallbacks = metrics.counter(d.MODEL_FALLBACKS)
        self._limit_waits = metrics.counter(d.LIMIT_WAITS)
        self._tokens = metrics.counter(d.TOKENS)
        self._cost = metrics.counter(d.COST)
        self._unpriced = metrics.counter(d.UNPRICED)
        self._guard = metrics.counter(d.GUARD)
        self._tools = metrics.counter(d.TOOL_CALLS)
        self._tool_seconds = metrics.histogram(d.TOOL_SECONDS)
        self._steps = metrics.counter(d.STEPS)
        for model in models:
            for outcome in ("answered", "throttled", "unavailable", "rejected"):
                self._calls.start(model, outcome)
            self._retries.start(model)
            self._limit_waits.start(model)
            self._cost.start(model)

    def beside(self, other: PricedWatch) -> CountedCalls:
        """Count the calls that `other` watches."""
        return CountedCalls(self, other)

    def calling(self, model: str, *, again: bool) -> None:
        """A model is called, or `again` after it failed."""
        if again:
            self._retries.add(model)

    def failed(self, model: str, failure: CallFailed) -> None:
        """A call failed."""
        self._calls.add(model, failure.outcome)
        self._failures.add(model, failure.cause or "other")

    def answered(self, model: str, reply: ModelReply, seconds: float) -> None:
        """A call was answered."""
        usage = reply.usage
        self._calls.add(model, "answered")
        self._seconds.observe(seconds, model)
        self._tokens.add(model, "input", by=max(0, usage.read - usage.cached))
        self._tokens.add(model, "cached_input", by=usage.cached)
        self._tokens.add(model, "output", by=usage.written)

    def priced(self, model: str, cost_micros: int | None) -> None:
        """What a call cost is known, or is not: `None`."""
        if cost_micros is None:
            self._unpriced.add(model)
        else:
            self._cost.add(model, by=cost_micros / 1_000_000)

    def fell_back(self, requested: str, answered: str) -> None:
        """Another model answered than the one that was asked for first."""
        self._fallbacks.add(requested, answered)

    def waits_for_limit(self, model: str) -> None:
        """A turn ends to wait for a limit."""
        self._limit_waits.add(model)

    def guarded(self, rung: s.Guarded) -> None:
        """The guard did something."""
        self._guard.add(rung.trigger, rung.step)

    @contextmanager
    def tool(self, name: str) -> Iterator[list[s.Record]]:
        """Calls of a tool are at work; what became of each is put into the list. `name` is empty
        for what only the model knows."""
        began, records = time.perf_counter(), list[s.Record]()
        try:
            yield records
        finally:
            seconds = time.perf_counter() - began
            for record in records:
                failed = isinstance(record, s.Returned) and record.failed
                self._tools.add(name or UNKNOWN, "failed" if failed else "ok")
                self._tool_seconds.observe(seconds, name or UNKNOWN)

    def stored(self, records: Sequence[s.Record]) -> None:
        """Steps were stored."""
        for record in records:
            self._steps.add(type(record).__name__.lower())


class PricedWatch(Watch, Protocol):
    """Who watches the calls of a turn is told their price too."""

    def priced(self, cost_micros: int | None) -> None:
        """What the answer cost; `None` when nobody knows."""


class CountedCalls:
    """Counts, and passes on."""

    def __init__(self, counts: Counts, other: PricedWatch) -> None:
        self._counts = counts
        self._other = other
        self._model = ""
        self._tries = 0
        self._took = 0.0

    def asks(self, model: Model, passed_over: str) -> None:
        """See `Watch`."""
        self._model, self._tries = full_name(model), 0
        self._other.asks(model, passed_over)

    def trying(self) -> AbstractContextManager[object]:
        """See `Watch`."""
        return self._trying()

    @contextmanager
    def _trying(self) -> Iterator[None]:
        self._counts.calling(self._model, again=self._tries > 0)
        self._tries += 1
        began = time.perf_counter()
        try:
            with self._other.trying():
                yield
        finally:
            self._took = time.perf_counter() - began

    def failed(self, failure: CallFailed) -> None:
        """See `Watch`."""
        self._counts.failed(self._model, failure)
        self._other.failed(failure)

    def answered(self, reply: ModelReply) -> None:
        """See `Watch`."""
        self._counts.answered(self._model, reply, self._took)
        self._other.answered(reply)

    def priced(self, cost_micros: int | None) -> None:
        """See `PricedWatch`."""
        self._counts.priced(self._model, cost_micros)
        self._other.priced(cost_micros)
