"""Tables of the agent service. Changes need a migration in `migrations/versions`."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()

# Session keys grow with the depth of a tree. SQLite takes texts of any length.
_key = String(1024).with_variant(String(256), "sqlite")

# SQLite counts rows by itself only in a column declared exactly INTEGER.
_counter = BigInteger().with_variant(Integer(), "sqlite")

sessions = Table(
    "sessions",
    metadata,
    Column("session_key", _key, primary_key=True),
    # Conversations of the session so far, less one: a reset begins the next.
    Column("epoch", BigInteger, nullable=False),
    Column("create_us", BigInteger, nullable=False),
)

resets = Table(
    "resets",
    metadata,
    Column("session_key", _key, primary_key=True),
    Column("request_id", String(128), primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("forgotten", Integer, nullable=False),
    Column("create_us", BigInteger, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("session_key", _key, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("depth", Integer, nullable=False),
    # What it answers, as stored by `content`.
    Column("inputs", LargeBinary, nullable=False),
    # Newest lease that wrote. Older ones are refused.
    Column("fencing", BigInteger, nullable=False),
    # True once the scheduler said that the run ended.
    Column("closed", Boolean, nullable=False),
    Column("start_us", BigInteger, nullable=False),
    Index("runs_open", "session_key", "closed"),
)

steps = Table(
    "steps",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("turn", Integer, primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("data", LargeBinary, nullable=False),
    Column("fencing", BigInteger, nullable=False),
    Column("create_us", BigInteger, nullable=False),
)

summaries = Table(
    "summaries",
    metadata,
    Column("session_key", _key, primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    # Stands for the exchanges up to this ordinal; 0 for one that came with a copied conversation.
    Column("covers", BigInteger, primary_key=True),
    # Whose turn paid for it; empty for a copy.
    Column("run_id", String(64), nullable=False),
    Column("turn", Integer, nullable=False),
    Column("data", LargeBinary, nullable=False),
    Column("create_us", BigInteger, nullable=False),
)

exchanges = Table(
    "exchanges",
    metadata,
    Column("ordinal", _counter, primary_key=True, autoincrement=True),
    Column("session_key", _key, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("run_id", String(64), nullable=False),
    Column("turn", Integer, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("inputs", LargeBinary, nullable=False),
    Column("reply", LargeBinary, nullable=True),
    Column("quoted", Text, nullable=False),
    # A child that starts with its parent's conversation has copies: context, not its own messages.
    Column("copied", Boolean, nullable=False),
    Column("create_us", BigInteger, nullable=False),
    UniqueConstraint("session_key", "epoch", "run_id", "turn", "kind", name="exchanges_once"),
    Index("exchanges_session", "session_key", "ordinal"),
    sqlite_autoincrement=True,
)

# What people said about tools for the rest of a conversation.
tool_answers = Table(
    "tool_answers",
    metadata,
    Column("session_key", _key, primary_key=True),
    # A reset begins a conversation in which nothing has been said yet.
    Column("epoch", BigInteger, primary_key=True),
    Column("tool", String(64), primary_key=True),
    # `allow` or `deny`.
    Column("rule", String(8), nullable=False),
    Column("create_us", BigInteger, nullable=False),
)

probe_reports = Table(
    "probe_reports",
    metadata,
    # As `provider:model`: the same model elsewhere is another row.
    Column("model", Text, primary_key=True),
    Column("base_url", Text, primary_key=True),
    Column("data", LargeBinary, nullable=False),
    Column("end_us", BigInteger, nullable=False),
)
