"""What is older than the configuration keeps."""

from __future__ import annotations

from scheduler_svc.domain.records import SECOND
from scheduler_svc.store.base import LaneStore
from svckit.housekeeping import runs_kept_since
from svckit.settings_model import RetentionSettings

HOUR_SECONDS = 3600


async def remove_old(store: LaneStore, keep: RetentionSettings, now_us: int) -> int:
    """Removes old request ids, ended flows and their events. Returns how many rows went.

    Events go with their runs, whichever is kept longer; a run stays while its request id is known.
    """
    requests_before = now_us - round(keep.request_ids_hours * HOUR_SECONDS * SECOND)
    return await store.prune(
        requests_before=requests_before,
        ended_before=min(runs_kept_since(keep, now_us), requests_before),
    )
