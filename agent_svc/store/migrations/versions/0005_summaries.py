"""Summaries of long conversations."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "summaries",
        sa.Column(
            "session_key",
            sa.String(1024).with_variant(sa.String(256), "sqlite"),
            primary_key=True,
        ),
        sa.Column("epoch", sa.BigInteger, primary_key=True),
        sa.Column("covers", sa.BigInteger, primary_key=True),
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("turn", sa.Integer, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.Column("create_us", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("summaries")
