"""Turns a stored session into an order for a harness."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from acp_svc import directories
from acp_svc.domain import preflight
from acp_svc.domain.catalog import Catalog
from acp_svc.domain.registry import Harness
from acp_svc.domain.session import Session
from acp_svc.harness.connection import Connection
from acp_svc.harness.types import Deadlines, Order
from svckit.errors import AcpHarnessNotFound
from svckit.settings_model import AcpSettings

Connect: TypeAlias = Callable[[Order, Deadlines, str], Awaitable[Connection]]
"""As `Connection.open`."""


def deadlines_of(settings: AcpSettings, turn_seconds: float = 0.0) -> Deadlines:
    """Return the deadlines of the configuration, with a session's own time for a turn if given."""
    return Deadlines(
        handshake=settings.handshake_seconds,
        turn=turn_seconds or settings.turn_seconds,
        quiet=settings.quiet_seconds,
        cancel=settings.cancel_seconds,
    )


class Opener:
    """Opens sessions as they are stored. Knows no database."""

    def __init__(
        self,
        catalog: Catalog,
        settings: AcpSettings,
        owner: str,
        connect: Connect = Connection.open,
    ) -> None:
        self._catalog = catalog
        self._settings = settings
        self._owner = owner
        self._connect = connect

    @property
    def sandbox_on(self) -> bool:
        """Whether the configuration wants sandboxes."""
        return self._settings.sandbox != "off"

    async def open(self, session: Session) -> Connection:
        """Start the process and open the session in it.

        Raises what `Connection.open` does, and `AcpHarnessNotFound` and `AcpCwdNotAllowed` when the
        configuration or the directory has changed since the session was made.
        """
        harness = preflight.choose_harness(self._catalog, True, session.spec.harness_id)
        if isinstance(harness, preflight.Refusal):
            raise AcpHarnessNotFound(harness.message, metadata=harness.metadata)
        cwd = await directories.check_still(session.spec.cwd, self._settings.workspace_roots)
        upstream_id, must_resume = earlier(session)
        order = Order(
            session_id=session.session_id,
            harness=harness,
            cwd=cwd,
            permission_mode=session.spec.permission_mode,
            upstream_id=upstream_id,
            must_resume=must_resume,
            model=session.spec.model,
            harness_mode=session.wanted_mode,
            options=session.wanted_options,
            env_names=variables(self._settings, harness, session),
            sandbox=self._settings.sandbox,
        )
        limits = deadlines_of(self._settings, session.spec.turn_timeout_seconds)
        connection = await self._connect(order, limits, self._owner)
        try:
            # Whoever can write there may have put a link in its place while the process started.
            await directories.check_still(session.spec.cwd, self._settings.workspace_roots)
        except BaseException:
            await connection.stop()
            raise
        return connection


def earlier(session: Session) -> tuple[str, bool]:
    """Return the harness's session to open again, and whether nothing else will do.

    One that was never told anything is not asked for: many harnesses have not even stored it.
    """
    if session.opening is None and session.spec.resume_id:
        return session.spec.resume_id, True
    return (session.upstream_id, False) if session.prompted else ("", False)


def variables(settings: AcpSettings, harness: Harness, session: Session) -> tuple[str, ...]:
    """Return the names of our variables that the process may see.

    What the configuration allowed when the session was made it may not allow any more.
    """
    asked = [name for name in session.spec.env_names if name in settings.env_names]
    return tuple(dict.fromkeys((*harness.env_names, *asked)))
