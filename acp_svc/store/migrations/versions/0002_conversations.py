"""Whose the conversations inside harnesses are, for longer than our sessions are kept."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "conversations",
        sa.Column("harness_id", sa.String(64), primary_key=True),
        sa.Column("upstream_id", sa.String(256), primary_key=True),
        sa.Column("customer_key", sa.String(256), nullable=False),
    )
    # Of two customers the one whose session is older had it first: the ids sort by creation.
    op.execute(
        "INSERT INTO conversations (harness_id, upstream_id, customer_key)"
        " SELECT harness_id, upstream_id, customer_key FROM sessions AS s"
        " WHERE upstream_id <> '' AND NOT EXISTS (SELECT 1 FROM sessions AS o"
        " WHERE o.harness_id = s.harness_id AND o.upstream_id = s.upstream_id"
        " AND o.session_id < s.session_id)"
    )


def downgrade() -> None:
    op.drop_table("conversations")
