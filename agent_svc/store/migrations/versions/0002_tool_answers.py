"""What people said about tools for the rest of a conversation."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tool_answers",
        sa.Column("session_key", sa.String(256), primary_key=True),
        sa.Column("epoch", sa.BigInteger, primary_key=True),
        sa.Column("tool", sa.String(64), primary_key=True),
        sa.Column("rule", sa.String(8), nullable=False),
        sa.Column("create_us", sa.BigInteger, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("tool_answers")
