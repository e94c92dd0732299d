"""When sessions of ended sub-agents leave the lists; room for the keys of deep trees."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sessions", sa.Column("archive_us", sa.BigInteger, nullable=True))
    _resize(1024, 1200)


def downgrade() -> None:
    _resize(256, 400)
    op.drop_column("sessions", "archive_us")


def _resize(key: int, event_key: int) -> None:
    if op.get_bind().dialect.name == "sqlite":
        return  # it takes texts of any length
    op.alter_column("sessions", "session_key", type_=sa.String(key))
    op.alter_column("sessions", "parent_session_key", type_=sa.String(key))
    op.alter_column("outbox", "event_key", type_=sa.String(event_key))
