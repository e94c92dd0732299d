"""The PostgreSQL schema of the scheduler, and the one statement of a commit.

What never changes of a run (and its payload, which seldom does) lies apart from its record, which
changes several times a turn: so that a change touches a small row and few indexes.

A commit is one statement, and so one round trip and one transaction: every part of it writes one
table from arrays, and writes only if the leader row, locked by the same statement, still has our
epoch. The lock is of the key: a new epoch waits for the commits under way, renewing the lease of
the present one (which leaves the key alone) does not.

A schema version is the number of steps that were taken: an older schema takes the missing ones when
it is opened, a new one takes all. A released step never changes.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import msgspec

from scheduler_svc.domain.records import Run
from scheduler_svc.store import question_rows
from scheduler_svc.store.base import Batch

# Any constant of ours: schemas are made by one process at a time.
MIGRATION_LOCK = 0x636F6E76_73636865

_FIRST = """
CREATE TABLE leader (
  id INTEGER PRIMARY KEY,
  epoch BIGINT NOT NULL,
  holder TEXT NOT NULL,
  address TEXT NOT NULL,
  expire_time TIMESTAMPTZ NOT NULL,
  -- Makes the epoch a part of the key, see the module.
  UNIQUE (id, epoch)
) WITH (fillfactor = 10);
INSERT INTO leader VALUES (0, 0, '', '', 'epoch');

CREATE TABLE meta (key TEXT PRIMARY KEY, value BIGINT NOT NULL) WITH (fillfactor = 10);

-- One row a run. `ord` is the order of acceptance, `payload` the serialised `Run` (spec, inputs,
-- trace).
CREATE TABLE runs (
  ord BIGINT PRIMARY KEY,
  run_id TEXT NOT NULL UNIQUE,
  flow_id TEXT NOT NULL,
  parent_id TEXT NOT NULL,
  session_key TEXT NOT NULL,
  customer_key TEXT NOT NULL,
  lane TEXT NOT NULL,
  depth INTEGER NOT NULL,
  create_time BIGINT NOT NULL,
  labels TEXT[],
  payload BYTEA NOT NULL
);
CREATE INDEX runs_flow ON runs (flow_id, ord);
CREATE INDEX runs_session ON runs (session_key, ord);
CREATE INDEX runs_customer ON runs (customer_key, ord);
CREATE INDEX runs_roots ON runs (ord) WHERE parent_id = '';

-- What changes of a run. `record` is the JSON of the whole of `records.Run`, `result` the
-- serialised `RunResult`; the other columns are what lists filter by.
CREATE TABLE records (
  ord BIGINT PRIMARY KEY,
  session_key TEXT NOT NULL,
  state SMALLINT NOT NULL,
  executing BOOLEAN NOT NULL,
  descendants INTEGER NOT NULL,
  end_time BIGINT NOT NULL,
  record TEXT NOT NULL,
  result BYTEA
) WITH (fillfactor = 70);
CREATE INDEX records_unfinished ON records (ord) WHERE state < 5;
-- At most one executing run a session, whatever a scheduler believes.
CREATE UNIQUE INDEX records_executing ON records (session_key) WHERE executing;

CREATE TABLE events (
  position BIGINT PRIMARY KEY,
  session_key TEXT NOT NULL,
  sequence BIGINT NOT NULL,
  run_id TEXT NOT NULL,
  flow_id TEXT NOT NULL,
  kind TEXT NOT NULL,
  event_id TEXT,
  data BYTEA NOT NULL
);
CREATE UNIQUE INDEX events_sequence ON events (session_key, sequence);
CREATE UNIQUE INDEX events_id ON events (session_key, event_id) WHERE event_id IS NOT NULL;
CREATE INDEX events_flow ON events (flow_id, position);

-- `previous`: runs that executed and ended, which no later turn of the session was told yet.
CREATE TABLE sessions (
  session_key TEXT PRIMARY KEY, head BIGINT NOT NULL, previous TEXT NOT NULL
) WITH (fillfactor = 80);

CREATE TABLE requests (
  request_id TEXT PRIMARY KEY, body_hash BYTEA NOT NULL, run_id TEXT NOT NULL, time BIGINT NOT NULL
);
CREATE INDEX requests_time ON requests (time);

-- Limits that were set at run time.
CREATE TABLE limits (lane TEXT PRIMARY KEY, value BIGINT NOT NULL);

-- Steered messages that no turn has named as taken.
CREATE TABLE steers (
  run_id TEXT NOT NULL, request_id TEXT NOT NULL, offer TEXT NOT NULL,
  PRIMARY KEY (run_id, request_id)
);

-- Small records that outlive a restart; which kinds there are is told where `Changes.facts` is set.
CREATE TABLE facts (
  kind TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (kind, key)
) WITH (fillfactor = 50);

-- Before which sequence the events of a session were removed.
CREATE TABLE compacted (session_key TEXT PRIMARY KEY, sequence BIGINT NOT NULL);
"""

_QUESTIONS = """
-- Questions to people. `ord` is the position of the event that asked. `record` is the JSON of the
-- whole of `questions.Question`, `data` the serialised `Question` as asked; the other columns are
-- what lists filter by.
CREATE TABLE questions (
  ord BIGINT PRIMARY KEY,
  question_id TEXT NOT NULL UNIQUE,
  run_id TEXT NOT NULL,
  session_key TEXT NOT NULL,
  root_session_key TEXT NOT NULL,
  customer_key TEXT NOT NULL,
  state SMALLINT NOT NULL,
  close_time BIGINT NOT NULL,
  record TEXT NOT NULL,
  data BYTEA NOT NULL
) WITH (fillfactor = 80);
CREATE INDEX questions_open ON questions (ord) WHERE state = 1;
CREATE INDEX questions_closed ON questions (close_time) WHERE state > 1;
CREATE INDEX questions_run ON questions (run_id, ord);
CREATE INDEX questions_session ON questions (session_key, ord);
CREATE INDEX questions_root ON questions (root_session_key, ord);
CREATE INDEX questions_customer ON questions (customer_key, ord);
"""

STEPS = (_FIRST, _QUESTIONS)
SCHEMA_VERSION = len(STEPS)

# True while `$1` is the epoch; and then no other can begin before the transaction has ended.
LEADING = "SELECT TRUE FROM leader WHERE id = 0 AND epoch = $1 FOR KEY SHARE"

UNFINISHED = "SELECT ord, record FROM records WHERE state < 5 AND ord > $1 ORDER BY ord LIMIT $2"
UNFINISHED_SESSIONS = """
SELECT session_key, head, previous FROM sessions
WHERE session_key IN (SELECT session_key FROM records WHERE state < 5)
"""
LOOKUP = """
SELECT 0, request_id, 0, run_id, body_hash FROM requests WHERE request_id = ANY($1::text[])
UNION ALL
SELECT 1, run_id, 0, record, NULL FROM runs JOIN records USING (ord) WHERE run_id = ANY($2::text[])
UNION ALL
SELECT 2, session_key, head, previous, NULL FROM sessions WHERE session_key = ANY($3::text[])
UNION ALL
SELECT 3, session_key, sequence, event_id, NULL
FROM events JOIN unnest($4::text[], $5::text[]) AS wanted (session_key, event_id)
USING (session_key, event_id)
UNION ALL
SELECT 4, question_id, 0, record, NULL FROM questions WHERE question_id = ANY($6::text[])
"""

SELECT_EVENTS = """
SELECT position, session_key, sequence, run_id, flow_id, kind, event_id, data FROM events
"""
# How many commits there were.
WRITTEN = "SELECT coalesce((SELECT value FROM meta WHERE key = 'commits'), 0)"

# `?` are the parameters in their order, each used once; `:ours` is true while we lead.
_LEADING = LEADING.replace("$1", "?")
_OURS = "EXISTS (SELECT FROM our_lead)"
_PARTS = {
    "runs": """
INSERT INTO runs (ord, run_id, flow_id, parent_id, session_key, customer_key, lane, depth,
                  create_time, labels, payload)
SELECT ord, run_id, flow_id, parent_id, session_key, customer_key, lane, depth, create_time,
  string_to_array(labels, E'\\x1e'), payload
FROM unnest(?::bigint[], ?::text[], ?::text[], ?::text[], ?::text[], ?::text[], ?::text[],
  ?::int[], ?::bigint[], ?::text[], ?::bytea[])
AS new (ord, run_id, flow_id, parent_id, session_key, customer_key, lane, depth, create_time,
  labels, payload) WHERE :ours
ON CONFLICT (run_id) DO UPDATE SET payload = excluded.payload""",
    # A run that stops executing comes before the one that then executes in its session: the index
    # that allows one of them is asked row by row.
    "records": """
INSERT INTO records (ord, session_key, state, executing, descendants, end_time, record, result)
SELECT * FROM unnest(?::bigint[], ?::text[], ?::smallint[], ?::boolean[], ?::int[], ?::bigint[],
  ?::text[], ?::bytea[]) AS new (ord, session_key, state, executing, descendants, end_time, record,
  result) WHERE :ours ORDER BY executing, ord
ON CONFLICT (ord) DO UPDATE SET state = excluded.state, executing = excluded.executing,
  descendants = excluded.descendants, end_time = excluded.end_time, record = excluded.record,
  result = coalesce(excluded.result, records.result)""",
    "payloads": """
UPDATE runs SET payload = new.payload FROM unnest(?::text[], ?::bytea[]) AS new (run_id, payload)
WHERE runs.run_id = new.run_id AND :ours""",
    "results": """
UPDATE records SET result = new.result
FROM unnest(?::text[], ?::bytea[]) AS new (run_id, result) JOIN runs USING (run_id)
WHERE records.ord = runs.ord AND :ours""",
    "events": """
INSERT INTO events (position, session_key, sequence, run_id, flow_id, kind, event_id, data)
SELECT * FROM unnest(?::bigint[], ?::text[], ?::bigint[], ?::text[], ?::text[], ?::text[],
  ?::text[], ?::bytea[]) AS new WHERE :ours""",
    "sessions": """
INSERT INTO sessions (session_key, head, previous)
SELECT * FROM unnest(?::text[], ?::bigint[], ?::text[]) AS new WHERE :ours
ON CONFLICT (session_key) DO UPDATE SET head = excluded.head, previous = excluded.previous""",
    "requests": """
INSERT INTO requests (request_id, body_hash, run_id, time)
SELECT *, ?::bigint FROM unnest(?::text[], ?::bytea[], ?::text[]) AS new WHERE :ours
ON CONFLICT (request_id) DO UPDATE
SET body_hash = excluded.body_hash, run_id = excluded.run_id, time = excluded.time""",
    "limits": """
INSERT INTO limits (lane, value)
SELECT * FROM unnest(?::text[], ?::bigint[]) AS new WHERE :ours
ON CONFLICT (lane) DO UPDATE SET value = excluded.value""",
    "no_limits": "DELETE FROM limits WHERE lane = ANY(?::text[]) AND :ours",
    "steers": """
INSERT INTO steers (run_id, request_id, offer)
SELECT * FROM unnest(?::text[], ?::text[], ?::text[]) AS new WHERE :ours
ON CONFLICT (run_id, request_id) DO UPDATE SET offer = excluded.offer""",
    "no_steers": """
DELETE FROM steers USING unnest(?::text[], ?::text[]) AS gone (run_id, request_id)
WHERE steers.run_id = gone.run_id AND steers.request_id = gone.request_id AND :ours""",
    "facts": """
INSERT INTO facts (kind, key, value)
SELECT * FROM unnest(?::text[], ?::text[], ?::text[]) AS new WHERE :ours
ON CONFLICT (kind, key) DO UPDATE SET value = excluded.value""",
    "no_facts": """
DELETE FROM facts USING unnest(?::text[], ?::text[]) AS gone (kind, key)
WHERE facts.kind = gone.kind AND facts.key = gone.key AND :ours""",
    "questions": """
INSERT INTO questions (ord, question_id, run_id, session_key, root_session_key, customer_key, state,
  close_time, record, data)
SELECT * FROM unnest(?::bigint[], ?::text[], ?::text[], ?::text[], ?::text[], ?::text[],
  ?::smallint[], ?::bigint[], ?::text[], ?::bytea[]) AS new WHERE :ours""",
    "closed_questions": """
UPDATE questions SET state = new.state, close_time = new.close_time, record = new.record
FROM unnest(?::text[], ?::smallint[], ?::bigint[], ?::text[])
AS new (question_id, state, close_time, record)
WHERE questions.question_id = new.question_id AND :ours""",
    "token": """
INSERT INTO meta SELECT 'token', ?::bigint WHERE :ours
ON CONFLICT (key) DO UPDATE SET value = greatest(meta.value, excluded.value)""",
}

_COUNT = """
INSERT INTO meta SELECT 'commits', 1 WHERE :ours
ON CONFLICT (key) DO UPDATE SET value = meta.value + 1 RETURNING value"""

_encode = msgspec.json.Encoder().encode
# Between labels; such a character has no place in one.
_LABEL_END = "\x1e"


def commit_of(batch: Batch) -> tuple[tuple[str, ...], list[Any]]:
    """The parts that a batch needs, and their parameters in order, without the epoch."""
    parts: dict[str, list[Any]] = {}
    payloads, results = dict(batch.payloads), dict(batch.results)
    new = [run for run in batch.runs if run.run_id in payloads]
    if new:
        parts["runs"] = _columns(
            (
                run.order,
                run.run_id,
                run.flow_id,
                run.parent_id,
                run.session_key,
                run.customer_key,
                run.lane,
                run.depth,
                run.create_time,
                _LABEL_END.join(labels(run.labels)) if run.labels else None,
                payloads.pop(run.run_id),
            )
            for run in new
        )
    if batch.runs:
        parts["records"] = _columns(_record(run, results) for run in batch.runs)
    if payloads:
        parts["payloads"] = _columns(payloads.items())
    if results:
        parts["results"] = _columns(results.items())
    if batch.events:
        parts["events"] = _columns(msgspec.structs.astuple(event) for event in batch.events)
    if batch.sessions:
        parts["sessions"] = _columns(
            (key, head, _encode(previous).decode()) for key, head, previous in batch.sessions
        )
    if batch.requests:
        parts["requests"] = [
            batch.time,
            *_columns((r, known.body_hash, known.run_id) for r, known in batch.requests.items()),
        ]
    _set_or_remove(parts, "limits", [((lane,), v) for lane, v in batch.limits.items()])
    _set_or_remove(
        parts,
        "steers",
        [(k, None if o is None else _encode(o).decode()) for k, o in batch.steers.items()],
    )
    # Keys hold names that clients chose. Once each: a statement may change a row only once.
    facts = {(kind, _text(key)): fact for (kind, key), fact in batch.facts.items()}
    _set_or_remove(
        parts, "facts", [(k, None if f is None else f.decode()) for k, f in facts.items()]
    )
    if asked := list(question_rows.asked(batch)):
        parts["questions"] = _columns(asked)
    if closed := list(question_rows.closed(batch)):
        parts["closed_questions"] = _columns(closed)
    if batch.token:
        parts["token"] = [batch.token]
    return tuple(parts), [value for values in parts.values() for value in values]


@lru_cache(maxsize=500)
def commit_statement(parts: tuple[str, ...]) -> str:
    """The statement that writes these parts.

    It returns the number of the commit, or no row if we do not lead: then nothing was written.
    Its first parameter is our epoch; the others are those of `commit_of`.
    """
    withs = [f"our_lead AS MATERIALIZED ({_LEADING})"]
    withs += [f"{part} AS ({_PARTS[part].strip()})" for part in parts]
    withs += [f"counted AS ({_COUNT.strip()})"]
    text = "WITH " + ", ".join(withs) + " SELECT value FROM counted"  # noqa: S608  (texts of ours)
    pieces = text.replace(":ours", _OURS).split("?")
    text = pieces[0]
    for number, piece in enumerate(pieces[1:], 1):
        text += f"${number}{piece}"
    return text


def labels(of: dict[str, str]) -> list[str]:
    """Labels as they are stored, to be compared with."""
    # The separator is ours.
    return [_text(f"{k}={v}").replace(_LABEL_END, "\ufffd") for k, v in of.items()]


def _text(value: str) -> str:
    # PostgreSQL knows no text with NUL.
    return value.replace("\0", "\ufffd")


def _record(run: Run, results: dict[str, bytes]) -> tuple[Any, ...]:
    return (
        run.order,
        run.session_key,
        int(run.state),
        run.lease is not None,
        run.descendants,
        run.end_time,
        _encode(run).decode(),
        results.pop(run.run_id, None),
    )


def _set_or_remove(
    parts: dict[str, list[Any]], name: str, changes: list[tuple[tuple[str, ...], Any]]
) -> None:
    if kept := [(*key, value) for key, value in changes if value is not None]:
        parts[name] = _columns(kept)
    if gone := [key for key, value in changes if value is None]:
        parts[f"no_{name}"] = _columns(gone)


def _columns(rows: Iterable[tuple[Any, ...]]) -> list[Any]:
    return [list(column) for column in zip(*rows, strict=True)]
