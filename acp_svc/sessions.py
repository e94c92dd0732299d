"""The ACP sessions of this service: what its calls and its runs do with them.

A session is a stored record (`domain.session`), and for as long as it is in use a process
(`processes`). What is here puts the two together.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from acp_svc import directories
from acp_svc.convert import error_of, trouble_of
from acp_svc.creating import Creator
from acp_svc.domain import session as rules
from acp_svc.domain import settings
from acp_svc.domain.lifetime import idle_too_long
from acp_svc.domain.session import Session, State
from acp_svc.domain.settings import Changes
from acp_svc.live import Full, Live, Place
from acp_svc.processes import Processes
from acp_svc.store.prompts import PromptStore, Sent
from acp_svc.store.sessions import Chosen, SessionStore, not_found
from conveyor.acp.v1 import session_pb2 as pb
from conveyor.scheduler.v1 import scheduler_service_pb2 as sched_pb
from svckit.clock import Clock
from svckit.errors import (
    AcpSessionInitFailed,
    InvalidField,
    RunNotFound,
    ServiceError,
    invalid_field,
)
from svckit.grpc import client, deadline
from svckit.logging import get_logger

if TYPE_CHECKING:
    from conveyor.scheduler.v1.scheduler_service_pb2_grpc import SchedulerServiceAsyncStub

CANCEL_CALL_SECONDS = 5.0
LEARN_SECONDS = 3.0
"""How long a worker may take to learn that its run was cancelled."""

_log = get_logger("acp.sessions")

__all__ = ["Full", "Live", "Sent", "Sessions"]


class Sessions:
    """All that happens to sessions."""

    def __init__(
        self,
        *,
        store: SessionStore,
        prompts: PromptStore,
        creator: Creator,
        processes: Processes,
        scheduler: SchedulerServiceAsyncStub,
        clock: Clock,
        cancel_seconds: float,
        workspace_roots: Sequence[str],
    ) -> None:
        self._store = store
        self._prompts = prompts
        self._creator = creator
        self._processes = processes
        self._scheduler = scheduler
        self._clock = clock
        self._cancel_seconds = cancel_seconds
        self._roots = tuple(workspace_roots)

    # Making and looking up

    async def create(
        self, spec: pb.AcpSessionSpec, *, request_id: str, deferred: bool = True
    ) -> Session:
        """Store a session in state `STARTING`, without a process; see `Creator.create`.

        Idempotent per `request_id`. For a run that makes its own session that is its run id.
        """
        return await self._creator.create(spec, request_id=request_id, deferred=deferred)

    async def find(self, session_id: str) -> Session:
        """Return a session in whatever state, also ended. Raises `AcpSessionNotFound`."""
        session = await self._store.get(session_id)
        if session is None:
            raise not_found(session_id)
        return session

    async def page(self, chosen: Chosen, *, before: str, limit: int) -> list[Session]:
        """At most `limit` sessions, newest first, older than the id `before` (empty: all)."""
        return await self._store.page(chosen, before=before, limit=limit)

    async def spawn(self, spec: pb.AcpSessionSpec, *, request_id: str) -> Session:
        """Make a session and open it at once. The same request again waits for the same session.

        Raises what `create` and `open` raise. After `AcpLimitReached` nothing is left of it.
        """
        session = await self.create(spec, request_id=request_id, deferred=False)
        if session.state is State.FAILED and session.trouble is not None:
            raise error_of(session.trouble)
        if session.state is not State.STARTING:
            return session
        try:
            return (await self.open(session.session_id)).session
        except Full:
            # The same call again may have found room meanwhile: then it is that one's.
            if not self._processes.opens(session.session_id):
                await self._store.remove_unopened(session.session_id)
            raise

    # For runs

    async def open(self, session_id: str) -> Live:
        """Return the session with its process, which is started if need be.

        The session stays open for others after that; use it within `busy`. A caller that is
        cancelled leaves the opening at work; `close` ends it.

        Raises `AcpSessionNotFound` (also for one that ended), `Full`, and what opening it raised:
        `AcpBackendUnavailable`, `AcpSessionInitFailed`, `AcpCwdNotAllowed`, `AcpHarnessNotFound`,
        or `InvalidField` for a setting that the harness does not know.
        """
        return await self._processes.ensure(session_id)

    @asynccontextmanager
    async def busy(self, live: Live, run_id: str) -> AsyncIterator[Live]:
        """Have the session to oneself for the turn of a run; waits for the one before.

        Use the `Live` that it gives: the process may be another by now, and settings that changed
        since the last turn count from here on. Raises what `open` raises. A session of mode
        `oneshot` closes afterwards, once a prompt of it was marked as sent.

        When the process ends while one is at work, `open` starts another inside the same block.
        """
        session_id = live.session.session_id
        place = self._processes.place(session_id)
        try:
            async with place.turn:
                live = await self._processes.ensure(session_id, mine=True)
                now_us = self._clock.now_us()
                live.session = await self._change(
                    session_id, lambda stored: rules.at_work(stored, run_id, now_us)
                )
                if not live.session.state.open:
                    raise not_found(session_id, "the ACP session is closed")
                try:
                    yield live
                finally:
                    await self._rest(place)
        finally:
            self._processes.leave(place)

    async def _rest(self, place: Place) -> None:
        live = place.live
        if live is not None:
            live.reopened = None
        has_process = live is not None and live.connection.alive
        now_us = self._clock.now_us()
        try:
            session = await self._change(
                place.session_id,
                lambda stored: rules.rested(stored, has_process=has_process, now_us=now_us),
            )
        except ServiceError as error:
            _log.warning("end of a turn not stored", reason=error.reason)
            return
        if session.state is State.CLOSING and place.closing is None:
            self._begin_closing(place, rules.closing)

    async def asking(self, live: Live, open_questions: int) -> None:
        """Note how many questions of the run at work wait for people; 0 for none any more."""
        now_us = self._clock.now_us()
        live.session = await self._change(
            live.session.session_id,
            lambda stored: rules.asking(stored, open_questions, now_us),
        )

    async def prompted_again(self, session_id: str) -> None:
        """Note that the run at work has another prompt, which a session for one turn waits for."""
        await self._change(session_id, rules.prompted_again)

    async def remember(self, session_id: str, said: Mapping[str, bool]) -> None:
        """Keep what people allowed or denied for the rest of the session."""
        await self._change(session_id, lambda stored: rules.remembering(stored, said))

    async def mark_sent(self, session_id: str, run_id: str, key: str) -> None:
        """Note that a prompt is about to be sent, before it is. `key` names it within its run."""
        session = await self._prompts.mark(session_id, run_id, key, self._clock.now_us())
        live = self._processes.live(session_id)
        if live is not None:
            live.session = session

    async def was_sent(self, run_id: str) -> Sent | None:
        """Return the prompt of a run that was marked last, also after a restart; None for none.

        One that has not ended was cut off, unless it is at work here: it must not be sent again.
        One that has ended left its outcome: its end may not have reached the scheduler.
        """
        return await self._prompts.newest(run_id)

    async def ended(self, run_id: str, key: str, outcome: bytes = b"") -> None:
        """Note that a prompt ended, and whatever its run needs to end the same way once more."""
        await self._prompts.end(run_id, key, outcome, self._clock.now_us())

    async def troubled(self, session_id: str, error: ServiceError) -> None:
        """Note why the last turn of a session failed. The session lives on."""
        trouble = trouble_of(error)
        await self._change(session_id, lambda stored: rules.troubled(stored, trouble))

    async def refused(self, session_id: str, error: ServiceError) -> None:
        """Note why a session was not even tried to be opened: the end of one that never was."""
        trouble, now_us = trouble_of(error), self._clock.now_us()
        await self._change(session_id, lambda stored: rules.not_opened(stored, trouble, now_us))

    # For people and other services

    async def configure(self, session_id: str, changes: Changes) -> Session:
        """Change settings; with a turn at work they count from the next one.

        Raises `AcpSessionNotFound`, `InvalidField` for what the harness does not offer,
        `AcpCwdNotAllowed`, and `AcpSessionInitFailed`: with `not_ready` for what is not known
        before the session opened, with `permission_mode` when the harness has no mode that fits.
        """
        if changes.cwd is not None:
            cwd = await directories.resolve(changes.cwd, self._roots, "settings.cwd")
            changes = replace(changes, cwd=str(cwd))
        before = await self.find(session_id)
        if not before.state.open:
            raise not_found(session_id, "the ACP session is closed")
        if before.opening is None and (changes.harness_mode or changes.model or changes.options):
            raise not_ready(before)
        if wrong := settings.problem(before, changes):
            raise invalid_field(*wrong)
        now_us = self._clock.now_us()
        await self._change(session_id, lambda stored: settings.configured(stored, changes, now_us))
        try:
            await self._processes.adapt(session_id)
        except (InvalidField, AcpSessionInitFailed):
            await self._change(session_id, lambda stored: settings.restored(stored, before))
            raise
        except ServiceError as error:
            # The process is in trouble, not the settings: the next turn starts another with them.
            _log.warning("settings wait for the next turn", reason=error.reason)
        return await self.find(session_id)

    async def cancel_turn(self, session_id: str, reason: str) -> str:
        """Ask the run at work to stop; returns its id, empty when none is."""
        session = await self.find(session_id)
        if session.state.ended or not session.run_id:
            return ""
        return session.run_id if await self._cancel(session.run_id, reason) else ""

    async def close(self, session_id: str) -> Session:
        """End a session: its run is cancelled, its process stopped with all that it started.

        An ended one stays as it is. Not to be called within `busy`.
        """
        await self.find(session_id)
        return await self._closed(self._processes.place(session_id), rules.closing)

    def give_up(self, session_id: str) -> None:
        """Begin to end a session whose only run was cancelled, and do not wait for it."""
        place = self._processes.place(session_id)
        if place.closing is None:
            self._begin_closing(place, rules.closing)

    async def close_if_idle(self, session_id: str, idle_us: int) -> Session:
        """End a session, unless it did something within so long."""
        now_us = self._clock.now_us()

        def rule(stored: Session) -> Session:
            return rules.closing(stored) if idle_too_long(stored, idle_us, now_us) else stored

        return await self._closed(self._processes.place(session_id), rule)

    async def _closed(self, place: Place, rule: Callable[[Session], Session]) -> Session:
        # Begun, it goes on to its end, whoever asked for it.
        return await asyncio.shield(place.closing or self._begin_closing(place, rule))

    def _begin_closing(
        self, place: Place, rule: Callable[[Session], Session]
    ) -> asyncio.Task[Session]:
        closing = deadline.spawn(self._close(place, rule), name=f"close {place.session_id}")
        place.closing = closing

        def ended(task: asyncio.Task[Session]) -> None:
            place.closing = None
            self._processes.leave(place)
            error = None if task.cancelled() else task.exception()
            if error is not None:
                # What is left of it the reaper finds.
                _log.warning("closing failed", acp_session_id=place.session_id, exc_info=error)

        closing.add_done_callback(ended)
        return closing

    async def _close(self, place: Place, rule: Callable[[Session], Session]) -> Session:
        session = await self._change(place.session_id, rule)
        if session.state is not State.CLOSING:
            return session
        if place.opening is not None:
            place.opening.cancel()
            await asyncio.wait([place.opening])
        if session.run_id:
            try:
                await self._cancel(session.run_id, "the ACP session was closed")
            except ServiceError as error:
                _log.warning("run of a closed session not cancelled", reason=error.reason)
        if place.turn.used:
            await self._turn_over(place)
        async with place.door:
            await self._processes.stop(place)
        now_us = self._clock.now_us()
        return await self._change(place.session_id, lambda stored: rules.closed(stored, now_us))

    async def _turn_over(self, place: Place) -> None:
        """Give the turn at work the time that a cancelled one has, no more."""
        try:
            async with asyncio.timeout(self._cancel_seconds + LEARN_SECONDS), place.turn:
                pass
        except TimeoutError:
            _log.warning("a turn does not end", acp_session_id=place.session_id)

    async def _cancel(self, run_id: str, reason: str) -> bool:
        request = sched_pb.CancelRunRequest(run_id=run_id, reason=reason[:256])
        try:
            await client.call(
                self._scheduler.CancelRun(request, timeout=CANCEL_CALL_SECONDS),
                service="scheduler",
            )
        except RunNotFound:
            return False
        return True

    async def _change(self, session_id: str, rule: Callable[[Session], Session]) -> Session:
        session = await self._store.change(session_id, rule)
        live = self._processes.live(session_id)
        if live is not None:
            live.session = session
        return session


def not_ready(session: Session) -> AcpSessionInitFailed:
    """Build the error for what needs a session that has opened."""
    return AcpSessionInitFailed(
        "the session is still being opened; wait for the ready message",
        metadata={"harnessId": session.spec.harness_id, "cause": "not_ready", "lastWords": ""},
    )
