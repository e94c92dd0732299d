"""What the service remembers, behind a few verbs. Each verb is one transaction.

Steps carry the fencing token of the lease that writes them. A verb that writes for a run refuses a
token older than the newest it has seen, so a worker that lost its lease cannot write, whatever it
still believes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
import sqlalchemy as sa

from agent_svc.domain import steps as s
from agent_svc.domain.approval import Rule
from agent_svc.domain.compaction import Summary
from agent_svc.domain.content import Message
from agent_svc.domain.reconcile import Standing
from agent_svc.domain.render import Exchange
from agent_svc.domain.session_texts import Entry
from agent_svc.store import history, rows, summaries, toolanswers
from agent_svc.store import schema as t
from agent_svc.store.history import TurnStart
from svckit.database import Database
from svckit.errors import LeaseLost, SessionNotFound
from svckit.failpoints import failpoint

# Kinds of exchanges that hold what people and agents said to each other.
SPOKEN = ("answered", "closing", "failed")


@dataclass(frozen=True)
class Transcript:
    """All a turn is built from. `steps` are the run's, `history` its conversation's.

    `summaries` are those that earlier attempts of the turn have stored.
    """

    steps: list[s.Step]
    history: list[Exchange]
    summaries: list[Summary]


@dataclass(frozen=True)
class ListedMessage:
    """A message of a listing. `ordinal` and `place` make its position."""

    ordinal: int
    place: int
    message: Message


@dataclass(frozen=True)
class OpenRun:
    """A run that the scheduler has not yet called ended, as far as this store knows."""

    run_id: str
    last_turn: int


class Transcripts:
    """The store of sessions, runs and steps."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def begin(self, start: TurnStart, now_us: int) -> Transcript:
        """Take a turn over, and bring the session's history in line first.

        The first attempt stores `start.began`, filled in with what the session looks like; later
        attempts get what the first one stored. Raises `LeaseLost` when a newer lease has written.
        """
        failpoint("agent.begin.before")
        transcript = await self._db.run(lambda db: _begin(db, start, now_us))
        failpoint("agent.begin.stored")
        return transcript

    async def add_steps(
        self,
        run_id: str,
        fencing: int,
        turn: int,
        first_step: int,
        records: Sequence[s.Record],
        now_us: int,
    ) -> None:
        """Store the next steps of a turn, all or none. Raises `LeaseLost`."""

        def add(db: sa.Connection) -> None:
            newest = db.scalar(
                sa.select(t.runs.c.fencing).where(t.runs.c.run_id == run_id).with_for_update()
            )
            if newest is None or newest > fencing:
                raise _lease_lost(run_id, turn)
            for step, record in enumerate(records, start=first_step):
                rows.insert_step(db, run_id, turn, step, record, fencing, now_us)

        failpoint("agent.step.before")
        await self._db.run(add)
        failpoint("agent.step.stored")

    async def add_summary(
        self, session_key: str, epoch: int, fencing: int, summary: Summary, now_us: int
    ) -> None:
        """Store a summary of a session's older exchanges. Raises `LeaseLost`."""

        def add(db: sa.Connection) -> None:
            newest = db.scalar(
                sa.select(t.runs.c.fencing)
                .where(t.runs.c.run_id == summary.run_id)
                .with_for_update()
            )
            if newest is None or newest > fencing:
                raise _lease_lost(summary.run_id, summary.turn)
            summaries.add(db, session_key, epoch, summary, now_us)

        failpoint("agent.summary.before")
        await self._db.run(add)
        failpoint("agent.summary.stored")

    async def tool_answers(self, flow_id: str) -> dict[str, Rule]:
        """What people said about tools for the rest of the conversation of a flow, by tool."""
        return await self._db.run(lambda db: toolanswers.read(db, flow_id))

    async def remember_tool_answers(
        self, flow_id: str, rules: Mapping[str, Rule], now_us: int
    ) -> None:
        """Store what was said. Repeating it does no harm."""
        await self._db.run(lambda db: toolanswers.remember(db, flow_id, rules, now_us))

    async def open_runs(self, session_key: str) -> list[OpenRun]:
        """Runs of a session whose end this store does not know, in the order they began."""

        def read(db: sa.Connection) -> list[OpenRun]:
            rows = db.execute(
                sa.select(t.runs.c.run_id, sa.func.max(t.steps.c.turn))
                .join(t.steps, t.steps.c.run_id == t.runs.c.run_id)
                .where(t.runs.c.session_key == session_key, sa.not_(t.runs.c.closed))
                .group_by(t.runs.c.run_id, t.runs.c.start_us)
                .order_by(t.runs.c.start_us, t.runs.c.run_id)
            )
            return [OpenRun(run_id, last_turn) for run_id, last_turn in rows]

        return await self._db.run(read)

    async def align(self, session_key: str, standings: dict[str, Standing], now_us: int) -> None:
        """Bring a session's history in line with what the scheduler says about its runs."""

        def write(db: sa.Connection) -> None:
            session = rows.epoch_of(db, session_key)
            if session is not None:
                history.align(db, session_key, session, standings, now_us)

        await self._db.run(write)

    async def said(self, session_key: str, epoch: int) -> list[Entry]:
        """What was said in one epoch of a session, oldest first; of very much the newest."""

        def read(db: sa.Connection) -> list[Entry]:
            found = db.execute(
                sa.select(t.exchanges)
                .where(
                    t.exchanges.c.session_key == session_key,
                    t.exchanges.c.epoch == epoch,
                    t.exchanges.c.kind.in_(SPOKEN),
                    sa.not_(t.exchanges.c.copied),
                )
                .order_by(t.exchanges.c.ordinal.desc())
                .limit(history.HISTORY_LIMIT)
            ).all()
            return [
                Entry(
                    message.create_us,
                    "customer" if message.role == "user" else "you",
                    message.text,
                )
                for row in reversed(found)
                for message in history.messages(row)
            ]

        return await self._db.run(read)

    async def list_messages(
        self, session_key: str, *, since_reset: bool, after: tuple[int, int], limit: int
    ) -> list[ListedMessage]:
        """Messages of finished exchanges, oldest first, at most `limit`, after a position.

        Raises `SessionNotFound`.
        """

        def read(db: sa.Connection) -> list[ListedMessage]:
            epoch = rows.epoch_of(db, session_key)
            if epoch is None:
                raise _no_session(session_key)
            query = (
                sa.select(t.exchanges)
                .where(
                    t.exchanges.c.session_key == session_key,
                    t.exchanges.c.ordinal >= after[0],
                    t.exchanges.c.kind != "note",
                    # Without a message it would take a place on the page and show nothing.
                    sa.or_(t.exchanges.c.kind != "closing", t.exchanges.c.reply.is_not(None)),
                    sa.not_(t.exchanges.c.copied),
                )
                .order_by(t.exchanges.c.ordinal)
                .limit(limit + 1)
            )
            if since_reset:
                query = query.where(t.exchanges.c.epoch == epoch)
            found = [
                ListedMessage(row.ordinal, place, message)
                for row in db.execute(query)
                for place, message in enumerate(history.messages(row))
            ]
            later = [item for item in found if (item.ordinal, item.place) > after]
            return later[:limit]

        return await self._db.run(read)

    async def ensure_session(self, session_key: str, now_us: int) -> None:
        """Note a session that is known elsewhere and has had no turn here yet."""
        await self._db.run(lambda db: rows.ensure_session(db, session_key, 0, now_us) and None)

    async def reset(self, session_key: str, request_id: str, now_us: int) -> tuple[int, int]:
        """Begin the next epoch; returns it and how many messages it does not see.

        The same `request_id` gets the same answer. Raises `SessionNotFound`.
        """

        def write(db: sa.Connection) -> tuple[int, int]:
            done = db.execute(
                sa.select(t.resets.c.epoch, t.resets.c.forgotten).where(
                    t.resets.c.session_key == session_key, t.resets.c.request_id == request_id
                )
            ).one_or_none()
            if done is not None:
                return done.epoch, done.forgotten
            epoch = db.scalar(
                sa.select(t.sessions.c.epoch)
                .where(t.sessions.c.session_key == session_key)
                .with_for_update()
            )
            if epoch is None:
                raise _no_session(session_key)
            rows = db.execute(
                sa.select(t.exchanges).where(
                    t.exchanges.c.session_key == session_key,
                    t.exchanges.c.epoch == epoch,
                    t.exchanges.c.kind != "note",
                    sa.not_(t.exchanges.c.copied),
                )
            )
            forgotten = sum(len(history.messages(row)) for row in rows)
            db.execute(
                sa.update(t.sessions)
                .where(t.sessions.c.session_key == session_key)
                .values(epoch=epoch + 1)
            )
            db.execute(
                sa.insert(t.resets).values(
                    session_key=session_key,
                    request_id=request_id,
                    epoch=epoch + 1,
                    forgotten=forgotten,
                    create_us=now_us,
                )
            )
            return epoch + 1, forgotten

        return await self._db.run(write)

    async def sessions_with_open_runs(self, started_before_us: int) -> list[str]:
        """Sessions of runs that began before a time and whose end this store does not know."""
        query = (
            sa.select(t.runs.c.session_key)
            .where(sa.not_(t.runs.c.closed), t.runs.c.start_us < started_before_us)
            .distinct()
        )
        return await self._db.run(lambda db: list(db.scalars(query)))

    async def forget_resets(self, before_us: int) -> int:
        """Forget the request ids of resets before a time; returns how many."""
        old = sa.delete(t.resets).where(t.resets.c.create_us < before_us)
        return await self._db.run(lambda db: db.execute(old).rowcount)

    async def forget_runs(self, before_us: int, limit: int) -> int:
        """Forget up to `limit` ended runs without a step since a time; returns the rows that went.

        Of a conversation the exchanges stay. A child's session goes with its last run.
        """
        return await self._db.run(lambda db: history.forget_runs(db, before_us, limit))


def _begin(db: sa.Connection, start: TurnStart, now_us: int) -> Transcript:
    epoch = rows.ensure_session(db, start.session_key, start.epoch, now_us)
    stored = db.scalar(
        sa.select(t.runs.c.fencing).where(t.runs.c.run_id == start.run_id).with_for_update()
    )
    if stored is None:
        db.execute(
            sa.insert(t.runs).values(
                run_id=start.run_id,
                session_key=start.session_key,
                epoch=start.epoch,
                depth=start.depth,
                inputs=msgspec.json.encode(start.inputs),
                fencing=start.fencing,
                closed=False,
                start_us=now_us,
            )
        )
        if start.fork_session:
            history.copy_conversation(db, start, now_us)
    elif stored > start.fencing:
        raise _lease_lost(start.run_id, start.turn)
    else:
        db.execute(
            sa.update(t.runs).where(t.runs.c.run_id == start.run_id).values(fencing=start.fencing)
        )
    history.align(db, start.session_key, epoch, history.standings(db, start), now_us)
    steps = rows.steps(db, start.run_id)
    told = history.conversation(db, start.session_key, start.epoch)
    if not any(step.turn == start.turn for step in steps):
        began = msgspec.structs.replace(
            start.began,
            # Of the session, not only of this epoch; and a copied summary covers no ordinal here.
            mark=max(
                rows.newest_ordinal(db, start.session_key), *(e.ordinal for e in told[-1:]), 0
            ),
            working=history.working(db, start),
            reset_since=epoch > start.epoch,
        )
        rows.insert_step(db, start.run_id, start.turn, 1, began, start.fencing, now_us)
        steps.append(s.Step(start.turn, 1, began))
    own = summaries.of_turn(db, start.run_id, start.session_key, start.turn)
    return Transcript(steps, told, own)


def _lease_lost(run_id: str, turn: int) -> LeaseLost:
    return LeaseLost(
        "a newer lease has written to the transcript; stop",
        metadata={"runId": run_id, "leaseId": "", "turn": str(turn), "attempt": ""},
    )


def _no_session(session_key: str) -> SessionNotFound:
    return SessionNotFound(
        f"no session {session_key!r} is known here", metadata={"sessionKey": session_key}
    )
