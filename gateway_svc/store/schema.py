"""Tables of the gateway's own database. Times are microseconds since 1970."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

# The keys of children grow with the depth of a tree. SQLite takes texts of any length.
_key = sa.String(1024).with_variant(sa.String(256), "sqlite")
_event_key = sa.String(1200).with_variant(sa.String(400), "sqlite")

sessions = sa.Table(
    "sessions",
    metadata,
    sa.Column("session_key", _key, primary_key=True),
    sa.Column("kind", sa.Integer, nullable=False),
    sa.Column("agent_id", sa.String(128), nullable=False),
    sa.Column("customer_key", sa.String(128), nullable=False),
    sa.Column("channel", sa.String(64), nullable=False),
    sa.Column("parent_session_key", _key, nullable=False),
    sa.Column("label", sa.String(64), nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("create_us", sa.BigInteger, nullable=False),
    # Null until the scheduler accepted the first message: such a session does not exist yet.
    sa.Column("active_us", sa.BigInteger, nullable=True),
    # Set by `/queue`, numbers of `QueueMode`; 0 means as configured.
    sa.Column("queue_mode", sa.Integer, nullable=False, server_default="0"),
    # When the session of an ended child leaves the lists; null while it lives, and for others.
    sa.Column("archive_us", sa.BigInteger, nullable=True),
    # Set by `/model`; empty means the agent's own.
    sa.Column("model", sa.String(256), nullable=False, server_default=""),
    # What numbers in commands count in: JSON of the lists that were shown last.
    sa.Column("shown", sa.Text, nullable=False, server_default=""),
    # The ACP session that answers a conversation; empty means its agent.
    sa.Column("bound_acp_session_id", sa.String(64), nullable=False, server_default=""),
    # JSON of `Binding`.
    sa.Column("binding", sa.Text, nullable=False, server_default=""),
    # Where its customer was last; of an ACP session, where it was spawned from. Answers to prompts
    # that come from elsewhere go there.
    sa.Column("reply_address", sa.Text, nullable=False, server_default=""),
    # JSON of `Notice`: what the customer is told with the next answer of the agent.
    sa.Column("notice", sa.Text, nullable=False, server_default=""),
    # `traceparent` of its last message: the next one begins another trace, with a link to it.
    sa.Column("trace", sa.String(64), nullable=False, server_default=""),
    sa.Index("sessions_by_activity", "active_us", "session_key"),
)

cursors = sa.Table(
    "cursors",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("position", sa.BigInteger, nullable=False),
)

outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("outbox_id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("recipient", sa.String(1024), nullable=False),
    # Session key, sequence and run id: unique over all sessions, also when a log begins anew.
    sa.Column("event_key", _event_key, nullable=False),
    sa.Column("channel", sa.String(64), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("run_id", sa.String(64), nullable=False),
    sa.Column("state", sa.Integer, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("create_us", sa.BigInteger, nullable=False),
    sa.Column("next_us", sa.BigInteger, nullable=False),
    sa.Column("end_us", sa.BigInteger, nullable=True),
    sa.Column("problem", sa.String(256), nullable=False),
    # `traceparent` of what it tells of.
    sa.Column("trace", sa.String(64), nullable=False, server_default=""),
    sa.UniqueConstraint("recipient", "event_key", name="outbox_once_per_event"),
    sa.Index("outbox_pending", "state", "recipient", "outbox_id"),
    # Ids never come back, so that their order stays the order of the events.
    sqlite_autoincrement=True,
)

commands = sa.Table(
    "commands",
    metadata,
    sa.Column("request_id", sa.String(128), primary_key=True),
    # SHA-256 over caller, session and text: another command with the same id is refused.
    sa.Column("body_hash", sa.LargeBinary(32), nullable=False),
    # JSON list of the ids that it is about, decided once.
    sa.Column("meant", sa.Text, nullable=True),
    # `ExecuteCommandResponse`, once it was done.
    sa.Column("answer", sa.LargeBinary, nullable=True),
    sa.Column("create_us", sa.BigInteger, nullable=False),
    sa.Index("commands_by_age", "create_us"),
)

hook_calls = sa.Table(
    "hook_calls",
    metadata,
    sa.Column("hook", sa.String(64), primary_key=True),
    # Digest of what names the call: its id where that is signed, else its body.
    sa.Column("call_id", sa.String(64), primary_key=True),
    # SHA-256 of the body: another body with the same id is refused.
    sa.Column("body_hash", sa.LargeBinary(32), nullable=False),
    # JSON, as it was sent.
    sa.Column("answer", sa.Text, nullable=False),
    sa.Column("create_us", sa.BigInteger, nullable=False),
    sa.Index("hook_calls_by_age", "create_us"),
)
