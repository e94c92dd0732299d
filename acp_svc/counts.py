"""What the service counts of harnesses: their processes, prompts and permissions."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from acp_svc.domain.metering import Spent
from acp_svc.domain.permissions import Decision
from acp_svc.domain.session import State
from svckit.errors import StoreUnavailable
from svckit.metrics import NOBODY, Metrics
from svckit.metrics import definitions as d

if TYPE_CHECKING:
    from acp_svc.processes import Processes
    from acp_svc.store.sessions import SessionStore

PROVIDER = "acp"
"""Stands for the provider where usage is counted; the model is the harness."""


class Counts:
    """One per process. Harnesses are those of the catalog, so there are few."""

    def __init__(self, metrics: Metrics = NOBODY, harnesses: Iterable[str] = ()) -> None:
        self._openings = metrics.counter(d.ACP_OPENINGS)
        self._open_seconds = metrics.histogram(d.ACP_OPEN_SECONDS)
        self._prompts = metrics.counter(d.ACP_PROMPTS)
        self._prompt_seconds = metrics.histogram(d.ACP_PROMPT_SECONDS)
        self._permissions = metrics.counter(d.ACP_PERMISSIONS)
        self._waiting = metrics.gauge(d.ACP_PERMISSIONS_WAITING)
        self._waits = metrics.histogram(d.ACP_PERMISSION_WAIT)
        self._tokens = metrics.counter(d.TOKENS)
        self._cost = metrics.counter(d.COST)
        self._unpriced = metrics.counter(d.UNPRICED)
        for harness in harnesses:
            self._openings.start(harness, "opened")
            self._prompts.start(harness, "end_turn")
        for answer in ("allowed", "rejected", "expired", "cancelled"):
            self._waits.start(answer)

    def opened(self, harness: str, seconds: float) -> None:
        """A session has a process that is ready."""
        self._openings.add(harness, "opened")
        self._open_seconds.observe(seconds, harness)

    def not_opened(self, harness: str, reason: str) -> None:
        """A session could not be opened. `reason` is that of the error."""
        self._openings.add(harness, reason.lower())

    def prompted(self, harness: str, outcome: str, seconds: float) -> None:
        """A prompt ended: with a reason to stop of the contract, or a cause of failure."""
        self._prompts.add(harness, outcome)
        self._prompt_seconds.observe(seconds, harness)

    def decided(self, decision: Decision) -> None:
        """A permission was decided, by a rule or by people."""
        self._permissions.add("allowed" if decision.allowed else "rejected", decision.rule.value)

    def asking(self) -> None:
        """People are asked. `answered` must follow."""
        self._waiting.add()

    def answered(self, decision: Decision, seconds: float) -> None:
        """People were asked for so long, whatever came of it."""
        self._waiting.add(by=-1)
        rule = decision.rule.value
        answer = rule if rule in ("expired", "cancelled") else None
        answer = answer or ("allowed" if decision.allowed else "rejected")
        self._waits.observe(seconds, answer)

    def spent(self, harness: str, spent: Spent) -> None:
        """A harness reported what it used."""
        model = f"{PROVIDER}:{harness}"
        self._tokens.add(model, "input", by=max(0, spent.read - spent.cached))
        self._tokens.add(model, "cached_input", by=spent.cached)
        self._tokens.add(model, "output", by=spent.written)
        self._cost.add(model, by=spent.cost_micros / 1_000_000)
        if not spent.priced:
            self._unpriced.add(model)


def show(metrics: Metrics, store: SessionStore, processes: Processes, worker: str) -> None:
    """Show what stands: the sessions of this worker by state, and its processes."""
    sessions = metrics.gauge(d.ACP_SESSIONS)

    async def look() -> None:
        with suppress(StoreUnavailable):  # what it said before stands: the rest can be told
            found = await store.count(worker)
            for state in State:
                if not state.ended:
                    sessions.set(found.get(state, 0), state.value)

    metrics.before(look)
    metrics.read(d.ACP_PROCESSES, lambda: processes.taken)
    metrics.read(d.ACP_PROCESSES_LIMIT, lambda: processes.most)
