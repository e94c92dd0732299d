"""Reading and writing single rows, inside somebody's transaction."""

from __future__ import annotations

import sqlalchemy as sa

from agent_svc.domain import steps as s
from agent_svc.store import schema as t


def steps(db: sa.Connection, run_id: str) -> list[s.Step]:
    """All steps of a run, in order."""
    found = db.execute(
        sa.select(t.steps.c.turn, t.steps.c.step, t.steps.c.data)
        .where(t.steps.c.run_id == run_id)
        .order_by(t.steps.c.turn, t.steps.c.step)
    )
    return [s.Step(turn, step, s.decode(data)) for turn, step, data in found]


def insert_step(
    db: sa.Connection,
    run_id: str,
    turn: int,
    step: int,
    record: s.Record,
    fencing: int,
    now_us: int,
) -> None:
    """Store one step."""
    db.execute(
        sa.insert(t.steps).values(
            run_id=run_id,
            turn=turn,
            step=step,
            kind=s.kind_of(record),
            data=s.encode(record),
            fencing=fencing,
            create_us=now_us,
        )
    )


def epoch_of(db: sa.Connection, session_key: str) -> int | None:
    """The session's present epoch, or None when it is not known."""
    epoch: int | None = db.scalar(
        sa.select(t.sessions.c.epoch).where(t.sessions.c.session_key == session_key)
    )
    return epoch


def ensure_session(db: sa.Connection, session_key: str, epoch: int, now_us: int) -> int:
    """Note a session; returns its epoch, never one lower than the caller knows."""
    known = epoch_of(db, session_key)
    if known is None:
        db.execute(
            sa.insert(t.sessions).values(session_key=session_key, epoch=epoch, create_us=now_us)
        )
        return epoch
    if epoch > known:
        # The gateway had this epoch from us: the store was put back to an older state.
        db.execute(
            sa.update(t.sessions).where(t.sessions.c.session_key == session_key).values(epoch=epoch)
        )
    return max(known, epoch)


def newest_ordinal(db: sa.Connection, session_key: str) -> int:
    """The newest exchange of a session, 0 when it has none."""
    newest: int | None = db.scalar(
        sa.select(sa.func.max(t.exchanges.c.ordinal)).where(
            t.exchanges.c.session_key == session_key
        )
    )
    return newest or 0
