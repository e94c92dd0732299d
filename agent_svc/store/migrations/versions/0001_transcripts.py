"""Sessions, runs with their steps, exchanges, resets."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_counter = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "sessions",
        sa.Column("session_key", sa.String(256), primary_key=True),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("create_us", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "resets",
        sa.Column("session_key", sa.String(256), primary_key=True),
        sa.Column("request_id", sa.String(128), primary_key=True),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("forgotten", sa.Integer, nullable=False),
        sa.Column("create_us", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "runs",
        sa.Column("run_id", sa.String(64), primary_key=True),
        sa.Column("session_key", sa.String(256), nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("depth", sa.Integer, nullable=False),
        sa.Column("inputs", sa.LargeBinary, nullable=False),
        sa.Column("fencing", sa.BigInteger, nullable=False),
        sa.Column("closed", sa.Boolean, nullable=False),
        sa.Column("start_us", sa.BigInteger, nullable=False),
    )
    op.create_index("runs_open", "runs", ["session_key", "closed"])
    op.create_table(
        "steps",
        sa.Column("run_id", sa.String(64), primary_key=True),
        sa.Column("turn", sa.Integer, primary_key=True),
        sa.Column("step", sa.Integer, primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.Column("fencing", sa.BigInteger, nullable=False),
        sa.Column("create_us", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "exchanges",
        sa.Column("ordinal", _counter, primary_key=True, autoincrement=True),
        sa.Column("session_key", sa.String(256), nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("run_id", sa.String(64), nullable=False),
        sa.Column("turn", sa.Integer, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("inputs", sa.LargeBinary, nullable=False),
        sa.Column("reply", sa.LargeBinary, nullable=True),
        sa.Column("quoted", sa.Text, nullable=False),
        sa.Column("copied", sa.Boolean, nullable=False),
        sa.Column("create_us", sa.BigInteger, nullable=False),
        sa.UniqueConstraint(
            "session_key", "epoch", "run_id", "turn", "kind", name="exchanges_once"
        ),
        sqlite_autoincrement=True,
    )
    op.create_index("exchanges_session", "exchanges", ["session_key", "ordinal"])


def downgrade() -> None:
    for table in ("exchanges", "steps", "runs", "resets", "sessions"):
        op.drop_table(table)
