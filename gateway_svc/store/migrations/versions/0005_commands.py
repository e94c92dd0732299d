"""Models that conversations chose, the lists that they were shown, and commands that were done."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("sessions", sa.Column("model", sa.String(256), nullable=False, server_default=""))
    op.add_column("sessions", sa.Column("shown", sa.Text, nullable=False, server_default=""))
    op.create_table(
        "commands",
        sa.Column("request_id", sa.String(128), primary_key=True),
        sa.Column("body_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("meant", sa.Text, nullable=True),
        sa.Column("answer", sa.LargeBinary, nullable=True),
        sa.Column("create_us", sa.BigInteger, nullable=False),
    )
    op.create_index("commands_by_age", "commands", ["create_us"])


def downgrade() -> None:
    op.drop_table("commands")
    op.drop_column("sessions", "shown")
    op.drop_column("sessions", "model")
