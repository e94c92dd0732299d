"""Sessions, cursor and outbox."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "sessions",
        sa.Column("session_key", sa.String(256), primary_key=True),
        sa.Column("kind", sa.Integer, nullable=False),
        sa.Column("agent_id", sa.String(128), nullable=False),
        sa.Column("customer_key", sa.String(128), nullable=False),
        sa.Column("channel", sa.String(64), nullable=False),
        sa.Column("parent_session_key", sa.String(256), nullable=False),
        sa.Column("label", sa.String(64), nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("last_run_id", sa.String(64), nullable=False),
        sa.Column("create_us", sa.BigInteger, nullable=False),
        sa.Column("active_us", sa.BigInteger, nullable=True),
    )
    op.create_index("sessions_by_activity", "sessions", ["active_us", "session_key"])
    op.create_table(
        "cursors",
        sa.Column("name", sa.String(64), primary_key=True),
        sa.Column("position", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "outbox",
        sa.Column("outbox_id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("recipient", sa.String(1024), nullable=False),
        sa.Column("event_key", sa.String(400), nullable=False),
        sa.Column("channel", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("state", sa.Integer, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("create_us", sa.BigInteger, nullable=False),
        sa.Column("next_us", sa.BigInteger, nullable=False),
        sa.Column("end_us", sa.BigInteger, nullable=True),
        sa.Column("problem", sa.String(256), nullable=False),
        sa.UniqueConstraint("recipient", "event_key", name="outbox_once_per_event"),
        sqlite_autoincrement=True,
    )
    op.create_index("outbox_pending", "outbox", ["state", "recipient", "outbox_id"])


def downgrade() -> None:
    op.drop_table("outbox")
    op.drop_table("cursors")
    op.drop_table("sessions")
