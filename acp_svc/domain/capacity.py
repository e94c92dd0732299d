"""Which session makes room for another when there are as many processes as allowed."""

from __future__ import annotations

from collections.abc import Iterable

from acp_svc.domain.session import Session, State


def to_park(held: Iterable[Session]) -> str | None:
    """Return the id of the session to park, or None when none may be.

    `held` have a process and nobody uses them at this moment. It is the one that did nothing for
    the longest time; never one at work or asking, nor one that would forget what it was told.
    """
    idle = [s for s in held if s.state is State.READY and s.survives]
    if not idle:
        return None
    return min(idle, key=lambda session: (session.active_us, session.session_id)).session_id
