"""Conversations that an ACP session answers, and where its answers go."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_COLUMNS = (
    ("bound_acp_session_id", sa.String(64)),
    ("binding", sa.Text),
    ("reply_address", sa.Text),
    ("notice", sa.Text),
)


def upgrade() -> None:
    for name, kind in _COLUMNS:
        op.add_column("sessions", sa.Column(name, kind, nullable=False, server_default=""))


def downgrade() -> None:
    for name, _ in reversed(_COLUMNS):
        op.drop_column("sessions", name)
