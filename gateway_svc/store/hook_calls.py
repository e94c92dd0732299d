"""Reads and writes of the calls of hooks, each inside the caller's transaction.

The scheduler remembers request ids for days; who sends a webhook may repeat it, and who recorded
one may replay it, after weeks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from gateway_svc.store.schema import hook_calls

_INSERTS: Mapping[str, Callable[[sa.Table], postgresql.Insert | sqlite.Insert]] = {
    "postgresql": postgresql.insert,
    "sqlite": sqlite.insert,
}


@dataclass(frozen=True, slots=True)
class DoneCall:
    """A call that was answered."""

    body_hash: bytes
    answer: str


def find(connection: sa.Connection, hook: str, call_id: str) -> DoneCall | None:
    """Return what was answered to a call."""
    row = connection.execute(
        sa.select(hook_calls.c.body_hash, hook_calls.c.answer).where(
            hook_calls.c.hook == hook, hook_calls.c.call_id == call_id
        )
    ).one_or_none()
    return None if row is None else DoneCall(bytes(row.body_hash), row.answer)


def keep(connection: sa.Connection, hook: str, call_id: str, done: DoneCall, now_us: int) -> None:
    """Remember what was answered. Of two at once the first one counts."""
    insert = _INSERTS[connection.dialect.name](hook_calls).values(
        hook=hook,
        call_id=call_id,
        body_hash=done.body_hash,
        answer=done.answer,
        create_us=now_us,
    )
    connection.execute(insert.on_conflict_do_nothing())


def prune(connection: sa.Connection, before_us: int) -> int:
    """Forget calls that came before a time."""
    return connection.execute(
        sa.delete(hook_calls).where(hook_calls.c.create_us < before_us)
    ).rowcount
