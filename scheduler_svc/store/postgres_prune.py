"""What retention removes from the store in PostgreSQL, in steps of one small transaction each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

import asyncpg

# Flows, and request ids, that one transaction removes.
PRUNED_FLOWS = 50
PRUNED_REQUESTS = 5000

# Whole flows go together, and only when their last run ended before the time: the root ends last.
_FLOWS = """
SELECT run_id FROM runs JOIN records USING (ord)
WHERE parent_id = '' AND state >= 5 AND end_time < $1 ORDER BY ord LIMIT $2
"""
_REMOVE = """
WITH gone AS (DELETE FROM runs WHERE flow_id = ANY($1::text[]) RETURNING ord, session_key),
  records AS (DELETE FROM records USING gone WHERE records.ord = gone.ord)
SELECT session_key FROM gone
"""
# Events are removed only as a prefix of their session: up to the first one whose run is kept.
_LAST_REMOVABLE = """
SELECT key, last.sequence, last.position FROM unnest($1::text[]) AS key, LATERAL (
  SELECT sequence, position FROM events WHERE session_key = key AND sequence < coalesce(
    (SELECT sequence FROM events AS kept WHERE session_key = key
     AND EXISTS (SELECT FROM runs WHERE runs.run_id = kept.run_id) ORDER BY sequence LIMIT 1),
    9223372036854775807)
  ORDER BY sequence DESC LIMIT 1) AS last
"""
# Positions and the places of the cuts outlive the events that are removed.
_KEEP_GREATEST = """
INSERT INTO meta VALUES ($1, $2)
ON CONFLICT (key) DO UPDATE SET value = greatest(meta.value, excluded.value)
"""
_REMOVE_EVENTS = """
WITH cut AS (SELECT * FROM unnest($1::text[], $2::bigint[]) AS cut (key, last)),
  kept AS (INSERT INTO compacted SELECT key, last FROM cut
           ON CONFLICT (session_key) DO UPDATE SET sequence = excluded.sequence),
  gone AS (DELETE FROM events USING cut WHERE session_key = key AND sequence <= last RETURNING 1)
SELECT count(*) FROM gone
"""
_REMOVE_REQUESTS = """
WITH gone AS (DELETE FROM requests WHERE request_id IN
  (SELECT request_id FROM requests WHERE time < $1 ORDER BY time LIMIT $2) RETURNING 1)
SELECT count(*) FROM gone
"""
_REMOVE_QUESTIONS = """
WITH gone AS (DELETE FROM questions WHERE ord IN
  (SELECT ord FROM questions WHERE state > 1 AND close_time < $1 ORDER BY close_time LIMIT $2)
  RETURNING 1)
SELECT count(*) FROM gone
"""


def parts(
    requests_before: int, ended_before: int
) -> Iterator[Callable[[asyncpg.Connection], Awaitable[int]]]:
    """Steps, each to be repeated in a transaction of its own until it returns that no row went."""

    async def requests(db: asyncpg.Connection) -> int:
        return int(await db.fetchval(_REMOVE_REQUESTS, requests_before, PRUNED_REQUESTS))

    async def questions(db: asyncpg.Connection) -> int:
        return int(await db.fetchval(_REMOVE_QUESTIONS, requests_before, PRUNED_REQUESTS))

    async def flows(db: asyncpg.Connection) -> int:
        found = [row[0] for row in await db.fetch(_FLOWS, ended_before, PRUNED_FLOWS)]
        gone = [row[0] for row in await db.fetch(_REMOVE, found)]
        if not gone:
            return 0
        newest = await db.fetchval("SELECT coalesce(max(position), 0) FROM events")
        await db.execute(_KEEP_GREATEST, "position", newest)
        cuts = await db.fetch(_LAST_REMOVABLE, sorted(set(gone)))
        if not cuts:
            return len(gone)
        await db.execute(_KEEP_GREATEST, "compacted", max(position for _, _, position in cuts))
        removed = await db.fetchval(_REMOVE_EVENTS, [c[0] for c in cuts], [c[1] for c in cuts])
        return len(gone) + int(removed)

    yield requests
    yield questions
    yield flows
