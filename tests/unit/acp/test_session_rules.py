"""The life of an ACP session: every rule, and what holds after any of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acp_svc.domain import capacity, lifetime
from acp_svc.domain import session as rules
from acp_svc.domain.permissions import PermissionMode
from acp_svc.domain.session import Mode, Opening, Session, Spec, State, Trouble

NOW = 1_000_000_000
TROUBLE = Trouble("ACP_SESSION_INIT_FAILED", "no", {"cause": "load"})


def make(session_id: str = "s", *, mode: Mode = Mode.PERSISTENT, **fields: object) -> Session:
    spec = Spec(
        harness_id="h",
        session_key="agent:h:acp:s",
        cwd="/w",
        permission_mode=PermissionMode.ASK,
        ask_timeout_seconds=300,
        turn_timeout_seconds=60,
        mode=mode,
    )
    base = Session(session_id=session_id, spec=spec, create_us=0, active_us=0)
    return msgspec.structs.replace(base, **fields)


def opened(session: Session, how: Opening = Opening.NEW, *, loadable: bool = True) -> Session:
    return rules.opened(
        session,
        worker="acp-0",
        now_us=NOW,
        upstream_id="up",
        how=how,
        loadable=loadable,
        sandboxed=False,
        harness_mode="ask",
        harness_modes=["ask", "plan"],
        models=["a"],
        options={"o": "1"},
    )


RULES: dict[str, Callable[[Session], Session]] = {
    "opened": opened,
    "reopened as new": lambda s: opened(s, loadable=False),
    "resumed": lambda s: opened(s, Opening.RESUMED),
    "not opened": lambda s: rules.not_opened(s, TROUBLE, NOW),
    "at work": lambda s: rules.at_work(s, "r", NOW),
    "sending": lambda s: rules.sending(s, NOW),
    "asking": lambda s: rules.asking(s, 2, NOW),
    "answered": lambda s: rules.asking(s, 0, NOW),
    "rested": lambda s: rules.rested(s, has_process=True, now_us=NOW),
    "rested without process": lambda s: rules.rested(s, has_process=False, now_us=NOW),
    "parked": rules.parked,
    "troubled": lambda s: rules.troubled(s, TROUBLE),
    "closing": rules.closing,
    "closed": lambda s: rules.closed(s, NOW),
    "restart": lambda s: rules.after_restart(s, NOW),
}
names = st.lists(st.sampled_from(sorted(RULES)), max_size=30)
modes = st.sampled_from(Mode)


def play(steps: list[str], mode: Mode = Mode.PERSISTENT) -> list[Session]:
    lives = [make(mode=mode)]
    for step in steps:
        if step == "sending" and not lives[-1].state.open:
            continue  # the store refuses it
        lives.append(RULES[step](lives[-1]))
    return lives


@given(names, modes)
def test_an_end_is_an_end(steps: list[str], mode: Mode) -> None:
    lives = play(steps, mode)
    for before, after in itertools.pairwise(lives):
        if before.state.ended:
            assert after == before


@given(names, modes)
def test_closing_leads_nowhere_but_to_closed(steps: list[str], mode: Mode) -> None:
    lives = play(steps, mode)
    for before, after in itertools.pairwise(lives):
        if before.state is State.CLOSING:
            assert after.state in (State.CLOSING, State.CLOSED)


@given(names, modes)
def test_what_a_state_says_is_so(steps: list[str], mode: Mode) -> None:
    for session in play(steps, mode):
        assert (session.end_us > 0) == session.state.ended
        assert (session.open_questions > 0) <= (session.state in (State.ASKING, State.CLOSING))
        if session.state in (State.PARKED, State.CLOSED, State.FAILED):
            assert not session.worker
            assert not session.run_id
        if session.state in (State.READY, State.PARKED):
            assert not session.run_id
        if session.state is State.ASKING:
            assert session.run_id
        if session.state is State.FAILED:
            assert session.trouble is not None


@given(names, modes)
def test_after_a_restart_no_process_and_no_run_is_left(steps: list[str], mode: Mode) -> None:
    session = rules.after_restart(play(steps, mode)[-1], NOW)
    assert session.state in (State.STARTING, State.PARKED, State.CLOSED, State.FAILED)
    assert not session.worker
    assert session.state is not State.STARTING or session.opening is None


def test_opening_that_fails_is_the_end_only_the_first_time() -> None:
    first = rules.not_opened(make(), TROUBLE, NOW)
    assert (first.state, first.trouble, first.end_us) == (State.FAILED, TROUBLE, NOW)
    later = rules.not_opened(rules.parked(opened(make())), TROUBLE, NOW)
    assert (later.state, later.trouble, later.end_us) == (State.PARKED, TROUBLE, 0)
    # Opened again at the next prompt, the trouble is over.
    assert opened(later).trouble is None


def test_reopened_for_a_run_it_stays_busy_with_it() -> None:
    crashed = rules.at_work(opened(make()), "r", NOW)
    again = opened(crashed, Opening.LOADED)
    assert (again.state, again.run_id, again.opening) == (State.BUSY, "r", Opening.LOADED)


def test_a_session_for_one_turn_closes_after_it_and_not_before() -> None:
    once = rules.at_work(opened(make(mode=Mode.ONESHOT)), "r", NOW)
    # Nothing was sent, say because the store was away: the turn comes again.
    assert rules.rested(once, has_process=True, now_us=NOW).state is State.READY
    sent = rules.sending(once, NOW)
    assert rules.rested(sent, has_process=True, now_us=NOW).state is State.CLOSING
    # Also when the harness crashed and another was started that knows nothing.
    crashed = opened(sent)
    assert rules.rested(crashed, has_process=True, now_us=NOW).state is State.CLOSING


def test_the_idlest_is_parked_and_never_one_that_would_forget() -> None:
    def ready(name: str, active_us: int, **fields: object) -> Session:
        known: dict[str, object] = {"state": State.READY, "loadable": True, "prompted": True}
        return make(name, active_us=active_us, **(known | fields))

    held = [
        ready("busy", 1, state=State.BUSY, run_id="r"),
        ready("asking", 2, state=State.ASKING, run_id="q"),
        ready("would forget", 3, loadable=False),
        ready("idlest", 5),
        ready("later", 6),
    ]
    assert capacity.to_park(held) == "idlest"
    assert capacity.to_park(held[:3]) is None
    # One that was told nothing has nothing to forget.
    assert capacity.to_park([*held, ready("untold", 4, loadable=False, prompted=False)]) == "untold"


@pytest.mark.parametrize("state", list(State))
def test_only_what_nobody_uses_is_idle(state: State) -> None:
    session = make(state=state, active_us=NOW - 100)
    idle = state in (State.STARTING, State.READY, State.PARKED)
    assert lifetime.idle_too_long(session, 100, NOW) == idle
    assert not lifetime.idle_too_long(session, 101, NOW)


def test_an_abandoned_spawn_is_one_whose_caller_had_to_ask_again() -> None:
    old = make(active_us=NOW - lifetime.ABANDONED_US)
    assert lifetime.abandoned(old, NOW)
    assert not lifetime.abandoned(old, NOW - 1)
    assert not lifetime.abandoned(msgspec.structs.replace(old, deferred=True), NOW)
    assert not lifetime.abandoned(msgspec.structs.replace(old, state=State.PARKED), NOW)
