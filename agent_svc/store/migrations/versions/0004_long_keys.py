"""Room for the session keys of deep trees: each level adds its kind and run id."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_TABLES = ("sessions", "resets", "runs", "exchanges", "tool_answers")


def upgrade() -> None:
    _resize(1024)


def downgrade() -> None:
    _resize(256)


def _resize(length: int) -> None:
    if op.get_bind().dialect.name == "sqlite":
        return  # it takes texts of any length
    for table in _TABLES:
        op.alter_column(table, "session_key", type_=sa.String(length))
