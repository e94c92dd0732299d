"""The trace of a session's last message, and what a delivery belongs to."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sessions", sa.Column("trace", sa.String(64), nullable=False, server_default=""))
    op.add_column("outbox", sa.Column("trace", sa.String(64), nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("outbox", "trace")
    op.drop_column("sessions", "trace")
