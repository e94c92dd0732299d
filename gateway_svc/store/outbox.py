"""Reads and writes of the outbox and the cursor, each inside the caller's transaction."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import sqlalchemy as sa

from gateway_svc.store.schema import cursors, outbox

DELIVERY_CURSOR = "delivery"


class OutboxState(IntEnum):
    """Where a delivery is."""

    PENDING = 0
    DELIVERED = 1
    GIVEN_UP = 2


@dataclass(frozen=True, slots=True)
class NewEntry:
    """A delivery to make."""

    recipient: str
    event_key: str
    channel: str
    kind: str
    text: str
    run_id: str
    create_us: int
    trace: str = ""


@dataclass(frozen=True, slots=True)
class Entry:
    """A delivery that waits."""

    outbox_id: int
    recipient: str
    event_key: str
    channel: str
    kind: str
    text: str
    run_id: str
    attempts: int
    create_us: int
    next_us: int
    trace: str


def read_cursor(connection: sa.Connection, name: str = DELIVERY_CURSOR) -> int | None:
    """Return a position in the event log, or `None` before the first."""
    return connection.execute(
        sa.select(cursors.c.position).where(cursors.c.name == name)
    ).scalar_one_or_none()


def move_cursor(connection: sa.Connection, position: int, name: str = DELIVERY_CURSOR) -> None:
    """Store a position."""
    moved = connection.execute(
        sa.update(cursors).where(cursors.c.name == name).values(position=position)
    )
    if moved.rowcount == 0:
        connection.execute(sa.insert(cursors).values(name=name, position=position))


def add(connection: sa.Connection, entry: NewEntry) -> bool:
    """Put a delivery into its recipient's outbox; false when the event is there already."""
    there = connection.execute(
        sa.select(outbox.c.outbox_id).where(
            outbox.c.recipient == entry.recipient, outbox.c.event_key == entry.event_key
        )
    ).one_or_none()
    if there is not None:
        return False
    connection.execute(
        sa.insert(outbox).values(
            recipient=entry.recipient,
            event_key=entry.event_key,
            channel=entry.channel,
            kind=entry.kind,
            text=entry.text,
            run_id=entry.run_id,
            state=OutboxState.PENDING,
            attempts=0,
            create_us=entry.create_us,
            next_us=0,
            problem="",
            trace=entry.trace,
        )
    )
    return True


def waiting_recipients(connection: sa.Connection) -> list[str]:
    """Return everybody for whom something waits."""
    statement = (
        sa.select(outbox.c.recipient).where(outbox.c.state == OutboxState.PENDING).distinct()
    )
    return list(connection.execute(statement).scalars())


def count_pending(connection: sa.Connection) -> dict[str, int]:
    """Return how many deliveries wait, by channel."""
    statement = (
        sa.select(outbox.c.channel, sa.func.count().label("waiting"))
        .where(outbox.c.state == OutboxState.PENDING)
        .group_by(outbox.c.channel)
    )
    return {row.channel: row.waiting for row in connection.execute(statement)}


def first_pending(connection: sa.Connection, recipient: str) -> Entry | None:
    """Return a recipient's oldest delivery that waits."""
    row = connection.execute(
        sa.select(*(outbox.c[name] for name in Entry.__slots__))
        .where(outbox.c.state == OutboxState.PENDING, outbox.c.recipient == recipient)
        .order_by(outbox.c.outbox_id)
        .limit(1)
    ).one_or_none()
    return None if row is None else Entry(**row._mapping)


def settle(
    connection: sa.Connection, outbox_id: int, state: OutboxState, now_us: int, problem: str = ""
) -> None:
    """Record that a delivery is over."""
    connection.execute(
        sa.update(outbox)
        .where(outbox.c.outbox_id == outbox_id)
        .values(state=state, end_us=now_us, problem=problem[:256], attempts=outbox.c.attempts + 1)
    )


def postpone(connection: sa.Connection, outbox_id: int, next_us: int, problem: str) -> None:
    """Record a failed attempt and when the next one may be made."""
    connection.execute(
        sa.update(outbox)
        .where(outbox.c.outbox_id == outbox_id)
        .values(next_us=next_us, problem=problem[:256], attempts=outbox.c.attempts + 1)
    )


def bring_forward(connection: sa.Connection, latest_us: int) -> None:
    """Let no delivery wait for longer than until a time: the clock may have been set back."""
    connection.execute(
        sa.update(outbox)
        .where(outbox.c.state == OutboxState.PENDING, outbox.c.next_us > latest_us)
        .values(next_us=latest_us)
    )


def prune(connection: sa.Connection, before_us: int) -> int:
    """Forget deliveries that were over before a time."""
    result = connection.execute(
        sa.delete(outbox).where(outbox.c.state != OutboxState.PENDING, outbox.c.end_us < before_us)
    )
    return result.rowcount
