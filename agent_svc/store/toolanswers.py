"""What people said about tools for the rest of a conversation, inside somebody's transaction."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from agent_svc.domain.approval import Rule
from agent_svc.store import schema as t


def read(db: sa.Connection, flow_id: str) -> dict[str, Rule]:
    """Rules by tool, of the conversation that a flow belongs to."""
    conversation = _conversation(db, flow_id)
    if conversation is None:
        return {}
    c = t.tool_answers.c
    found = db.execute(
        sa.select(c.tool, c.rule).where(
            c.session_key == conversation[0], c.epoch == conversation[1]
        )
    )
    return {tool: "allow" if rule == "allow" else "deny" for tool, rule in found}


def remember(db: sa.Connection, flow_id: str, rules: Mapping[str, Rule], now_us: int) -> None:
    """Store rules of that conversation; the newest word about a tool counts."""
    # Locked: a tree has several runs, and two of them may be told something at once.
    conversation = _conversation(db, flow_id, lock=True)
    if conversation is None:
        return
    session_key, epoch = conversation
    c = t.tool_answers.c
    # What was said in conversations before is over with them.
    over = sa.and_(c.session_key == session_key, c.epoch < epoch)
    again = sa.and_(c.session_key == session_key, c.epoch == epoch, c.tool.in_(list(rules)))
    db.execute(sa.delete(t.tool_answers).where(sa.or_(over, again)))
    db.execute(
        sa.insert(t.tool_answers),
        [
            {
                "session_key": session_key,
                "epoch": epoch,
                "tool": tool,
                "rule": rule,
                "create_us": now_us,
            }
            for tool, rule in rules.items()
        ],
    )


def _conversation(db: sa.Connection, flow_id: str, *, lock: bool = False) -> tuple[str, int] | None:
    """Session and epoch of the root run, which has the id of its flow."""
    query = sa.select(t.runs.c.session_key, t.runs.c.epoch).where(t.runs.c.run_id == flow_id)
    found = db.execute(query.with_for_update() if lock else query).one_or_none()
    return None if found is None else (found.session_key, found.epoch)
