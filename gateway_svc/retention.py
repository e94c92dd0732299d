"""Forgets deliveries, commands, calls of hooks that are over, and sessions of gone runs."""

from __future__ import annotations

from functools import partial

from gateway_svc.store import commands, hook_calls, outbox, sessions
from svckit.database import Database
from svckit.housekeeping import runs_kept_since
from svckit.settings_model import RetentionSettings

DELIVERIES_KEPT_SECONDS = 7 * 86_400
HOOK_CALLS_KEPT_SECONDS = 30 * 86_400
BATCH = 500


async def remove_old(database: Database, keep: RetentionSettings, now_us: int) -> int:
    """Remove what is too old, in small transactions; returns how many rows went.

    Conversations stay: they know their customer, their agent and how often they were reset.
    """
    removed = await database.run(
        partial(outbox.prune, before_us=now_us - DELIVERIES_KEPT_SECONDS * 1_000_000)
    )
    known_us = now_us - round(keep.request_ids_hours * 3600 * 1_000_000)
    removed += await database.run(partial(commands.prune, before_us=known_us))
    called_us = now_us - HOOK_CALLS_KEPT_SECONDS * 1_000_000
    removed += await database.run(partial(hook_calls.prune, before_us=called_us))
    before_us = runs_kept_since(keep, now_us)
    while True:
        went = await database.run(partial(sessions.prune, before_us=before_us, limit=BATCH))
        removed += went
        if went < BATCH:
            return removed
