"""The finished exchanges of sessions: how they come about, are copied, and are read.

Everything here runs inside the transaction of a verb of `Transcripts`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import sqlalchemy as sa

from agent_svc.domain import steps as s
from agent_svc.domain.compaction import Summary, as_exchange
from agent_svc.domain.content import Input, Message, quote, text_message
from agent_svc.domain.reconcile import Adoption, Standing, adoptions
from agent_svc.domain.render import Exchange
from agent_svc.store import rows, summaries
from agent_svc.store import schema as t

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


def standings(db: sa.Connection, start: TurnStart) -> dict[str, Standing]:
    """How every open run of the session stands, now that this one was leased.

    This run holds the session lane. So each other open run has ended, then the lease named it, or
    has given the lane back, then a worker has ended its last turn. And of this run, every earlier
    turn was ended.
    """
    standings = {start.run_id: Standing("live", start.turn - 1)}
    found = db.execute(
        sa.select(t.runs.c.run_id, sa.func.max(t.steps.c.turn))
        .join(t.steps, t.steps.c.run_id == t.runs.c.run_id)
        .where(t.runs.c.session_key == start.session_key, sa.not_(t.runs.c.closed))
        .where(t.runs.c.run_id != start.run_id)
        .group_by(t.runs.c.run_id)
    )
    standings.update({run_id: Standing("live", last_turn) for run_id, last_turn in found})
    standings.update(start.previous)
    return standings


def align(
    db: sa.Connection,
    session_key: str,
    session_epoch: int,
    standings: dict[str, Standing],
    now_us: int,
) -> None:
    """Add what runs of a session have earned, take back what was refused after all, close runs."""
    found = db.execute(
        sa.select(t.runs)
        .where(t.runs.c.session_key == session_key, t.runs.c.run_id.in_(list(standings)))
        .order_by(t.runs.c.start_us, t.runs.c.run_id)
    ).all()
    for run in found:
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
        steps = rows.steps(db, run.run_id)
        for adoption in adoptions(steps, have, standing, depth=run.depth):
            _adopt(db, run, adoption, session_epoch, now_us)
        if standing.state != "live":
            db.execute(sa.update(t.runs).where(t.runs.c.run_id == run.run_id).values(closed=True))


def _adopt(
    db: sa.Connection, run: sa.Row[tuple[object, ...]], what: Adoption, epoch: int, now_us: int
) -> None:
    inputs = _inputs_decoder.decode(run.inputs)
    quoted = quote(inputs)
    # When it was said, not when somebody first looked: adoption may come much later.
    last_step = sa.select(sa.func.max(t.steps.c.create_us)).where(
        t.steps.c.run_id == run.run_id, t.steps.c.turn == what.turn
    )
    said_us = db.scalar(last_step) or now_us
    reply = (
        text_message(f"{run.run_id}-{what.turn}", "agent", what.text, said_us)
        if what.text
        else None
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


def copy_conversation(db: sa.Connection, start: TurnStart, now_us: int) -> None:
    """Give a new child session the conversation its parent has had so far, as context."""
    parent = db.execute(
        sa.select(t.runs.c.epoch, t.runs.c.inputs).where(t.runs.c.run_id == start.fork_run)
    ).one_or_none()
    epoch = parent.epoch if parent is not None else rows.epoch_of(db, start.fork_session)
    if epoch is None:
        return
    c = t.exchanges.c
    summary = summaries.newest(db, start.fork_session, epoch)
    if summary is not None:
        copy = Summary("", 0, 0, summary.exchanges, summary.text)
        summaries.add(db, start.session_key, start.epoch, copy, now_us)
    covered = summary.covers if summary is not None else 0
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
    ).where(c.session_key == start.fork_session, c.epoch == epoch, c.ordinal > covered)
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


def working(db: sa.Connection, start: TurnStart) -> tuple[str, ...]:
    """Name the unfinished work of other runs of the same conversation, one line each."""
    found = db.execute(
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
    for row in found:
        live = [child.label for child in s.untold(rows.steps(db, row.run_id))]
        what = f"«{quote(_inputs_decoder.decode(row.inputs))}»"
        by = f" ({', '.join(live)})" if live else ""
        minutes = row.start_us // 60_000_000 % 1440
        lines.append(f"{what}{by}, running since {minutes // 60:02}:{minutes % 60:02} UTC")
    return tuple(lines)


def conversation(db: sa.Connection, session_key: str, epoch: int) -> list[Exchange]:
    """Read the exchanges of one epoch, oldest first, a summary in the place of what it covers."""
    summary = summaries.newest(db, session_key, epoch)
    covered = summary.covers if summary is not None else 0
    found = db.execute(
        sa.select(t.exchanges)
        .where(
            t.exchanges.c.session_key == session_key,
            t.exchanges.c.epoch == epoch,
            t.exchanges.c.ordinal > covered,
        )
        .order_by(t.exchanges.c.ordinal.desc())
        .limit(HISTORY_LIMIT)
    ).all()
    exchanges = [
        Exchange(
            ordinal=row.ordinal,
            run_id=row.run_id,
            kind=row.kind,
            inputs=_inputs_decoder.decode(row.inputs),
            reply=_message_decoder.decode(row.reply) if row.reply is not None else None,
            quoted=row.quoted,
        )
        for row in reversed(found)
    ]
    return exchanges if summary is None else [as_exchange(summary), *exchanges]


def messages(row: sa.Row[tuple[object, ...]]) -> list[Message]:
    """Messages of one exchange, in the order they were said."""
    messages = [item.message for item in _inputs_decoder.decode(row.inputs)]
    if row.reply is not None:
        messages.append(_message_decoder.decode(row.reply))
    return messages


def forget_runs(db: sa.Connection, before_us: int, limit: int) -> int:
    """Delete ended runs with their steps, and the sessions of children that have no run left."""
    last_step = (
        sa.select(sa.func.max(t.steps.c.create_us))
        .where(t.steps.c.run_id == t.runs.c.run_id)
        .scalar_subquery()
    )
    old = db.execute(
        sa.select(t.runs.c.run_id, t.runs.c.session_key, t.runs.c.depth)
        .where(t.runs.c.closed, t.runs.c.start_us < before_us, last_step < before_us)
        .limit(limit)
    ).all()
    if not old:
        return 0
    run_ids = [run.run_id for run in old]
    removed = db.execute(sa.delete(t.steps).where(t.steps.c.run_id.in_(run_ids))).rowcount
    removed += db.execute(sa.delete(t.runs).where(t.runs.c.run_id.in_(run_ids))).rowcount
    children = {run.session_key for run in old if run.depth > 0}
    in_use = set(
        db.scalars(sa.select(t.runs.c.session_key).where(t.runs.c.session_key.in_(children)))
    )
    for table in (t.exchanges, t.summaries, t.resets, t.sessions):
        gone = sa.delete(table).where(table.c.session_key.in_(children - in_use))
        removed += db.execute(gone).rowcount
    return removed
