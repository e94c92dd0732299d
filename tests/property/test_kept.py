"""Leases that are kept and workers that are preferred, where the invariants seldom get by chance.

The machine is that of `test_invariants`, with fewer rules and with runs that wait already when it
starts, so that waits end, get lost and go on in most of its stories.
"""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from scheduler_svc.domain import leasing, turns
from scheduler_svc.domain.kernel import Kernel
from scheduler_svc.domain.leasing import Leased
from scheduler_svc.domain.records import SECOND, Run, RunState, Wait, WaitKind
from tests.property.test_invariants import _SLOW_IS_FINE, SCALE, Machine, SqliteMachine


class Keeping(Machine):
    messages_to_collect = a_message_that_drops_others = None  # type: ignore[assignment]
    repeat_a_request = an_old_lease_writes = call_a_model = None  # type: ignore[assignment]
    steer_a_run = suspend = spawn = None  # type: ignore[assignment]

    @initialize(
        main=st.integers(1, 3),
        sub=st.just(1),
        workers=st.lists(st.sampled_from(["", "w", "x"]), min_size=1, max_size=3),
        rounds=st.lists(
            st.tuples(st.integers(0, 3), st.booleans(), st.booleans(), st.booleans()),
            min_size=1,
            max_size=2,
        ),
    )
    def start(
        self, main: int, sub: int, workers: list[str], rounds: list[tuple[int, bool, bool, bool]]
    ) -> None:
        super().start(main, sub)
        for session, worker in zip("abc", workers, strict=False):
            self.message(session, False, False, None, worker)
        for _ in range(2):
            self.lease(2)
            for item in list(self.held.values()):
                self.keep_under(item, 2)
        for ends in rounds:
            self.waits_end(*ends)

    @precondition(lambda self: self.kept)
    @rule(most=st.integers(0, 3), lost=st.booleans(), compare=st.booleans(), write=st.booleans())
    def waits_end(self, most: int, lost: bool, compare: bool, write: bool) -> None:
        """And go on, perhaps with a first answer that gets lost, between which somebody writes."""
        self.time_passes(3, True)
        self.lease(most, compare, lost)
        if write:
            for run_id in sorted(self.kept):
                self.write_under(self.kept[run_id], "append")
        if lost:
            self.lease(most, True)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), seconds=st.sampled_from([0, 2, 20]))
    def keep(self, data: st.DataObject, seconds: int) -> None:
        self.keep_under(self.pick(data), seconds)

    def keep_under(self, item: Leased, seconds: int) -> None:
        run_id, token = item.run.run_id, item.lease.token

        def apply(k: Kernel, now: int) -> Run:
            wait = Wait(kind=WaitKind.LIMIT, name="x", expire_time=now + seconds * SECOND)
            return leasing.copy(
                turns.suspend(
                    k,
                    run_id,
                    token,
                    f"k{token}",
                    wait=wait,
                    hold_lane=True,
                    interim=b"",
                    taken=[],
                    now=now,
                    keep=True,
                )
            )

        found = self.end(item, apply)
        if isinstance(found, Run) and not found.stopping:
            assert found.lease is None, "the slot is free"
            assert found.kept is not None, "the lease is not"
            assert found.state is RunState.SUSPENDED
            assert found.holds_lane, "nothing of the session starts beside what is kept"


class KeepingSqlite(Keeping, SqliteMachine):
    pass


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("machine", "examples"), [(Keeping, 30), (KeepingSqlite, 6)])
def test_kept_leases(machine: type[Machine], examples: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples * SCALE,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=_SLOW_IS_FINE,
        ),
    )
