"""Removes what is older than the configuration keeps, while the service goes on working."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from svckit.clock import Clock
from svckit.errors import ServiceError
from svckit.logging import get_logger
from svckit.settings_model import RetentionSettings

FIRST_SECONDS = 60.0
EVERY_SECONDS = 3600.0
_DAY_US = 86_400 * 1_000_000

_log = get_logger("svckit.housekeeping")


async def keep_tidy(remove_old: Callable[[int], Awaitable[int]], clock: Clock) -> None:
    """Call `remove_old(now_us)` a minute after the start, then once an hour, until cancelled.

    It returns how many rows went. A store or a neighbour that is away is asked again next time.
    """
    await clock.sleep(FIRST_SECONDS)  # not in the way of a start
    while True:
        try:
            _log.info("retention", removed_rows=await remove_old(clock.now_us()))
        except ServiceError as error:
            _log.warning("retention waits for an hour", reason=error.reason)
        await clock.sleep(EVERY_SECONDS)


def runs_kept_since(keep: RetentionSettings, now_us: int) -> int:
    """Return the time before which an ended run is forgotten: its events go with it."""
    return now_us - round(max(keep.events_days, keep.runs_days) * _DAY_US)
