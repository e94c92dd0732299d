"""Reading and writing summaries of conversations, inside somebody's transaction.

What a summary stands for stays where it is: people still list every message.
"""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from agent_svc.domain.compaction import Summary
from agent_svc.store import schema as t

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Summary)


def newest(db: sa.Connection, session_key: str, epoch: int) -> Summary | None:
    """The summary that a conversation goes on from."""
    data: bytes | None = db.scalar(
        sa.select(t.summaries.c.data)
        .where(t.summaries.c.session_key == session_key, t.summaries.c.epoch == epoch)
        .order_by(t.summaries.c.covers.desc())
        .limit(1)
    )
    return None if data is None else _decoder.decode(data)


def of_turn(db: sa.Connection, run_id: str, session_key: str, turn: int) -> list[Summary]:
    """What a turn of a run has summarised, oldest first."""
    found = db.scalars(
        sa.select(t.summaries.c.data)
        .where(
            t.summaries.c.session_key == session_key,
            t.summaries.c.run_id == run_id,
            t.summaries.c.turn == turn,
        )
        .order_by(t.summaries.c.covers)
    )
    return [_decoder.decode(data) for data in found]


def add(db: sa.Connection, session_key: str, epoch: int, summary: Summary, now_us: int) -> None:
    """Store a summary."""
    db.execute(
        sa.insert(t.summaries).values(
            session_key=session_key,
            epoch=epoch,
            covers=summary.covers,
            run_id=summary.run_id,
            turn=summary.turn,
            data=_encoder.encode(summary),
            create_us=now_us,
        )
    )
