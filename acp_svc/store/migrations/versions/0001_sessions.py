"""Sessions, ids of spawn requests, prompts that were sent."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _key(name: str) -> sa.Column[str]:
    return sa.Column(name, sa.String(1024).with_variant(sa.String(256), "sqlite"), nullable=False)


def upgrade() -> None:
    op.create_table(
        "sessions",
        sa.Column("session_id", sa.String(64), primary_key=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("worker", sa.String(64), nullable=False),
        sa.Column("harness_id", sa.String(64), nullable=False),
        sa.Column("upstream_id", sa.String(256), nullable=False),
        _key("session_key"),
        sa.Column("customer_key", sa.String(256), nullable=False),
        _key("parent_session_key"),
        sa.Column("active_us", sa.BigInteger, nullable=False),
        sa.Column("end_us", sa.BigInteger, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
    op.create_index("sessions_state", "sessions", ["state", "active_us"])
    op.create_index("sessions_customer", "sessions", ["customer_key", "session_id"])
    op.create_index("sessions_parent", "sessions", ["parent_session_key", "session_id"])
    op.create_index("sessions_upstream", "sessions", ["upstream_id"])
    op.create_index("sessions_lane", "sessions", ["session_key", "session_id"])
    op.create_table(
        "spawn_requests",
        sa.Column("request_id", sa.String(128), primary_key=True),
        sa.Column("session_id", sa.String(64), nullable=False),
        sa.Column("body_hash", sa.String(64), nullable=False),
        sa.Column("create_us", sa.BigInteger, nullable=False),
    )
    op.create_index("spawn_requests_age", "spawn_requests", ["create_us"])
    op.create_table(
        "prompts",
        sa.Column("run_id", sa.String(64), primary_key=True),
        sa.Column("prompt_key", sa.String(128), primary_key=True),
        sa.Column("session_id", sa.String(64), nullable=False),
        sa.Column("sent_us", sa.BigInteger, nullable=False),
        sa.Column("end_us", sa.BigInteger, nullable=False),
        sa.Column("outcome", sa.LargeBinary, nullable=True),
    )
    op.create_index("prompts_age", "prompts", ["sent_us"])


def downgrade() -> None:
    op.drop_table("prompts")
    op.drop_table("spawn_requests")
    op.drop_table("sessions")
