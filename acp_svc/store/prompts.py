"""Prompts that were sent: none is sent a second time, and what came of each is kept."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from acp_svc.domain import session as rules
from acp_svc.domain.session import Session
from acp_svc.store import schema as t
from acp_svc.store.sessions import not_found, read_row, write_row
from svckit.database import Database


@dataclass(frozen=True, slots=True)
class Sent:
    """A prompt that was marked as sent. `key` names it within its run."""

    run_id: str
    key: str
    session_id: str
    ended: bool
    outcome: bytes = b""
    """What its end left, as given to `end`. Empty before, and for a failure."""


class PromptStore:
    """Prompts by run. Each verb is one transaction."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def mark(self, session_id: str, run_id: str, key: str, now_us: int) -> Session:
        """Note that a prompt is about to be sent, and that its session was told something.

        Keys of a run differ in a number only. Marking the same one again does no harm. Raises
        `AcpSessionNotFound`.
        """

        def write(db: sa.Connection) -> Session:
            session = read_row(db, session_id, lock=True)
            if session is None or not session.state.open:
                raise not_found(session_id, "the ACP session is closed")
            if _one(db, run_id, key) is None:
                db.execute(
                    sa.insert(t.prompts).values(
                        run_id=run_id,
                        prompt_key=key,
                        session_id=session_id,
                        sent_us=now_us,
                        end_us=0,
                        outcome=None,
                    )
                )
            return write_row(db, session, rules.sending(session, now_us))

        return await self._db.run(write)

    async def newest(self, run_id: str) -> Sent | None:
        """Return the prompt of a run that was marked last, or None when none was."""

        def read(db: sa.Connection) -> Sent | None:
            row = db.execute(
                sa.select(t.prompts)
                .where(t.prompts.c.run_id == run_id)
                # By the number of the turn, not by time: a clock may be set back.
                .order_by(
                    sa.func.length(t.prompts.c.prompt_key).desc(), t.prompts.c.prompt_key.desc()
                )
                .limit(1)
            ).one_or_none()
            return None if row is None else _sent(row)

        return await self._db.run(read)

    async def end(self, run_id: str, key: str, outcome: bytes, now_us: int) -> None:
        """Note that a prompt ended, and what came of it."""
        update = (
            sa.update(t.prompts)
            .where(t.prompts.c.run_id == run_id, t.prompts.c.prompt_key == key)
            .values(end_us=now_us, outcome=outcome or None)
        )
        await self._db.run(lambda db: db.execute(update) and None)

    async def forget(self, before_us: int) -> int:
        """Forget prompts that were sent before a time; returns how many."""
        old = sa.delete(t.prompts).where(t.prompts.c.sent_us < before_us)
        return await self._db.run(lambda db: db.execute(old).rowcount)


def _one(db: sa.Connection, run_id: str, key: str) -> Sent | None:
    row = db.execute(
        sa.select(t.prompts).where(t.prompts.c.run_id == run_id, t.prompts.c.prompt_key == key)
    ).one_or_none()
    return None if row is None else _sent(row)


def _sent(row: sa.Row[tuple[object, ...]]) -> Sent:
    return Sent(
        row.run_id, row.prompt_key, row.session_id, row.end_us > 0, bytes(row.outcome or b"")
    )
