"""The SQLite schema of the scheduler, and its versions.

Records are JSON, so that `sqlite3` shows what is going on; payloads apart, because records change
often and payloads never. Sessions ever seen cost one small row each.

A schema version is the number of steps that were taken: an older file takes the missing ones when
it is opened, a new one takes all. A released step never changes.
"""

_FIRST = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;

-- One row a run. `ord` is the order of acceptance. `record` holds the whole of `records.Run`; the
-- other columns are what lists filter by.
CREATE TABLE runs (
  ord INTEGER PRIMARY KEY,
  run_id TEXT NOT NULL UNIQUE,
  flow_id TEXT NOT NULL,
  parent_id TEXT NOT NULL,
  session_key TEXT NOT NULL,
  customer_key TEXT NOT NULL,
  lane TEXT NOT NULL,
  state INTEGER NOT NULL,
  depth INTEGER NOT NULL,
  create_time INTEGER NOT NULL,
  record TEXT NOT NULL
);
CREATE INDEX runs_unfinished ON runs (ord) WHERE state < 5;
CREATE INDEX runs_flow ON runs (flow_id, ord);
CREATE INDEX runs_session ON runs (session_key, ord);
CREATE INDEX runs_roots ON runs (ord) WHERE parent_id = '';

-- Serialised `Run` (spec, inputs, trace) and `RunResult`.
CREATE TABLE payloads (run_id TEXT PRIMARY KEY, payload BLOB NOT NULL, result BLOB);

CREATE TABLE events (
  position INTEGER PRIMARY KEY,
  session_key TEXT NOT NULL,
  sequence INTEGER NOT NULL,
  run_id TEXT NOT NULL,
  flow_id TEXT NOT NULL,
  kind TEXT NOT NULL,
  event_id TEXT,
  data BLOB NOT NULL
);
CREATE UNIQUE INDEX events_sequence ON events (session_key, sequence);
CREATE UNIQUE INDEX events_id ON events (session_key, event_id) WHERE event_id IS NOT NULL;
CREATE INDEX events_flow ON events (flow_id, position);

-- `previous`: runs that executed and ended, which no later turn of the session was told yet.
CREATE TABLE sessions (session_key TEXT PRIMARY KEY, head INTEGER NOT NULL, previous TEXT NOT NULL)
  WITHOUT ROWID;

CREATE TABLE requests (
  request_id TEXT PRIMARY KEY, body_hash BLOB NOT NULL, run_id TEXT NOT NULL, time INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX requests_time ON requests (time);

-- Limits that were set at run time.
CREATE TABLE limits (lane TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;

-- Steered messages that no turn has named as taken.
CREATE TABLE steers (
  run_id TEXT NOT NULL, request_id TEXT NOT NULL, offer TEXT NOT NULL,
  PRIMARY KEY (run_id, request_id)
) WITHOUT ROWID;

-- Before which sequence the events of a session were removed.
CREATE TABLE compacted (session_key TEXT PRIMARY KEY, sequence INTEGER NOT NULL) WITHOUT ROWID;
"""

_FACTS = """
-- Small records that outlive a restart; which kinds there are is told where `Changes.facts` is set.
CREATE TABLE facts (
  kind TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (kind, key)
) WITHOUT ROWID;

CREATE INDEX runs_customer ON runs (customer_key, ord);
CREATE INDEX runs_unfinished_lane ON runs (lane, ord) WHERE state < 5;
"""

_QUESTIONS = """
-- Questions to people. `ord` is the position of the event that asked. `record` holds the whole of
-- `questions.Question`, `data` the serialised `Question` as asked; the other columns are what lists
-- filter by.
CREATE TABLE questions (
  ord INTEGER PRIMARY KEY,
  question_id TEXT NOT NULL UNIQUE,
  run_id TEXT NOT NULL,
  session_key TEXT NOT NULL,
  root_session_key TEXT NOT NULL,
  customer_key TEXT NOT NULL,
  state INTEGER NOT NULL,
  close_time INTEGER NOT NULL,
  record TEXT NOT NULL,
  data BLOB NOT NULL
);
CREATE INDEX questions_open ON questions (ord) WHERE state = 1;
CREATE INDEX questions_closed ON questions (close_time) WHERE state > 1;
CREATE INDEX questions_run ON questions (run_id, ord);
CREATE INDEX questions_session ON questions (session_key, ord);
CREATE INDEX questions_root ON questions (root_session_key, ord);
CREATE INDEX questions_customer ON questions (customer_key, ord);
"""

STEPS = (_FIRST, _FACTS, _QUESTIONS)
SCHEMA_VERSION = len(STEPS)

UPSERT_RUN = """
INSERT INTO runs (ord, run_id, flow_id, parent_id, session_key, customer_key, lane, state, depth,
                  create_time, record)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (run_id) DO UPDATE SET state = excluded.state, record = excluded.record
"""

SELECT_EVENTS = """
SELECT position, session_key, sequence, run_id, flow_id, kind, event_id, data FROM events
"""

INSERT_EVENT = """
INSERT INTO events (position, session_key, sequence, run_id, flow_id, kind, event_id, data)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""

UPSERT_SESSION = """
INSERT INTO sessions (session_key, head, previous) VALUES (?, ?, ?)
ON CONFLICT (session_key) DO UPDATE SET head = excluded.head, previous = excluded.previous
"""

INSERT_QUESTION = """
INSERT INTO questions (ord, question_id, run_id, session_key, root_session_key, customer_key, state,
                       close_time, record, data)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""

CLOSE_QUESTION = """
UPDATE questions SET state = ?2, close_time = ?3, record = ?4 WHERE question_id = ?1
"""

# Whole flows go together, and only when their last run ended before the time: the root ends last.
PRUNABLE_FLOWS = """
SELECT run_id FROM runs WHERE parent_id = '' AND state >= 5
AND json_extract(record, '$.end_time') < ? ORDER BY ord LIMIT ?
"""

FLOW_RUNS = "SELECT run_id, session_key FROM runs WHERE flow_id = ?"

# Events are removed only as a prefix of their session: up to the first one whose run is kept.
LAST_REMOVABLE_EVENT = """
SELECT sequence, position FROM events WHERE session_key = ?1 AND sequence < coalesce(
  (SELECT sequence FROM events WHERE session_key = ?1 AND run_id IN (SELECT run_id FROM runs)
   ORDER BY sequence LIMIT 1), 9223372036854775807)
ORDER BY sequence DESC LIMIT 1
"""

# Positions and the places of the cuts outlive the events that are removed.
KEEP_GREATEST = """
INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = max(value, excluded.value)
"""
