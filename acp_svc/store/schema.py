"""Tables of the harness service. Changes need a migration in `migrations/versions`."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Index, LargeBinary, MetaData, String, Table

metadata = MetaData()

_key = String(1024).with_variant(String(256), "sqlite")

# The record is `data`; the other columns are what lists choose and sort by, taken from it.
sessions = Table(
    "sessions",
    metadata,
    # A ULID: sorts by creation.
    Column("session_id", String(64), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("worker", String(64), nullable=False),
    Column("harness_id", String(64), nullable=False),
    # The harness's own id, or that of the session it is to resume: at most one may be open.
    Column("upstream_id", String(256), nullable=False),
    Column("session_key", _key, nullable=False),
    Column("customer_key", String(256), nullable=False),
    Column("parent_session_key", _key, nullable=False),
    Column("active_us", BigInteger, nullable=False),
    Column("end_us", BigInteger, nullable=False),
    Column("data", LargeBinary, nullable=False),
    Index("sessions_state", "state", "active_us"),
    Index("sessions_customer", "customer_key", "session_id"),
    Index("sessions_parent", "parent_session_key", "session_id"),
    Index("sessions_upstream", "upstream_id"),
    Index("sessions_lane", "session_key", "session_id"),
)

# Whose a conversation inside a harness is. Kept when our session is forgotten, opened a new one, or
# moved: the harness still has it, and who knows its id could go on with it.
conversations = Table(
    "conversations",
    metadata,
    Column("harness_id", String(64), primary_key=True),
    Column("upstream_id", String(256), primary_key=True),
    Column("customer_key", String(256), nullable=False),
)

spawn_requests = Table(
    "spawn_requests",
    metadata,
    Column("request_id", String(128), primary_key=True),
    Column("session_id", String(64), nullable=False),
    # Tells a repeated call from another one under the same id.
    Column("body_hash", String(64), nullable=False),
    Column("create_us", BigInteger, nullable=False),
    Index("spawn_requests_age", "create_us"),
)

# A prompt is marked here before it is sent, so that it is never sent twice.
prompts = Table(
    "prompts",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("prompt_key", String(128), primary_key=True),
    Column("session_id", String(64), nullable=False),
    Column("sent_us", BigInteger, nullable=False),
    # 0 while it is at work, or when its end never came.
    Column("end_us", BigInteger, nullable=False),
    # What came of it, for the case that the scheduler did not hear of it.
    Column("outcome", LargeBinary, nullable=True),
    Index("prompts_age", "sent_us"),
)
