"""When a session that nobody closes ends all the same."""

from __future__ import annotations

from acp_svc.domain.session import Mode, Session, State

ABANDONED_US = 300 * 1_000_000
"""How long a spawn that waits for its answer is kept when the service that opened it is gone."""

FORSAKEN_US = 60 * 1_000_000
"""How long a session for one turn waits for what its run was told meanwhile. The run is next in its
lane, and waits at most for a slot, unless it was cancelled."""

_IDLE = (State.STARTING, State.READY, State.PARKED)


def idle_too_long(session: Session, idle_us: int, now_us: int) -> bool:
    """Whether it did nothing for so long that it is closed. Never true while a run is at work."""
    if session.state not in _IDLE or session.run_id:
        return False
    if session.spec.mode is Mode.ONESHOT and session.prompted:
        idle_us = min(idle_us, FORSAKEN_US)
    return now_us - session.active_us >= idle_us


def abandoned(session: Session, now_us: int) -> bool:
    """Whether it waits for a call that will not be repeated any more.

    A spawn that waits for its answer opens the session itself. When the service went down meanwhile
    the caller repeats the call, or does not; nothing else would open it. Ask only of sessions that
    nobody opens at this moment.
    """
    if session.state is not State.STARTING or session.deferred:
        return False
    return now_us - session.active_us >= ABANDONED_US
