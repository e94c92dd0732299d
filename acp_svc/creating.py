"""Makes sessions: what is asked for is checked as far as it can be without a process, then stored.

A hopeless spawn is refused here, at once, with the reason of what is missing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from acp_svc import directories, machine
from acp_svc.convert import Defaults, body_hash, spec_from_proto
from acp_svc.domain import preflight
from acp_svc.domain.catalog import Catalog
from acp_svc.domain.install import install_command
from acp_svc.domain.permissions import PermissionMode
from acp_svc.domain.preflight import Refusal
from acp_svc.domain.registry import Harness
from acp_svc.domain.session import Session, Spec
from acp_svc.store.sessions import SessionStore
from conveyor.acp.v1 import session_pb2 as pb
from svckit.clock import Clock
from svckit.errors import BY_REASON, ServiceError, invalid_field
from svckit.ids import new_ulid
from svckit.settings_model import AcpSettings


class Creator:
    """Makes sessions in the state `STARTING`. Starts nothing."""

    def __init__(
        self,
        store: SessionStore,
        catalog: Catalog,
        settings: AcpSettings,
        clock: Clock,
        check_room: Callable[[], None],
    ) -> None:
        self._store = store
        self._catalog = catalog
        self._settings = settings
        self._clock = clock
        self._check_room = check_room
        self._defaults = Defaults(
            PermissionMode(settings.permission_mode),
            settings.permission_timeout_seconds,
            settings.turn_seconds,
        )

    async def create(self, given: pb.AcpSessionSpec, *, request_id: str, deferred: bool) -> Session:
        """Store a session, or return the one that the same request made before, as it is now.

        `deferred`: a run opens it. Raises `InvalidField`, `RequestIdReused`, `AcpDisabled`,
        `AcpHarnessNotFound`, `AcpBackendMissing`, `AcpCwdNotAllowed`, and `AcpLimitReached` where
        the configuration says that a spawn does not wait.
        """
        if not 1 <= len(request_id) <= 128:
            raise invalid_field("request_id", "must have 1 to 128 characters")
        if "\0" in request_id:
            raise invalid_field("request_id", "holds a zero byte")
        if not self._settings.enabled:
            raise refused(preflight.DISABLED)
        asked = spec_from_proto(given, self._defaults)
        fingerprint = body_hash(given)
        made = await self._store.made_by(request_id, fingerprint)
        if made is not None:
            return made
        spec = await self._checked(asked)
        if self._settings.when_full == "reject":
            self._check_room()
        session_id = new_ulid()
        now_us = self._clock.now_us()
        if not spec.session_key:
            key = f"agent:{spec.harness_id}:acp:{session_id}"
            spec = msgspec.structs.replace(spec, session_key=key)
        session = Session(
            session_id=session_id, spec=spec, create_us=now_us, active_us=now_us, deferred=deferred
        )
        return await self._store.add(session, request_id, fingerprint)

    async def _checked(self, asked: Spec) -> Spec:
        harness = preflight.choose_harness(self._catalog, True, asked.harness_id)
        if isinstance(harness, Refusal):
            raise refused(harness)
        await self._check_installed(harness)
        cwd = await directories.resolve(asked.cwd, self._settings.workspace_roots, "spec.cwd")
        allowed = {*self._settings.env_names, *harness.env_names}
        place = preflight.first_secret(asked.env_names, allowed)
        if place is not None:
            raise invalid_field(
                f"spec.env_names[{place}]",
                "is not in acp.env_names, nor among the env_names of the harness",
            )
        return msgspec.structs.replace(asked, harness_id=harness.harness_id, cwd=str(cwd))

    async def _check_installed(self, harness: Harness) -> None:
        if await asyncio.to_thread(machine.find_program, harness.program) is None:
            install = install_command(harness.installer, machine.this_system())
            raise refused(preflight.missing_backend(harness, install))


def refused(refusal: Refusal) -> ServiceError:
    """Return a refusal as the error that is raised."""
    return BY_REASON[refusal.reason](refusal.message, metadata=refusal.metadata)
