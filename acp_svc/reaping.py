"""Ends what nobody ends: idle sessions, abandoned spawns, leftovers of an earlier life, old rows.

It looks again and again, not only at the start: a session is in use because something was done with
it lately, and for no other reason.
"""

from __future__ import annotations

from acp_svc.domain import session as rules
from acp_svc.domain.lifetime import abandoned
from acp_svc.domain.session import Session, State, Trouble
from acp_svc.processes import Processes
from acp_svc.sessions import Sessions
from acp_svc.store.prompts import PromptStore
from acp_svc.store.sessions import SessionStore
from svckit.clock import Clock
from svckit.errors import ServiceError
from svckit.families import FamilyRecord
from svckit.housekeeping import runs_kept_since
from svckit.logging import get_logger
from svckit.programs import clear_up, look_around
from svckit.settings_model import RetentionSettings

MOST_SECONDS = 15.0
LEAST_SECONDS = 0.2
FAMILY_SECONDS = 2.0
BATCH = 200
_HELD = (State.READY, State.BUSY, State.ASKING)

_log = get_logger("acp.reaper")


class Reaper:
    """Looks after the sessions of one worker."""

    def __init__(
        self,
        sessions: Sessions,
        processes: Processes,
        store: SessionStore,
        prompts: PromptStore,
        clock: Clock,
        *,
        worker: str,
        owner: str,
        idle_minutes: float,
        keep: RetentionSettings,
    ) -> None:
        self._sessions = sessions
        self._processes = processes
        self._store = store
        self._prompts = prompts
        self._clock = clock
        self._worker = worker
        self._owner = owner
        self._families = FamilyRecord(owner)
        self._idle_us = round(idle_minutes * 60 * 1_000_000)
        self._keep = keep

    async def recover(self) -> None:
        """Kill what an earlier life of the service left, and say so of its sessions.

        Before anything else is done with sessions.
        """
        if killed := await clear_up(self._owner, self._families):
            _log.warning("killed what an earlier life left behind", processes=killed)
        now_us = self._clock.now_us()
        changed = await self._store.change_all(
            self._worker, lambda session: rules.after_restart(session, now_us)
        )
        if changed:
            _log.info("sessions of an earlier life", parked_or_closed=changed)

    async def run(self) -> None:
        """Look until cancelled."""
        pause = min(MOST_SECONDS, max(LEAST_SECONDS, self._idle_us / 10_000_000))
        while True:
            await self._clock.sleep(pause)
            try:
                await self.look()
            except ServiceError as error:
                _log.warning("the reaper looks again later", reason=error.reason)

    async def watch_families(self) -> None:
        """Keep count of what harnesses start, until cancelled: it ends with them.

        What leaves its group and clears its environment is known by its parent, while that lives.
        """
        while True:
            await self._clock.sleep(FAMILY_SECONDS)
            await look_around(self._families)

    async def look(self) -> None:
        """End what is due, and put right what a store that was away could not take."""
        now_us = self._clock.now_us()
        still = (State.STARTING, State.READY, State.PARKED)
        for session in await self._store.still_since(still, now_us - self._idle_us):
            if not self._processes.opens(session.session_id):
                _log.info("closing an idle session", acp_session_id=session.session_id)
                await self._sessions.close_if_idle(session.session_id, self._idle_us)
        for session in await self._store.still_since((State.STARTING,), now_us):
            if abandoned(session, now_us) and not self._processes.opens(session.session_id):
                await self._give_up(session, now_us)
        for session in await self._store.still_since((State.CLOSING,), now_us):
            if session.worker in ("", self._worker):
                await self._sessions.close(session.session_id)
        for session in await self._store.still_since(_HELD, now_us):
            # One whose process could not be started again for its turn has no worker.
            if session.worker in ("", self._worker):
                await self._put_right(session)

    async def _give_up(self, session: Session, now_us: int) -> None:
        trouble = Trouble(
            "ACP_SESSION_INIT_FAILED",
            "the service stopped while it opened the session, and nobody asked again",
            {"harnessId": session.spec.harness_id, "cause": "crashed", "lastWords": ""},
        )
        await self._store.change(
            session.session_id, lambda stored: rules.not_opened(stored, trouble, now_us)
        )

    async def _put_right(self, session: Session) -> None:
        """The store did not take the end of a turn or of a process: say it now."""
        place = self._processes.place(session.session_id)
        if not place.quiet:
            return
        has_process = place.live is not None
        now_us = self._clock.now_us()

        def rule(stored: Session) -> Session:
            if stored.run_id:
                stored = rules.rested(stored, has_process=has_process, now_us=now_us)
            return stored if has_process else rules.parked(stored)

        await self._store.change(session.session_id, rule)
        self._processes.leave(place)

    async def remove_old(self, now_us: int) -> int:
        """Forget ended sessions, request ids and prompts as `[retention]` says; how many rows."""
        known_us = now_us - round(self._keep.request_ids_hours * 3600 * 1_000_000)
        removed = await self._store.forget_requests(known_us)
        before_us = runs_kept_since(self._keep, now_us)
        # A run that may still be leased must find its prompt: it is kept as long as runs are.
        removed += await self._prompts.forget(before_us)
        while went := await self._store.forget_ended(before_us, BATCH):
            removed += went
        return removed
