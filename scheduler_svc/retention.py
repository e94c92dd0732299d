"""Removes what is older than the configuration keeps."""

from __future__ import annotations

import logging

from scheduler_svc.domain.records import SECOND
from scheduler_svc.store.base import LaneStore
from svckit.clock import Clock
from svckit.errors import StoreUnavailable
from svckit.settings_model import RetentionSettings

log = logging.getLogger(__name__)

HOUR_SECONDS = 3600.0
FIRST_SECONDS = 60.0
DAY_SECONDS = 24 * HOUR_SECONDS


async def keep_tidy(store: LaneStore, keep: RetentionSettings, clock: Clock) -> None:
    """Prunes a minute after the start, then once an hour, until cancelled.

    Events go with their runs, whichever is kept longer; a run stays while its request id is known.
    """
    await clock.sleep(FIRST_SECONDS)  # not in the way of a start
    while True:
        now = clock.now_us()
        days = max(keep.events_days, keep.runs_days, keep.request_ids_hours / 24)
        try:
            removed = await store.prune(
                requests_before=now - round(keep.request_ids_hours * HOUR_SECONDS * SECOND),
                ended_before=now - round(days * DAY_SECONDS * SECOND),
            )
            log.info("retention", extra={"removed_rows": removed})
        except StoreUnavailable:
            log.warning("retention could not write; it tries again in an hour")
        await clock.sleep(HOUR_SECONDS)
