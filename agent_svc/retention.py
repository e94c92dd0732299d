"""Forgets the steps of runs that ended long ago, and the sessions of old children.

A run's steps are needed until the scheduler has called it ended and its replies are history. So the
ends of runs that nobody asked about since are learnt first, while the scheduler still knows them.
"""

from __future__ import annotations

from agent_svc.standing import StandingReader
from agent_svc.store.transcripts import Transcripts
from svckit.housekeeping import runs_kept_since
from svckit.settings_model import RetentionSettings

OPEN_US = 3600 * 1_000_000
"""A run that began this long ago and is not known to have ended is asked about."""
BATCH = 200


class Retention:
    """Removes what `[retention]` no longer keeps. What was said in conversations stays."""

    def __init__(
        self, store: Transcripts, standing: StandingReader, keep: RetentionSettings
    ) -> None:
        self._store = store
        self._standing = standing
        self._keep = keep

    async def remove_old(self, now_us: int) -> int:
        """Remove what is too old, in small transactions; returns how many rows went."""
        for session_key in await self._store.sessions_with_open_runs(now_us - OPEN_US):
            await self._standing.align(session_key)
        hours = self._keep.request_ids_hours
        removed = await self._store.forget_resets(now_us - round(hours * 3600 * 1_000_000))
        before_us = runs_kept_since(self._keep, now_us)
        while went := await self._store.forget_runs(before_us, BATCH):
            removed += went
        return removed
