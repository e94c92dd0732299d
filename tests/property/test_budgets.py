"""Budgets and limits over whole trees, under random calls, losses and restarts.

The rules are driven directly on a kernel: trees of capped runs that reserve, report, lie about what
they use, lose their workers and end. A restart goes through what was stored.
"""

from __future__ import annotations

import itertools
import json
import os
from random import Random
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from scheduler_svc.domain import (
    accounting,
    admission,
    attempts,
    budgets,
    leasing,
    recovery,
    reserving,
    settling,
    sweeping,
    turns,
)
from scheduler_svc.domain.kernel import Config, Kernel
from scheduler_svc.domain.limits import PATIENCE, Outcome, Phase, ProviderRates
from scheduler_svc.domain.records import (
    SECOND,
    Caps,
    NewRun,
    Run,
    RunState,
    Usage,
    Wait,
    WaitKind,
)
from svckit.errors import BudgetExceeded, LeaseLost, ServiceError

# Few, so that a short history fills a minute.
PER_MINUTE = 6
CONFIG = Config(
    lanes={"main": 50, "subagent": 50},
    lease_ttl=10_000 * SECOND,
    max_depth=3,
    max_children=4,
    max_descendants=20,
    providers={"p": ProviderRates(requests_per_minute=PER_MINUTE, tokens_per_minute=20_000)},
)
small = st.integers(1, 900)
# More examples for a longer search: PROPERTY_SCALE=20 pytest tests/property
SCALE = int(os.environ.get("PROPERTY_SCALE", "1"))


class Budgets(RuleBasedStateMachine):
    """A gateway, workers and a provider, without services between them."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_700_000_000 * SECOND
        self.k = Kernel(CONFIG)
        self.ids = itertools.count(1)
        self.facts: dict[tuple[str, str], bytes] = {}
        self.runs: dict[str, bytes] = {}
        self.ended: dict[str, Run] = {}
        self.leases: dict[str, int] = {}
        # What reports told above their reservations: so far, and no further, a cap can be passed.
        self.excess: dict[str, int] = {}
        self.starts: list[int] = []
        self.sent: dict[str, tuple[str, int]] = {}  # reservation -> run, tokens

    def commit(self) -> None:
        changes = self.k.take_changes()
        for key, fact in changes.facts.items():
            if fact is None:
                self.facts.pop(key, None)
            else:
                self.facts[key] = msgspec.json.encode(fact)
        for run in changes.runs.values():
            self.runs[run.run_id] = msgspec.json.encode(run)
            if run.terminal:
                self.ended[run.run_id] = run

    def new(self, session: str, caps: Caps) -> NewRun:
        number = next(self.ids)
        return NewRun(
            run_id=f"r{number:03}",
            request_id=f"q{number}",
            body_hash=b"",
            session_key=session,
            customer_key=session or "c",
            queue="agent",
            lane="main" if session else "subagent",
            caps=caps,
        )

    def lease_all(self) -> None:
        for item in leasing.lease_ready(self.k, "agent", "w", 1, 100, self.now):
            self.leases[item.run.run_id] = item.lease.token
            grant = item.grant
            if grant is not None and not grant.delay:
                self.send(grant.reservation_id)
        self.commit()

    def send(self, reservation: str) -> None:
        call = self.k.limits.reservations.get(reservation)
        if call is not None and reservation not in self.sent:
            if call.limiter == "p/":
                self.starts.append(call.time)
            self.sent[reservation] = (call.run_id, call.tokens)

    def tell(self, work: Any) -> Any:
        try:
            return work()
        except ServiceError as err:
            return err
        finally:
            self.commit()

    @rule(cap=st.one_of(st.none(), st.integers(500, 5000)), reserve=st.sampled_from([None, 0, 0.5]))
    def message(self, cap: int | None, reserve: float | None) -> None:
        new = self.new(f"s{next(self.ids)}", Caps(max_tokens=cap, reply_reserve=reserve))
        self.tell(lambda: admission.enqueue(self.k, new, self.now, parent_lease=None))
        self.lease_all()

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), cap=st.one_of(st.none(), st.integers(300, 3000)))
    def spawn(self, data: st.DataObject, cap: int | None) -> None:
        run_id = data.draw(st.sampled_from(sorted(self.leases)))
        new = self.new("", Caps(max_tokens=cap))
        lease = (run_id, self.leases[run_id])
        self.tell(
            lambda: admission.enqueue(self.k, new, self.now, parent_lease=lease, tool_call_id="1")
        )
        self.lease_all()

    @initialize(caps=st.lists(st.integers(500, 5000), min_size=2, max_size=4))
    def begin(self, caps: list[int]) -> None:
        for cap in caps:
            self.message(cap, None)

    @precondition(lambda self: self.leases)
    @rule(sizes=st.lists(small, min_size=1, max_size=6), seed=st.randoms(use_true_random=False))
    def calls(self, sizes: list[int], seed: Random) -> None:
        for tokens in sizes:
            if self.leases:
                provider = seed.choice(["p", "free"])
                self.reserve(seed.choice(sorted(self.leases)), provider, tokens)

    def reserve(self, run_id: str, provider: str, tokens: int) -> None:
        run = self.k.runs[run_id]
        found = self.tell(
            lambda: reserving.reserve(
                self.k,
                run,
                f"{run_id}/{next(self.ids)}",
                provider_id=provider,
                credential_id="",
                model="m",
                tokens=tokens,
                cost=0,
                now=self.now,
            )
        )
        if isinstance(found, BudgetExceeded):
            assert int(found.metadata["used"]) + tokens > int(found.metadata["limit"])
            return
        # At every grant: settled + reserved fits every cap on the path.
        for node in (run, *budgets.ancestors(self.k, run)):
            if node.caps.max_tokens is not None:
                held, _ = self.k.limits.held(node.run_id)
                assert node.tree_usage.tokens + held <= node.caps.max_tokens
        if not found.delay:
            self.send(found.reservation_id)
            return
        if found.delay <= SECOND:
            self.send(found.reservation_id)
            return
        wait = Wait(kind=WaitKind.LIMIT, reservation=found.reservation_id)
        token = self.leases.pop(run_id)
        self.tell(
            lambda: turns.suspend(
                self.k,
                run_id,
                token,
                f"d{token}",
                wait=wait,
                hold_lane=True,
                interim=b"",
                taken=[],
                now=self.now,
            )
        )
        self.lease_all()

    @precondition(lambda self: self.sent)
    @rule(
        data=st.data(),
        used=st.integers(0, 1200),
        outcome=st.sampled_from(list(Outcome)),
    )
    def report(self, data: st.DataObject, used: int, outcome: Outcome) -> None:
        reservation = data.draw(st.sampled_from(sorted(self.sent)))
        run_id, reserved = self.sent.pop(reservation)
        if outcome is not Outcome.ANSWERED:
            used = 0
        known = reservation in self.k.limits.reservations
        run = self.k.runs.get(run_id) or self.ended[run_id]
        self.k.take_in({}, self.path(run), [], {}, {})
        usage = Usage(model_calls=1, input_tokens=used)

        def apply() -> None:
            accounting.report(
                self.k, run_id, f"report/{reservation}", b"", usage, "", "p:m", self.now
            )
            reserving.settle(self.k, reservation, "p/", outcome, used, 0, self.now)

        for node in self.path(run):
            over = used - (reserved if known else 0)
            self.excess[node.run_id] = self.excess.get(node.run_id, 0) + max(0, over)
        self.tell(apply)

    def path(self, run: Run) -> list[Run]:
        found = [run]
        while run.parent_id:
            run = self.k.runs.get(run.parent_id) or self.ended[run.parent_id]
            found.append(run)
        return found

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def complete(self, data: st.DataObject) -> None:
        run_id = data.draw(st.sampled_from(sorted(self.leases)))
        token = self.leases.pop(run_id)
        self.tell(
            lambda: turns.complete(
                self.k,
                run_id,
                token,
                "d",
                result=b"",
                reply=None,
                mode=turns.AnnounceMode.ALL,
                taken=[],
                steered_is_next_prompt=False,
                now=self.now,
            )
        )
        self.lease_all()

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def a_worker_is_lost(self, data: st.DataObject) -> None:
        run_id = data.draw(st.sampled_from(sorted(self.leases)))
        del self.leases[run_id]
        self.tell(lambda: attempts.lose(self.k, self.k.runs[run_id], self.now))

    @precondition(lambda self: self.k.runs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        run_id = data.draw(st.sampled_from(sorted(self.k.runs)))
        self.tell(lambda: settling.cancel(self.k, self.k.runs[run_id], "x", "request", self.now))
        for stopping in [r for r in self.leases if r in self.k.runs and self.k.runs[r].stopping]:
            token = self.leases.pop(stopping)
            self.tell(lambda s=stopping, t=token: turns.release(self.k, s, t, f"d{t}", self.now))
        self.leases = {r: t for r, t in self.leases.items() if r in self.k.runs}

    @rule(span=st.sampled_from([SECOND, 5 * SECOND, 40 * SECOND, PATIENCE]))
    def time_passes(self, span: int) -> None:
        end = self.now + span
        while (due := self.k.next_time()) is not None and due <= end:
            self.now = max(self.now, due)
            sweeping.sweep(self.k, self.now)
            self.commit()
            self.lease_all()
        self.now = end
        sweeping.sweep(self.k, self.now)
        self.commit()

    @rule()
    def restart(self) -> None:
        stored = [msgspec.json.decode(data, type=Run) for data in self.runs.values()]
        unfinished = sorted((r for r in stored if not r.terminal), key=lambda run: run.order)
        before = {run_id: self.k.limits.held(run_id) for run_id in self.k.runs}
        last = (self.k.next_order, self.k.next_token, self.k.next_position)
        snapshot = recovery.Snapshot(
            runs=unfinished,
            facts=dict(self.facts),
            last_order=last[0] - 1,
            last_token=last[1] - 1,
            last_position=last[2] - 1,
        )
        self.k = recovery.rebuild(CONFIG, snapshot, self.now)
        assert {run_id: self.k.limits.held(run_id) for run_id in self.k.runs} == before

    @invariant()
    def what_is_used_passes_a_cap_by_errors_of_estimates_only(self) -> None:
        for run in self.k.runs.values():
            if run.caps.max_tokens is not None:
                excess = self.excess.get(run.run_id, 0)
                assert run.tree_usage.tokens <= run.caps.max_tokens + excess

    @invariant()
    def what_is_held_is_what_is_outstanding(self) -> None:
        limits = self.k.limits
        held: dict[str, int] = {}
        for call in limits.reservations.values():
            for run_id in call.path:
                held[run_id] = held.get(run_id, 0) + call.tokens
        assert held == {run_id: limits.held(run_id)[0] for run_id in held}
        stored = {key for kind, key in self.facts if kind == "reservation"}
        assert stored == set(limits.reservations), "memory is what the store says"
        for (kind, key), data in self.facts.items():
            if kind == "reservation":
                assert json.loads(data)["number"] == limits.reservations[key].number

    @invariant()
    def a_roll_up_is_the_sum_over_the_tree(self) -> None:
        everybody = self.ended | self.k.runs
        sums = dict.fromkeys(everybody, 0)
        for run in everybody.values():
            node: Run | None = run
            while node is not None:
                sums[node.run_id] += run.usage.tokens
                node = everybody.get(node.parent_id)
        assert sums == {run_id: run.tree_usage.tokens for run_id, run in everybody.items()}

    @invariant()
    def who_waits_stands_in_line(self) -> None:
        for run in self.k.runs.values():
            if run.state is RunState.SUSPENDED and run.wait and run.wait.reservation:
                call = self.k.limits.reservations[run.wait.reservation]
                assert call.phase is Phase.WAITING
                assert call.id in self.k.limits.limiters[call.limiter].waiting

    @invariant()
    def no_minute_sees_more_calls_than_the_limit(self) -> None:
        starts = sorted(self.starts)
        for first, last in zip(starts, starts[PER_MINUTE:], strict=False):
            assert last - first >= 60 * SECOND

    def teardown(self) -> None:
        """Once everybody has reported and ended, nothing is left behind."""
        for _ in range(400):
            if not self.k.runs:
                break
            self.time_passes(SECOND * 3)
            for run_id, token in list(self.leases.items()):
                del self.leases[run_id]
                found = self.tell(
                    lambda r=run_id, t=token: turns.complete(
                        self.k,
                        r,
                        t,
                        f"e{t}",
                        result=b"",
                        reply=None,
                        mode=turns.AnnounceMode.ALL,
                        taken=[],
                        steered_is_next_prompt=False,
                        now=self.now,
                    )
                )
                assert not isinstance(found, LeaseLost)
            for limiter in list(self.k.limits.limiters.values()):
                probe = limiter.state.probe
                if probe:  # the provider works again
                    self.tell(
                        lambda r=probe, key=limiter.key: reserving.settle(
                            self.k, r, key, Outcome.ANSWERED, 1, 0, self.now
                        )
                    )
            self.lease_all()
        assert not self.k.runs, "every run ends"
        self.time_passes(2 * PATIENCE)
        assert not self.k.limits.reservations
        assert "reservation" not in {kind for kind, _ in self.facts}


# A search takes what it takes; the bound only ends one that hangs.
@pytest.mark.timeout(900)
def test_budgets_and_limits_hold_over_whole_trees() -> None:
    run_machine(
        Budgets,
        settings=settings(
            max_examples=80 * SCALE,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
