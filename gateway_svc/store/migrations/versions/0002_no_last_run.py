"""Sessions without their last run, which nobody asked for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_column("sessions", "last_run_id")


def downgrade() -> None:
    op.add_column(
        "sessions", sa.Column("last_run_id", sa.String(64), nullable=False, server_default="")
    )
