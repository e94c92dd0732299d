"""The store of sessions, behind a few verbs. Each verb is one transaction.

A record changes only through `change`, which applies a rule to what is stored at that moment: two
who change a session at once cannot undo each other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import sqlalchemy as sa

from acp_svc.domain.session import Session, State
from acp_svc.store import schema as t
from svckit.database import Database
from svckit.errors import AcpSessionNotFound, RequestIdReused, invalid_field

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Session)

_CHOSEN_BY = ("harness_id", "customer_key", "parent_session_key", "session_key")
UNENDED = tuple(state for state in State if not state.ended)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which sessions a list shows. Empty chooses all, of `states` all that have not ended."""

    states: Collection[State] = field(default=UNENDED)
    harness_id: str = ""
    customer_key: str = ""
    parent_session_key: str = ""
    session_key: str = ""


class SessionStore:
    """Sessions and the request ids of their spawns."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def add(self, session: Session, request_id: str, body_hash: str) -> Session:
        """Store a new session, or return the one that the same request made before.

        Raises `RequestIdReused` when that request had another body, and `InvalidField` when the
        harness's session that it is to resume is not for it.
        """

        def write(db: sa.Connection) -> Session:
            made = _made_by(db, request_id, body_hash)
            if made is not None:
                return made
            if session.spec.resume_id:
                _check_resumed(db, session)
            db.execute(sa.insert(t.sessions).values(_row(session)))
            db.execute(
                sa.insert(t.spawn_requests).values(
                    request_id=request_id,
                    session_id=session.session_id,
                    body_hash=body_hash,
                    create_us=session.create_us,
                )
            )
            return session

        return await self._db.run(write)

    async def made_by(self, request_id: str, body_hash: str) -> Session | None:
        """Return the session that a spawn made, if it did. Raises `RequestIdReused`."""
        return await self._db.run(lambda db: _made_by(db, request_id, body_hash))

    async def get(self, session_id: str) -> Session | None:
        """Return a session, ended ones too, or None."""
        if "\0" in session_id:
            return None  # PostgreSQL does not even look
        return await self._db.run(lambda db: read_row(db, session_id))

    async def change(self, session_id: str, rule: Callable[[Session], Session]) -> Session:
        """Store what `rule` makes of a session, and return it. Raises `AcpSessionNotFound`."""

        def write(db: sa.Connection) -> Session:
            session = read_row(db, session_id, lock=True)
            if session is None:
                raise not_found(session_id)
            return write_row(db, session, rule(session))

        return await self._db.run(write)

    async def change_all(self, worker: str, rule: Callable[[Session], Session]) -> int:
        """Store what `rule` makes of all unended sessions of a worker; returns how many changed.

        Those without a worker, and so without a process, are included.
        """

        def write(db: sa.Connection) -> int:
            changed = 0
            query = (
                sa.select(t.sessions.c.data)
                .where(
                    t.sessions.c.state.in_([state.value for state in UNENDED]),
                    t.sessions.c.worker.in_(["", worker]),
                )
                .with_for_update()
            )
            for data in db.scalars(query).all():
                before = _decoder.decode(data)
                after = write_row(db, before, rule(before))
                changed += after is not before
            return changed

        return await self._db.run(write)

    async def remove_unopened(self, session_id: str) -> None:
        """Forget a session that never opened, and its request, as if it had not been asked for."""

        def write(db: sa.Connection) -> None:
            session = read_row(db, session_id, lock=True)
            if session is None or session.state is not State.STARTING:
                return
            db.execute(sa.delete(t.sessions).where(t.sessions.c.session_id == session_id))
            db.execute(
                sa.delete(t.spawn_requests).where(t.spawn_requests.c.session_id == session_id)
            )

        await self._db.run(write)

    async def page(self, chosen: Chosen, *, before: str, limit: int) -> list[Session]:
        """At most `limit` sessions, newest first, older than the id `before` (empty: all)."""
        wanted = {name: value for name in _CHOSEN_BY if (value := getattr(chosen, name))}
        if any("\0" in value for value in wanted.values()):
            return []  # PostgreSQL does not even look
        query = (
            sa.select(t.sessions.c.data)
            .where(t.sessions.c.state.in_([state.value for state in chosen.states]))
            .order_by(t.sessions.c.session_id.desc())
            .limit(limit)
        )
        if before:
            query = query.where(t.sessions.c.session_id < before)
        for name, value in wanted.items():
            query = query.where(t.sessions.c[name] == value)
        return await self._sessions(query)

    async def count(self, worker: str) -> dict[State, int]:
        """How many sessions have not ended, by state: those of a worker, and those of none."""
        query = (
            sa.select(t.sessions.c.state, sa.func.count().label("sessions"))
            .where(
                t.sessions.c.state.in_([state.value for state in UNENDED]),
                t.sessions.c.worker.in_(["", worker]),
            )
            .group_by(t.sessions.c.state)
        )
        return await self._db.run(
            lambda db: {State(row.state): row.sessions for row in db.execute(query)}
        )

    async def still_since(self, states: Iterable[State], before_us: int) -> list[Session]:
        """Sessions in these states that did nothing since a time."""
        return await self._sessions(
            sa.select(t.sessions.c.data).where(
                t.sessions.c.state.in_([state.value for state in states]),
                t.sessions.c.active_us <= before_us,
            )
        )

    async def forget_ended(self, before_us: int, limit: int) -> int:
        """Forget up to `limit` sessions that ended before a time; returns how many."""

        def write(db: sa.Connection) -> int:
            old = db.scalars(
                sa.select(t.sessions.c.session_id)
                .where(t.sessions.c.end_us > 0, t.sessions.c.end_us < before_us)
                .limit(limit)
            ).all()
            db.execute(sa.delete(t.sessions).where(t.sessions.c.session_id.in_(old)))
            return len(old)

        return await self._db.run(write)

    async def forget_requests(self, before_us: int) -> int:
        """Forget request ids that came before a time; returns how many."""
        old = sa.delete(t.spawn_requests).where(t.spawn_requests.c.create_us < before_us)
        return await self._db.run(lambda db: db.execute(old).rowcount)

    async def _sessions(self, query: sa.Select[Any]) -> list[Session]:
        return await self._db.run(lambda db: [_decoder.decode(data) for data in db.scalars(query)])


def not_found(session_id: str, why: str = "there is no such ACP session") -> AcpSessionNotFound:
    """Build the error for a session that is not there, or not there any more."""
    return AcpSessionNotFound(why, metadata={"acpSessionId": session_id})


def _made_by(db: sa.Connection, request_id: str, body_hash: str) -> Session | None:
    made = db.execute(
        sa.select(t.spawn_requests.c.session_id, t.spawn_requests.c.body_hash).where(
            t.spawn_requests.c.request_id == request_id
        )
    ).one_or_none()
    if made is None:
        return None
    if made.body_hash != body_hash:
        raise RequestIdReused(
            "another session was spawned with this request_id; use a new one",
            metadata={"requestId": request_id, "runId": ""},
        )
    return read_row(db, made.session_id)


def _check_resumed(db: sa.Connection, session: Session) -> None:
    """Two processes on one session of a harness would work at the same time, unseen by each other.

    And the conversation of one customer is not for another, should its id get known.
    """
    spec = session.spec
    owner = _owner(db, spec.harness_id, spec.resume_id)
    if owner not in (None, spec.customer_key):
        raise invalid_field("spec.resume_id", "names no session that can be resumed")
    rows = db.scalars(
        sa.select(t.sessions.c.data).where(
            t.sessions.c.upstream_id == spec.resume_id,
            t.sessions.c.harness_id == spec.harness_id,
            t.sessions.c.state.in_([state.value for state in UNENDED]),
        )
    )
    for other in map(_decoder.decode, rows):
        if other.spec.customer_key != spec.customer_key:
            raise invalid_field("spec.resume_id", "names no session that can be resumed")
        raise invalid_field(
            "spec.resume_id", f"is open as session {other.session_id}; prompt it, or close it"
        )


def _owner(db: sa.Connection, harness_id: str, upstream_id: str) -> str | None:
    """Return the customer whose conversation of a harness it is; None for one that is not ours."""
    return db.scalar(
        sa.select(t.conversations.c.customer_key).where(
            t.conversations.c.harness_id == harness_id,
            t.conversations.c.upstream_id == upstream_id,
        )
    )


def _note_conversation(db: sa.Connection, session: Session) -> None:
    """Note whose conversation is open in the harness; the first who had it keeps it."""
    spec = session.spec
    if _owner(db, spec.harness_id, session.upstream_id) is None:
        db.execute(
            sa.insert(t.conversations).values(
                harness_id=spec.harness_id,
                upstream_id=session.upstream_id,
                customer_key=spec.customer_key,
            )
        )


def read_row(db: sa.Connection, session_id: str, *, lock: bool = False) -> Session | None:
    """Return a session, with `lock` until the end of the transaction for us alone."""
    query = sa.select(t.sessions.c.data).where(t.sessions.c.session_id == session_id)
    data = db.scalar(query.with_for_update() if lock else query)
    return None if data is None else _decoder.decode(data)


def write_row(db: sa.Connection, before: Session, after: Session) -> Session:
    """Store a session in the place of what it was, if it differs."""
    if after == before:
        return before
    if after.upstream_id and after.upstream_id != before.upstream_id:
        _note_conversation(db, after)
    db.execute(
        sa.update(t.sessions)
        .where(t.sessions.c.session_id == before.session_id)
        .values(_row(after))
    )
    return after


def _row(session: Session) -> dict[str, Any]:
    spec = session.spec
    return {
        "session_id": session.session_id,
        "state": session.state.value,
        "worker": session.worker,
        "harness_id": spec.harness_id,
        "upstream_id": session.upstream_id or spec.resume_id,
        "session_key": spec.session_key,
        "customer_key": spec.customer_key,
        "parent_session_key": spec.parent_session_key,
        "active_us": session.active_us,
        "end_us": session.end_us,
        "data": _encoder.encode(session),
    }
