"""ACP sessions with lanes of their own, beside the conversation that they were spawned from.

Whoever watches the conversation hears what they say and ask. New ones are found in the database, at
once when this process opened them, else within some seconds.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator

from conveyor.events.v1 import event_pb2
from gateway_svc.domain import asking
from gateway_svc.domain.sessions import ended_run
from gateway_svc.store import sessions as store
from svckit.clock import Clock
from svckit.database import Database

PAYLOADS = frozenset(
    {"message_completed", "run_state_changed", "note_added", "delta", *asking.PAYLOADS}
)
"""What is heard of them without being asked for."""
LOOK_SECONDS = 15.0
_MARGIN_SECONDS = 3600.0
"""What a session said just before its end is heard by whoever comes back within this time."""
MOST = 32
"""Of one conversation, the newest."""


class SpawnedLanes:
    """Finds the lanes of a conversation's ACP sessions. One per process.

    Sessions that were silent for `idle_seconds` are closed: nothing more comes from them.
    """

    def __init__(self, database: Database, clock: Clock, idle_seconds: float) -> None:
        self._database = database
        self._clock = clock
        self._kept_us = round((idle_seconds + _MARGIN_SECONDS) * 1_000_000)
        self._watchers: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    async def of(self, session_key: str) -> list[str]:
        """Return the lanes that are in use."""
        since = self._clock.now_us() - self._kept_us
        return await self._database.run(
            lambda connection: store.lanes_below(connection, session_key, since, MOST)
        )

    def opened(self, session_key: str) -> None:
        """Note that a conversation has a new one."""
        for wake in self._watchers.get(session_key, ()):
            wake.set()

    async def new(self, session_key: str, known: list[str]) -> AsyncGenerator[str, None]:
        """Yield lanes that are not known yet, for ever."""
        seen = set(known)
        wake = asyncio.Event()
        self._watchers[session_key].add(wake)
        try:
            while True:
                for lane in await self.of(session_key):
                    if lane not in seen:
                        seen.add(lane)
                        yield lane
                try:
                    async with asyncio.timeout(LOOK_SECONDS):
                        await wake.wait()
                except TimeoutError:
                    pass
                wake.clear()
        finally:
            self._watchers[session_key].discard(wake)
            if not self._watchers[session_key]:
                del self._watchers[session_key]


def is_heard(event: event_pb2.Event) -> bool:
    """True for what the people of the conversation are told of such a session, unasked."""
    payload = event.WhichOneof("payload")
    if payload == "message_completed":
        return event.message_completed.kind != event_pb2.MESSAGE_KIND_INTERNAL
    if payload == "note_added":
        return event.note_added.visible
    return payload in asking.PAYLOADS or ended_run(event)
