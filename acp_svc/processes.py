"""Which sessions have a process: opening them, making room, parking, stopping.

At most `max_sessions` processes exist, those that start or stop included. When one more is needed
the session that did nothing for the longest time is parked; when none may be, `Full` is raised and
nobody waits: a run that waited here would hold its slot.

An opening belongs to the session, not to the call that asked for it. A caller that goes away, say
because its own deadline passed, leaves it at work, and the same call made again finds it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import msgspec

from acp_svc.convert import trouble_of
from acp_svc.counts import Counts
from acp_svc.domain import capacity, settings
from acp_svc.domain import session as rules
from acp_svc.domain.session import Opening, Session
from acp_svc.harness.connection import Connection
from acp_svc.harness.types import Opened
from acp_svc.live import Full, Live, Place
from acp_svc.opening import Opener
from acp_svc.store.sessions import SessionStore, not_found
from svckit.clock import Clock
from svckit.errors import (
    AcpBackendUnavailable,
    Internal,
    InvalidField,
    ServiceError,
    ShuttingDown,
)
from svckit.grpc import deadline
from svckit.logging import get_logger

ROOM_AGAIN_SECONDS = 3.0
"""When to ask again for room; a turn may end at any time."""

_log = get_logger("acp.processes")


class Processes:
    """The processes of this service's sessions."""

    def __init__(
        self,
        store: SessionStore,
        opener: Opener,
        clock: Clock,
        *,
        worker: str,
        most: int,
        counts: Counts | None = None,
    ) -> None:
        self._store = store
        self._opener = opener
        self._clock = clock
        self._worker = worker
        self.most = most
        self._counts = counts or Counts()
        self._places: dict[str, Place] = {}
        self._taken: set[str] = set()
        self._draining = False

    @property
    def taken(self) -> int:
        """How many processes there are, those that start or stop included."""
        return len(self._taken)

    def place(self, session_id: str) -> Place:
        """Return a session's place."""
        return self._places.setdefault(session_id, Place(session_id))

    def live(self, session_id: str) -> Live | None:
        """Return a session's process as it is, or None when it has none."""
        place = self._places.get(session_id)
        return None if place is None else place.live

    def leave(self, place: Place) -> None:
        """Forget the place of a session that ended or has no process, when nobody uses it."""
        if place.live is None and place.quiet:
            self._places.pop(place.session_id, None)

    def opens(self, session_id: str) -> bool:
        """Whether a session is being opened."""
        place = self._places.get(session_id)
        return place is not None and place.opening is not None

    def check_room(self) -> None:
        """Raise `Full` when an opening now would."""
        if len(self._taken) >= self.most and self._choose() is None:
            raise self._full()

    # Opening

    async def ensure(self, session_id: str, *, mine: bool = False) -> Live:
        """Return the session with its process, opened and set as it is to be.

        `mine`: the caller holds the session's turn. Raises what `Connection.open` does, `Full`,
        `AcpSessionNotFound` when it is not open, `AcpCwdNotAllowed`, `AcpHarnessNotFound`.
        """
        place = self.place(session_id)
        while mine and place.opening is not None:
            # Begun by somebody who does not hold the turn: it may have left settings alone.
            await asyncio.wait([place.opening])
        opening = place.opening
        if opening is None:
            if self._draining:
                raise ShuttingDown("the harness service is shutting down")
            opening = deadline.spawn(self._open(place, mine=mine), name=f"open {session_id}")
            opening.add_done_callback(lambda task: self._opening_ended(place, task))
            place.opening = opening
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if not opening.cancelled() or (caller is not None and caller.cancelling()):
                raise
            if self._draining:
                raise ShuttingDown("the harness service is shutting down") from None
            raise not_found(session_id, "the ACP session was closed meanwhile") from None

    def _opening_ended(self, place: Place, task: asyncio.Task[Live]) -> None:
        place.opening = None
        # Retrieved here too, for the case that nobody waits any more.
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, ServiceError):
            _log.error("opening failed", exc_info=error)
        self.leave(place)

    async def _open(self, place: Place, *, mine: bool) -> Live:
        async with place.door:
            session = await self._store.get(place.session_id)
            if session is None:
                raise not_found(place.session_id)
            if not session.state.open:
                raise not_found(place.session_id, "the ACP session is closed")
            live = place.live
            if live is not None and live.connection.alive:
                live.session = session
                if place.turn.used and not mine:
                    return live  # what has changed since is for its next turn
                try:
                    if await self._adapt(live):
                        return live
                except InvalidField:
                    # Withdrawn, so that the next turn is not refused again. What it must do and
                    # does not, which is to ask, stays wanted: no turn begins without it.
                    had = live.wanted
                    live.session = await self._store.change(
                        place.session_id, lambda stored: settings.taken_back(stored, had)
                    )
                    raise
            await self.stop(place)
            try:
                await self._take_room(place.session_id)
            except Full:
                # Whoever wants it comes again: it is not idle.
                now_us = self._clock.now_us()
                await self._store.change(
                    place.session_id, lambda stored: rules.wanted(stored, now_us)
                )
                raise
            try:
                live = await self._start(place, session)
            except BaseException:
                self._taken.discard(place.session_id)
                raise
            return live

    async def _start(self, place: Place, session: Session) -> Live:
        wanted, before = settings.wanted(session), session.opening
        began = time.monotonic()
        try:
            connection = await self._opener.open(session)
        except ServiceError as error:
            await self._not_opened(session, error)
            raise
        except Exception as error:
            _log.error("opening failed", exc_info=error)
            await self._not_opened(session, failed := Internal("the session could not be opened"))
            raise failed from error
        self._counts.opened(session.spec.harness_id, time.monotonic() - began)
        try:
            session = await self._store.change(session.session_id, self._opened(connection))
            if not session.state.open:
                raise not_found(session.session_id, "the ACP session was closed meanwhile")
        except BaseException:
            await connection.stop()
            raise
        live = Live(session, connection, wanted, session.opening if before else None)
        live.watching = deadline.spawn(self._watch(place, live), name=f"watch {place.session_id}")
        place.live = live
        return live

    def _opened(self, connection: Connection) -> Callable[[Session], Session]:
        now_us = self._clock.now_us()
        opened = connection.opened

        def rule(session: Session) -> Session:
            return rules.opened(
                session,
                worker=self._worker,
                now_us=now_us,
                upstream_id=opened.upstream_id,
                how=Opening(opened.how),
                loadable=opened.loadable,
                sandboxed=opened.sandboxed,
                harness_mode=opened.mode,
                harness_modes=opened.modes,
                models=opened.models,
                options=opened.options,
            )

        return rule

    async def _not_opened(self, session: Session, error: ServiceError) -> None:
        self._counts.not_opened(session.spec.harness_id, error.reason)
        now_us = self._clock.now_us()
        trouble = trouble_of(error)
        await self._store.change(
            session.session_id, lambda stored: rules.not_opened(stored, trouble, now_us)
        )

    # Settings

    async def adapt(self, session_id: str) -> None:
        """Tell the harness now what was configured, if it has a process and nobody uses it.

        Raises `InvalidField` and `AcpSessionInitFailed` when it refuses.
        """
        place = self._places.get(session_id)
        if place is None or place.turn.used:
            return
        async with place.door:
            live = place.live
            if live is not None and live.connection.alive:
                live.session = await self._store.change(session_id, lambda stored: stored)
                await self._adapt(live)

    async def _adapt(self, live: Live) -> bool:
        """Tell the harness what is to be different. False when it needs another process."""
        want = settings.wanted(live.session)
        step = settings.step(
            live.wanted,
            want,
            sandboxed=live.session.sandboxed,
            sandbox_on=self._opener.sandbox_on,
            left_behind=live.session.upstream_id != live.connection.opened.upstream_id,
        )
        if step.reopen:
            return False
        if step.nothing:
            return True
        await _tell(live, step)
        live.wanted = want
        live.session = await self._store.change(
            live.session.session_id, partial(told, live.connection.opened)
        )
        return True

    # Room

    async def _take_room(self, session_id: str) -> None:
        """Take the place of a process, parking another session if need be. Raises `Full`."""
        if len(self._taken) < self.most:
            self._taken.add(session_id)
            return
        victim = self._choose()
        if victim is None:
            raise self._full()
        # Its place is ours from here on: nobody else may count on it while it stops.
        self._taken.discard(victim.session_id)
        self._taken.add(session_id)
        try:
            await self.park(victim, "to make room")
        except BaseException:
            self._taken.discard(session_id)
            raise

    def _choose(self) -> Place | None:
        quiet = [
            place.live.session
            for place in self._places.values()
            if place.live is not None and place.quiet
        ]
        chosen = capacity.to_park(quiet)
        return None if chosen is None else self._places[chosen]

    def _full(self) -> Full:
        return Full(
            "there are as many harness processes as allowed and all are at work; close a session, "
            "wait for one, or raise acp.max_sessions",
            metadata={"sessions": str(len(self._taken)), "maxSessions": str(self.most)},
            retry_after=ROOM_AGAIN_SECONDS,
        )

    # Stopping

    async def park(self, place: Place, why: str) -> None:
        """Stop the process of a session; its next prompt opens it again."""
        try:
            async with place.turn, place.door:
                if place.live is not None:
                    _log.info("parked", acp_session_id=place.session_id, why=why)
                    await self._park(place)
        finally:
            self.leave(place)

    async def _park(self, place: Place) -> None:
        await self.stop(place)
        try:
            await self._store.change(place.session_id, rules.parked)
        except ServiceError as error:
            # The reaper says it again, and after a restart the next start does.
            _log.warning("not stored as parked", reason=error.reason)

    async def stop(self, place: Place) -> None:
        """Stop the process and all that it started. The caller holds the door."""
        live, place.live = place.live, None
        if live is None:
            return
        try:
            if live.watching is not None and live.watching is not asyncio.current_task():
                live.watching.cancel()
            await live.connection.stop()
        finally:
            self._taken.discard(place.session_id)

    async def _watch(self, place: Place, live: Live) -> None:
        """Notice when a process ends by itself, and clear up after it."""
        await live.connection.gone()
        async with place.door:
            if place.live is not live:
                return
            words = live.connection.last_words
            await self.stop(place)
            _log.warning("a harness ended by itself", acp_session_id=place.session_id)
            if place.turn.used:
                return  # whoever is at work in it hears of it, and says so
            trouble = trouble_of(
                AcpBackendUnavailable(
                    "the harness ended by itself; the next prompt starts it again",
                    metadata={
                        "harnessId": live.session.spec.harness_id,
                        "check": "runs",
                        "lastWords": words,
                    },
                )
            )
            await self._store.change(place.session_id, lambda stored: rules.parked(stored, trouble))
        self.leave(place)

    async def drain(self) -> None:
        """Open nothing more, and stop all processes at once. Safe to call twice."""
        self._draining = True
        openings = [p.opening for p in self._places.values() if p.opening is not None]
        for opening in openings:
            opening.cancel()
        await asyncio.gather(*openings, return_exceptions=True)
        await asyncio.gather(*(self._drain(place) for place in list(self._places.values())))
        # They wait for turns, which end when their process does.
        closings = [p.closing for p in self._places.values() if p.closing is not None]
        await asyncio.gather(*closings, return_exceptions=True)

    async def _drain(self, place: Place) -> None:
        # Not the turn: whoever is at work had its time to end.
        async with place.door:
            if place.live is not None:
                await self._park(place)
        self.leave(place)


async def _tell(live: Live, step: settings.Step) -> None:
    """Do one after the other, and keep count: what comes after a refusal was not done.

    Values of options come first: only the harness knows which there are.
    """
    connection = live.connection
    for name, value in step.options:
        await connection.set_option(name, value)
        live.wanted = replace(live.wanted, options={**live.wanted.options, name: value})
    if step.model:
        await connection.set_model(step.model)
        live.wanted = replace(live.wanted, model=step.model)
    if step.permission_mode is not None:
        await connection.set_permission_mode(step.permission_mode, step.harness_mode)
        live.wanted = replace(
            live.wanted, permission_mode=step.permission_mode, harness_mode=step.harness_mode
        )
    elif step.harness_mode:
        await connection.set_mode(step.harness_mode)
        live.wanted = replace(live.wanted, harness_mode=step.harness_mode)


def told(opened: Opened, session: Session) -> Session:
    """Note what the harness says of its settings."""
    return msgspec.structs.replace(
        session,
        harness_mode=opened.mode,
        harness_modes=opened.modes,
        models=opened.models,
        options=dict(opened.options),
    )
