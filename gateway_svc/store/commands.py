"""Reads and writes of the commands table, each inside the caller's transaction.

A row says what a command meant and what came of it, so that the same request, repeated, does not
do something else: the run that executes now is not the one that `/stop` was about.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from gateway_svc.store.schema import commands

_INSERTS: Mapping[str, Callable[[sa.Table], postgresql.Insert | sqlite.Insert]] = {
    "postgresql": postgresql.insert,
    "sqlite": sqlite.insert,
}


@dataclass(frozen=True, slots=True)
class DoneCommand:
    """A command that was begun. `meant` and `answer` are `None` as long as they are not known."""

    body_hash: bytes
    meant: tuple[str, ...] | None
    answer: bytes | None


def find(connection: sa.Connection, request_id: str) -> DoneCommand | None:
    """Return what is known of a request."""
    row = connection.execute(
        sa.select(commands.c.body_hash, commands.c.meant, commands.c.answer).where(
            commands.c.request_id == request_id
        )
    ).one_or_none()
    if row is None:
        return None
    meant = None if row.meant is None else tuple(json.loads(row.meant))
    return DoneCommand(
        bytes(row.body_hash), meant, None if row.answer is None else bytes(row.answer)
    )


def decide(
    connection: sa.Connection,
    request_id: str,
    body_hash: bytes,
    meant: Sequence[str],
    now_us: int,
) -> tuple[str, ...]:
    """Remember what a command is about, and return it: what was remembered first counts."""
    _keep(connection, request_id, body_hash, now_us, commands.c.meant, json.dumps(list(meant)))
    kept = find(connection, request_id)
    return tuple(meant) if kept is None or kept.meant is None else kept.meant


def finish(
    connection: sa.Connection, request_id: str, body_hash: bytes, answer: bytes, now_us: int
) -> None:
    """Remember what came of a command."""
    _keep(connection, request_id, body_hash, now_us, commands.c.answer, answer)


def prune(connection: sa.Connection, before_us: int) -> int:
    """Forget commands that came before a time."""
    result = connection.execute(sa.delete(commands).where(commands.c.create_us < before_us))
    return result.rowcount


def _keep(
    connection: sa.Connection,
    request_id: str,
    body_hash: bytes,
    now_us: int,
    column: sa.Column[Any],
    value: object,
) -> None:
    """Write a value that is not there yet. Of two gateways at once the first one counts."""
    insert = _INSERTS[connection.dialect.name](commands).values(
        request_id=request_id, body_hash=body_hash, create_us=now_us
    )
    connection.execute(insert.on_conflict_do_nothing())
    connection.execute(
        sa.update(commands)
        .where(commands.c.request_id == request_id, column.is_(None))
        .values({column.name: value})
    )
