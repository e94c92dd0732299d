"""What the service holds in memory of a session: its process, and who may use it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from acp_svc.domain.session import Opening, Session
from acp_svc.domain.settings import Wanted
from acp_svc.harness.connection import Connection
from svckit.errors import AcpLimitReached


class Full(AcpLimitReached):
    """There are as many processes as allowed, and none can be parked. Try again in a while."""


@dataclass(eq=False)
class Live:
    """A session with its process.

    `session` is the record as last stored by `Sessions`; `connection` its open session inside the
    harness.
    """

    session: Session
    connection: Connection
    wanted: Wanted
    """What the harness was last told to be."""
    reopened: Opening | None = None
    """How the session was opened again, where this was not the first time; else None."""
    watching: asyncio.Task[None] | None = field(default=None, repr=False)


class Key:
    """A lock that knows whether anybody has it or waits for it.

    An `asyncio.Lock` that was just given back says that it is free while the next one in line is
    about to have it.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._users = 0

    @property
    def used(self) -> bool:
        """Whether somebody who asks now would wait."""
        return self._users > 0

    async def __aenter__(self) -> None:
        self._users += 1
        try:
            await self._lock.acquire()
        except BaseException:
            self._users -= 1
            raise

    async def __aexit__(self, *_: object) -> None:
        self._users -= 1
        self._lock.release()


@dataclass(eq=False)
class Place:
    """One session's place in the house.

    `turn` is held while a run is at work in it: two prompts never overlap. `door` is held while its
    process starts, stops or is told other settings. Whoever takes both takes `turn` first.
    """

    session_id: str
    turn: Key = field(default_factory=Key)
    door: Key = field(default_factory=Key)
    live: Live | None = None
    opening: asyncio.Task[Live] | None = None
    closing: asyncio.Task[Session] | None = None

    @property
    def quiet(self) -> bool:
        """Whether nobody uses it at this moment."""
        return not (self.turn.used or self.door.used or self.opening or self.closing)
