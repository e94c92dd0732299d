"""The rules of the scheduler without a server: a kernel, a clock, and workers that never tire."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from scheduler_svc.domain import admission, leasing, turns
from scheduler_svc.domain.estimates import Estimate, estimate
from scheduler_svc.domain.kernel import Config, Kernel
from scheduler_svc.domain.leasing import Leased
from scheduler_svc.domain.records import (
    SECOND,
    AnnounceMode,
    Failure,
    NewRun,
    Run,
    RunState,
    Wait,
    WaitKind,
)
from scheduler_svc.domain.turntimes import TurnKind

EVERYTHING = 100_000
"""Near enough to be played forward, whatever is in line."""


def complete(k: Kernel, run_id: str, token: int, now: int) -> Run:
    """Ends a turn with nothing to say."""
    return turns.complete(
        k,
        run_id,
        token,
        "",
        result=None,
        reply=None,
        mode=AnnounceMode.ALL,
        taken=[],
        steered_is_next_prompt=False,
        now=now,
    )


class World:
    """A kernel with lanes `main` and `subagent`, at a time of its own.

    `turn` says how long an execution of a run lasts. `go_on` plays; the other methods act now.
    """

    def __init__(
        self, limit: int = 1, turn: Callable[[Run], int] = lambda run: 5 * SECOND, **config: Any
    ) -> None:
        lanes = {"main": limit, "subagent": 8}
        self.k = Kernel(Config(lanes=lanes, lease_ttl=10**12, **config))
        self.now = 1_000_000 * SECOND
        self.k.last_polls["agent"] = self.now
        self.turn = turn
        self.started: dict[str, int] = {}
        self.ends: list[tuple[int, int, str]] = []
        self._ids = itertools.count(1)

    def measured(self, key: str, *times: int, child: bool = False, closing: bool = False) -> None:
        """Makes the times of turns known."""
        for time in times:
            self.k.turn_times.ended(TurnKind("agent", key, child, closing), time, waits=False)

    def message(self, session: str, customer: str = "", key: str = "a", **more: Any) -> str:
        """Accepts a message; returns its run."""
        return self._accept(
            self._new(session_key=session, customer_key=customer, estimate_key=key, **more)
        )

    def child(self, parent: Leased, key: str = "a") -> str:
        """Accepts a child of a leased run; returns the child's run."""
        new = self._new(session_key="", customer_key="", estimate_key=key, lane="subagent")
        return self._accept(new, parent)

    def _new(self, **more: Any) -> NewRun:
        run_id = f"r{next(self._ids):04}"
        fixed: dict[str, Any] = {
            "run_id": run_id,
            "request_id": run_id,
            "body_hash": b"",
            "queue": "agent",
            "lane": "main",
            "lane_cap": 1000,
        }
        return NewRun(**{**fixed, **more})

    def _accept(self, new: NewRun, parent: Leased | None = None) -> str:
        lease = (parent.run.run_id, parent.lease.token) if parent is not None else None
        return admission.enqueue(
            self.k, new, self.now, parent_lease=lease, tool_call_id=new.run_id
        ).run_id

    def run(self, run_id: str) -> Run:
        """A live run."""
        return self.k.runs[run_id]

    def pass_time(self, seconds: float) -> None:
        """Lets time pass, and nothing happen."""
        self.now += round(seconds * SECOND)

    # -- Working ----------------------------------------------------------------------------------

    def lease(self, most: int = 10_000) -> list[Leased]:
        """Hands out what is ready."""
        leasing.greet(self.k, "agent", "w", 1, self.now)
        found = leasing.lease_ready(self.k, "agent", "w", 1, most, self.now)
        for leased in found:
            run = leased.run
            self.started.setdefault(run.run_id, self.now)
            self.ends.append((self.now + self.turn(run), leased.lease.token, run.run_id))
        return found

    def go_on(self, until: int) -> None:
        """Lets turns end, in order, and hands out what is ready, up to a point in time."""
        while True:
            self.lease()
            self.k.take_changes()
            self.k.last_polls["agent"] = until
            due = [end for end in self.ends if end[0] <= until]
            if not due:
                break
            self.now = min(due)[0]
            for end in sorted(end for end in due if end[0] == self.now):
                self.ends.remove(end)
                self.complete(end[2], end[1])
        self.now = until

    def complete(self, run_id: str, token: int) -> None:
        """Ends a turn with a reply."""
        complete(self.k, run_id, token, self.now)

    def wait(self, leased: Leased, wait: Wait | None = None, *, hold_lane: bool = True) -> None:
        """Ends a turn with a wait; for all its children if nothing else is said."""
        turns.suspend(
            self.k,
            leased.run.run_id,
            leased.lease.token,
            "",
            wait=wait or Wait(kind=WaitKind.CHILDREN),
            hold_lane=hold_lane,
            interim=b"",
            taken=[],
            now=self.now,
        )

    def fail(self, leased: Leased, failure: Failure) -> None:
        """Ends an attempt with an error that may pass."""
        turns.fail(
            self.k,
            leased.run.run_id,
            leased.lease.token,
            "",
            failure=failure,
            retryable=True,
            retry_after=0,
            taken=[],
            now=self.now,
        )

    def estimates(self, near: int = EVERYTHING) -> dict[str, Estimate]:
        """The estimates of all that wait."""
        queued = [r for r in self.k.runs.values() if r.state is RunState.QUEUED]
        return {r.run_id: estimate(self.k, r, self.now, near=near) for r in queued}
