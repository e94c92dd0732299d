"""Newest probe report per model and base URL."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "probe_reports",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("base_url", sa.Text, primary_key=True),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.Column("end_us", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("probe_reports")
