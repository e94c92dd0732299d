"""What the service remembers, behind a few verbs. Each verb is one transaction.

Steps carry the fencing token of the lease that writes them. A verb that writes for a run refuses a
token older than the newest it has seen, so a worker that lost its lease cannot write, whatever it
still believes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import sqlalchemy as sa

from agent_svc.domain import steps as s
from agent_svc.domain.content import Input, Message, quote, text_message
from agent_svc.domain.reconcile import Adoption, Standing, adoptions
from agent_svc.domain.render import Exchange
from agent_svc.store import schema as t
from svckit.database import Database
from svckit.errors import LeaseLost, SessionNotFound

# Older exchanges of a conversation are no longer shown to the model.
HISTORY_LIMIT = 500

_inputs_decoder = msgspec.json.Decoder(tuple[Input, ...])
_message_decoder = msgspec.json.Decoder(Message)


@dataclass(frozen=True)
class TurnStart:
    """What the store needs to know when a turn begins or is taken over."""

    run_id: str
    session_key: str
    epoch: int
    depth: int
    turn: int
    fencing: int
    inputs: tuple[Input, ...]
    began: s.Began
    # How other runs of the session stand, by run id, as the lease says.
    previous: dict[str, Standing] = field(default_factory=dict)
    # Session to copy at the first turn, and the run of it that is at work.
    fork_session: str = ""
    fork_run: str = ""


@dataclass(frozen=True)
class Transcript:
    """All a turn is built from. `steps` are the run's, `history` its conversation's."""

    steps: list[s.Step]
    history: list[Exchange]


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
        return await self._db.run(lambda db: _begin(db, start, now_us))

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
                _insert_step(db, run_id, turn, step, record, fencing, now_us)

        await self._db.run(add)

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
            session = _session(db, session_key)
            if session is not None:
                _align(db, session_key, session, standings, now_us)

        await self._db.run(write)

    async def list_messages(
        self, session_key: str, *, since_reset: bool, after: tuple[int, int], limit: int
    ) -> list[ListedMessage]:
        """Messages of finished exchanges, oldest first, at most `limit`, after a position.

        Raises `SessionNotFound`.
        """

        def read(db: sa.Connection) -> list[ListedMessage]:
            epoch = _session(db, session_key)
            if epoch is None:
                raise _no_session(session_key)
            query = (
                sa.select(t.exchanges)
                .where(
                    t.exchanges.c.session_key == session_key,
                    t.exchanges.c.ordinal >= after[0],
                    t.exchanges.c.kind != "note",
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
                for place, message in enumerate(_messages(row))
            ]
            later = [item for item in found if (item.ordinal, item.place) > after]
            return later[:limit]

        return await self._db.run(read)

    async def ensure_session(self, session_key: str, now_us: int) -> None:
        """Note a session that is known elsewhere and has had no turn here yet."""
        await self._db.run(lambda db: _ensure_session(db, session_key, 0, now_us) and None)

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
            forgotten = sum(len(_messages(row)) for row in rows)
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


def _begin(db: sa.Connection, start: TurnStart, now_us: int) -> Transcript:
    epoch = _ensure_session(db, start.session_key, start.epoch, now_us)
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
            _copy_conversation(db, start, now_us)
    elif stored > start.fencing:
        raise _lease_lost(start.run_id, start.turn)
    else:
        db.execute(
            sa.update(t.runs).where(t.runs.c.run_id == start.run_id).values(fencing=start.fencing)
        )
    _align(db, start.session_key, epoch, _standings(db, start), now_us)
    steps = _steps(db, start.run_id)
    if not any(step.turn == start.turn for step in steps):
        began = msgspec.structs.replace(
            start.began,
            mark=_newest_ordinal(db, start.session_key),
            working=_working(db, start),
            reset_since=epoch > start.epoch,
        )
        _insert_step(db, start.run_id, start.turn, 1, began, start.fencing, now_us)
        steps.append(s.Step(start.turn, 1, began))
    return Transcript(steps, _history(db, start.session_key, start.epoch))


def _standings(db: sa.Connection, start: TurnStart) -> dict[str, Standing]:
    """How every open run of the session stands, now that this one was leased.

    This run holds the session lane. So each other open run has ended, then the lease named it, or
    has given the lane back, then a worker has ended its last turn. And of this run, every earlier
    turn was ended.
    """
    standings = {start.run_id: Standing("live", start.turn - 1)}
    rows = db.execute(
        sa.select(t.runs.c.run_id, sa.func.max(t.steps.c.turn))
        .join(t.steps, t.steps.c.run_id == t.runs.c.run_id)
        .where(t.runs.c.session_key == start.session_key, sa.not_(t.runs.c.closed))
        .where(t.runs.c.run_id != start.run_id)
        .group_by(t.runs.c.run_id)
    )
    standings.update({run_id: Standing("live", last_turn) for run_id, last_turn in rows})
    standings.update(start.previous)
    return standings


def _align(
    db: sa.Connection,
    session_key: str,
    session_epoch: int,
    standings: dict[str, Standing],
    now_us: int,
) -> None:
    rows = db.execute(
        sa.select(t.runs)
        .where(t.runs.c.session_key == session_key, t.runs.c.run_id.in_(list(standings)))
        .order_by(t.runs.c.start_us, t.runs.c.run_id)
    ).all()
    for run in rows:
        standing = standings[run.run_id]
        if run.closed:
            continue
        held = sa.and_(
            t.exchanges.c.session_key == session_key,
            t.exchanges.c.run_id == run.run_id,
            sa.not_(t.exchanges.c.copied),
        )
        if standing.state != "live":
            # Taken for accepted when the run seemed to have yielded, and refused after all.
            db.execute(sa.delete(t.exchanges).where(held, t.exchanges.c.turn > standing.ended_turn))
        have = db.scalars(sa.select(t.exchanges.c.turn).where(held)).all()
        steps = _steps(db, run.run_id)
        for adoption in adoptions(steps, have, standing, depth=run.depth):
            _adopt(db, run, adoption, session_epoch, now_us)
        if standing.state != "live":
            db.execute(sa.update(t.runs).where(t.runs.c.run_id == run.run_id).values(closed=True))


def _adopt(
    db: sa.Connection, run: sa.Row[tuple[object, ...]], what: Adoption, epoch: int, now_us: int
) -> None:
    inputs = _inputs_decoder.decode(run.inputs)
    quoted = quote(inputs)
    reply = (
        text_message(f"{run.run_id}-{what.turn}", "agent", what.text, now_us) if what.text else None
    )
    _insert_exchange(
        db,
        session_key=run.session_key,
        epoch=run.epoch,
        run_id=run.run_id,
        turn=what.turn,
        kind=what.kind,
        inputs=() if what.kind == "closing" else inputs,
        reply=reply,
        quoted=quoted,
        now_us=now_us,
    )
    if epoch > run.epoch:
        outcome = f"was answered: «{_cut(reply.text)}»" if reply is not None else "ended"
        if what.kind == "failed":
            outcome = "got no answer: its run failed"
        _insert_exchange(
            db,
            session_key=run.session_key,
            epoch=epoch,
            run_id=run.run_id,
            turn=what.turn,
            kind="note",
            inputs=(),
            reply=None,
            quoted=f"A message from before this conversation, «{quoted}», {outcome}.",
            now_us=now_us,
        )


def _cut(text: str) -> str:
    return text if len(text) <= 2000 else text[:2000] + "…"


def _insert_exchange(
    db: sa.Connection,
    *,
    session_key: str,
    epoch: int,
    run_id: str,
    turn: int,
    kind: str,
    inputs: tuple[Input, ...],
    reply: Message | None,
    quoted: str,
    now_us: int,
    copied: bool = False,
) -> None:
    db.execute(
        sa.insert(t.exchanges).values(
            session_key=session_key,
            epoch=epoch,
            run_id=run_id,
            turn=turn,
            kind=kind,
            inputs=msgspec.json.encode(inputs),
            reply=None if reply is None else msgspec.json.encode(reply),
            quoted=quoted,
            copied=copied,
            create_us=now_us,
        )
    )


def _copy_conversation(db: sa.Connection, start: TurnStart, now_us: int) -> None:
    parent = db.execute(
        sa.select(t.runs.c.epoch, t.runs.c.inputs).where(t.runs.c.run_id == start.fork_run)
    ).one_or_none()
    epoch = parent.epoch if parent is not None else _session(db, start.fork_session)
    if epoch is None:
        return
    c = t.exchanges.c
    source = sa.select(
        sa.literal(start.session_key),
        sa.literal(start.epoch),
        c.run_id,
        c.turn,
        c.kind,
        c.inputs,
        c.reply,
        c.quoted,
        sa.true(),
        sa.literal(now_us),
    ).where(c.session_key == start.fork_session, c.epoch == epoch)
    columns = ["session_key", "epoch", "run_id", "turn", "kind", "inputs", "reply", "quoted"]
    db.execute(
        sa.insert(t.exchanges).from_select(
            [*columns, "copied", "create_us"], source.order_by(c.ordinal)
        )
    )
    if parent is not None:
        asked = quote(_inputs_decoder.decode(parent.inputs))
        _insert_exchange(
            db,
            session_key=start.session_key,
            epoch=start.epoch,
            run_id=start.fork_run,
            turn=0,
            kind="note",
            inputs=(),
            reply=None,
            quoted="You begin with a copy of another agent's conversation. That agent is "
            f"answering «{asked}» and gives you one part of the work.",
            now_us=now_us,
            copied=True,
        )


def _working(db: sa.Connection, start: TurnStart) -> tuple[str, ...]:
    rows = db.execute(
        sa.select(t.runs.c.run_id, t.runs.c.inputs, t.runs.c.start_us)
        .where(
            t.runs.c.session_key == start.session_key,
            t.runs.c.epoch == start.epoch,
            t.runs.c.run_id != start.run_id,
            sa.not_(t.runs.c.closed),
        )
        .order_by(t.runs.c.start_us)
    )
    lines = []
    for row in rows:
        live = [child.label for child in s.untold(_steps(db, row.run_id))]
        what = f"«{quote(_inputs_decoder.decode(row.inputs))}»"
        by = f" ({', '.join(live)})" if live else ""
        minutes = row.start_us // 60_000_000 % 1440
        lines.append(f"{what}{by}, running since {minutes // 60:02}:{minutes % 60:02} UTC")
    return tuple(lines)


def _history(db: sa.Connection, session_key: str, epoch: int) -> list[Exchange]:
    rows = db.execute(
        sa.select(t.exchanges)
        .where(t.exchanges.c.session_key == session_key, t.exchanges.c.epoch == epoch)
        .order_by(t.exchanges.c.ordinal.desc())
        .limit(HISTORY_LIMIT)
    ).all()
    return [
        Exchange(
            ordinal=row.ordinal,
            run_id=row.run_id,
            kind=row.kind,
            inputs=_inputs_decoder.decode(row.inputs),
            reply=_message_decoder.decode(row.reply) if row.reply is not None else None,
            quoted=row.quoted,
        )
        for row in reversed(rows)
    ]


def _messages(row: sa.Row[tuple[object, ...]]) -> list[Message]:
    messages = [item.message for item in _inputs_decoder.decode(row.inputs)]
    if row.reply is not None:
        messages.append(_message_decoder.decode(row.reply))
    return messages


def _steps(db: sa.Connection, run_id: str) -> list[s.Step]:
    rows = db.execute(
        sa.select(t.steps.c.turn, t.steps.c.step, t.steps.c.data)
        .where(t.steps.c.run_id == run_id)
        .order_by(t.steps.c.turn, t.steps.c.step)
    )
    return [s.Step(turn, step, s.decode(data)) for turn, step, data in rows]


def _insert_step(
    db: sa.Connection,
    run_id: str,
    turn: int,
    step: int,
    record: s.Record,
    fencing: int,
    now_us: int,
) -> None:
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


def _session(db: sa.Connection, session_key: str) -> int | None:
    epoch: int | None = db.scalar(
        sa.select(t.sessions.c.epoch).where(t.sessions.c.session_key == session_key)
    )
    return epoch


def _ensure_session(db: sa.Connection, session_key: str, epoch: int, now_us: int) -> int:
    known = _session(db, session_key)
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


def _newest_ordinal(db: sa.Connection, session_key: str) -> int:
    newest: int | None = db.scalar(
        sa.select(sa.func.max(t.exchanges.c.ordinal)).where(
            t.exchanges.c.session_key == session_key
        )
    )
    return newest or 0


def _lease_lost(run_id: str, turn: int) -> LeaseLost:
    return LeaseLost(
        "a newer lease has written to the transcript; stop",
        metadata={"runId": run_id, "leaseId": "", "turn": str(turn), "attempt": ""},
    )


def _no_session(session_key: str) -> SessionNotFound:
    return SessionNotFound(
        f"no session {session_key!r} is known here", metadata={"sessionKey": session_key}
    )
