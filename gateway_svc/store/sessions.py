"""Reads and writes of the sessions table, each inside the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa

from conveyor.gateway.v1 import session_pb2
from conveyor.scheduler.v1 import lane_pb2
from gateway_svc.domain.binding import Binding, Notice
from gateway_svc.domain.routing import KnownSession
from gateway_svc.store.schema import sessions


@dataclass(frozen=True, slots=True)
class SessionRow:
    """A stored session. `active_us` is `None` until its first message was accepted."""

    session_key: str
    kind: int
    agent_id: str
    customer_key: str
    channel: str
    parent_session_key: str
    label: str
    epoch: int
    create_us: int
    active_us: int | None
    queue_mode: int = 0
    archive_us: int | None = None
    model: str = ""
    shown: str = ""
    bound_acp_session_id: str = ""
    binding: str = ""
    reply_address: str = ""
    notice: str = ""
    trace: str = ""

    @property
    def known(self) -> KnownSession:
        """What routing needs of it, with its agent answering."""
        return KnownSession(
            self.agent_id,
            self.customer_key,
            self.epoch,
            lane_pb2.QueueMode.ValueType(self.queue_mode),
            self.model,
            notice=Notice.read(self.notice),
            trace=self.trace,
        )


@dataclass(frozen=True, slots=True)
class SessionQuery:
    """Chooses sessions; empty fields choose all. `after` is the last (active time, key) seen.

    `not_archived_at` leaves out what was archived at that time; `None` leaves out nothing.
    """

    kinds: Sequence[int] = ()
    customer_key: str = ""
    agent_id: str = ""
    channel: str = ""
    after: tuple[int, str] | None = None
    limit: int = 50
    not_archived_at: int | None = None


def find(connection: sa.Connection, session_key: str) -> SessionRow | None:
    """Return a session, also one whose first message is still on its way."""
    row = connection.execute(
        sa.select(sessions).where(sessions.c.session_key == session_key)
    ).one_or_none()
    return None if row is None else SessionRow(**row._mapping)


def find_active(connection: sa.Connection, session_key: str) -> SessionRow | None:
    """Return a session that exists for clients."""
    row = find(connection, session_key)
    return row if row is not None and row.active_us is not None else None


def list_active(connection: sa.Connection, query: SessionQuery) -> list[SessionRow]:
    """Return sessions, last used first."""
    statement = sa.select(sessions).where(sessions.c.active_us.is_not(None))
    kinds = query.kinds or (session_pb2.SESSION_KIND_CONVERSATION,)
    statement = statement.where(sessions.c.kind.in_(list(kinds)))
    for column, value in (
        (sessions.c.customer_key, query.customer_key),
        (sessions.c.agent_id, query.agent_id),
        (sessions.c.channel, query.channel),
    ):
        if value:
            statement = statement.where(column == value)
    if query.not_archived_at is not None:
        statement = statement.where(
            sa.or_(sessions.c.archive_us.is_(None), sessions.c.archive_us > query.not_archived_at)
        )
    if query.after is not None:
        active_us, key = query.after
        statement = statement.where(
            sa.or_(
                sessions.c.active_us < active_us,
                sa.and_(sessions.c.active_us == active_us, sessions.c.session_key > key),
            )
        )
    statement = statement.order_by(sessions.c.active_us.desc(), sessions.c.session_key).limit(
        query.limit
    )
    return [SessionRow(**row._mapping) for row in connection.execute(statement)]


def lanes_below(connection: sa.Connection, parent_key: str, since_us: int, most: int) -> list[str]:
    """Return the lanes of ACP sessions spawned from a conversation that were in use since then.

    The newest first.
    """
    statement = (
        sa.select(sessions.c.session_key)
        .where(
            sessions.c.parent_session_key == parent_key,
            sessions.c.kind == session_pb2.SESSION_KIND_ACP,
            sessions.c.active_us > since_us,
            # Those of runs that agents spawned are in the trees of the conversation.
            sessions.c.reply_address != "",
        )
        .order_by(sessions.c.create_us.desc())
        .limit(most)
    )
    return [row.session_key for row in connection.execute(statement)]


def create(connection: sa.Connection, row: SessionRow) -> SessionRow:
    """Store a session unless it is there, and return the one that is there."""
    existing = find(connection, row.session_key)
    if existing is not None:
        return existing
    connection.execute(sa.insert(sessions).values(**_values(row)))
    return row


def replace_unborn(connection: sa.Connection, row: SessionRow) -> SessionRow:
    """As `create`, but takes the place of a session whose first message was never accepted.

    What was set for the session before its first message stays.
    """
    before = find(connection, row.session_key)
    if before is not None:
        kept = {name: getattr(before, name) for name in _KEPT}
        row = replace(row, **kept)
    connection.execute(
        sa.delete(sessions).where(
            sessions.c.session_key == row.session_key, sessions.c.active_us.is_(None)
        )
    )
    return create(connection, row)


def bind(
    connection: sa.Connection,
    session_key: str,
    acp_session_id: str,
    binding: Binding,
    reply_address: str,
) -> bool:
    """Let an ACP session answer a conversation; false when another one does."""
    result = connection.execute(
        sa.update(sessions)
        .where(
            sessions.c.session_key == session_key,
            sessions.c.bound_acp_session_id.in_(["", acp_session_id]),
        )
        .values(
            bound_acp_session_id=acp_session_id,
            binding=binding.write(),
            reply_address=reply_address,
            notice="",
        )
    )
    return result.rowcount == 1


def unbind(
    connection: sa.Connection, session_key: str, acp_session_id: str, notice: Notice | None
) -> bool:
    """End a binding, if it is to this ACP session; `notice` is told with the next answer."""
    result = connection.execute(
        sa.update(sessions)
        .where(
            sessions.c.session_key == session_key,
            sessions.c.bound_acp_session_id == acp_session_id,
        )
        .values(
            bound_acp_session_id="",
            binding="",
            notice=notice.write() if notice else "",
        )
    )
    return result.rowcount == 1


def bound_to(connection: sa.Connection, acp_session_id: str) -> list[SessionRow]:
    """Return the conversations that an ACP session answers."""
    found = connection.execute(
        sa.select(sessions).where(sessions.c.bound_acp_session_id == acp_session_id)
    )
    return [SessionRow(**row._mapping) for row in found]


def noticed(connection: sa.Connection, session_key: str, notice: Notice) -> None:
    """Forget a notice that is told now."""
    connection.execute(
        sa.update(sessions)
        .where(sessions.c.session_key == session_key, sessions.c.notice == notice.write())
        .values(notice="")
    )


def traced(connection: sa.Connection, session_key: str, trace: str) -> None:
    """Note the trace of a session's last message."""
    connection.execute(
        sa.update(sessions).where(sessions.c.session_key == session_key).values(trace=trace)
    )


def touch(
    connection: sa.Connection, session_key: str, active_us: int, reply_address: str = ""
) -> None:
    """Move the time of the last message on, never back; and note where its sender is, if given."""
    older = sa.or_(sessions.c.active_us.is_(None), sessions.c.active_us < active_us)
    values: dict[str, object] = {"active_us": active_us}
    if reply_address:
        values["reply_address"] = reply_address
    connection.execute(
        sa.update(sessions).where(sessions.c.session_key == session_key, older).values(values)
    )


def archive(connection: sa.Connection, session_key: str, at_us: int | None) -> None:
    """Say when a session leaves the lists, or with `None` that it stays."""
    connection.execute(
        sa.update(sessions).where(sessions.c.session_key == session_key).values(archive_us=at_us)
    )


def set_queue_mode(connection: sa.Connection, session_key: str, mode: int) -> None:
    """Give a session a queue mode of its own, or take it away with 0."""
    connection.execute(
        sa.update(sessions).where(sessions.c.session_key == session_key).values(queue_mode=mode)
    )


def set_model(connection: sa.Connection, session_key: str, model: str) -> None:
    """Give a session a model of its own, or take it away with an empty one."""
    connection.execute(
        sa.update(sessions).where(sessions.c.session_key == session_key).values(model=model)
    )


def set_shown(connection: sa.Connection, session_key: str, shown: str) -> None:
    """Remember which lists a session was shown."""
    connection.execute(
        sa.update(sessions).where(sessions.c.session_key == session_key).values(shown=shown)
    )


def raise_epoch(connection: sa.Connection, session_key: str, epoch: int) -> None:
    """Remember that a session was reset. Epochs only grow, however answers overtake each other."""
    connection.execute(
        sa.update(sessions)
        .where(sessions.c.session_key == session_key, sessions.c.epoch < epoch)
        .values(epoch=epoch)
    )


def prune(connection: sa.Connection, before_us: int, limit: int) -> int:
    """Forget sessions without news since a time: of children, and those that never began."""
    old = sa.select(sessions.c.session_key).where(
        sa.or_(
            sa.and_(
                sessions.c.kind != session_pb2.SESSION_KIND_CONVERSATION,
                sessions.c.active_us < before_us,
            ),
            sa.and_(sessions.c.active_us.is_(None), sessions.c.create_us < before_us),
        )
    )
    result = connection.execute(
        sa.delete(sessions).where(sessions.c.session_key.in_(old.limit(limit)))
    )
    return result.rowcount


_KEPT = (
    "queue_mode",
    "model",
    "shown",
    "bound_acp_session_id",
    "binding",
    "reply_address",
    "notice",
)
"""What was set for a session before its first message."""


def _values(row: SessionRow) -> dict[str, object]:
    return {name: getattr(row, name) for name in SessionRow.__slots__}
