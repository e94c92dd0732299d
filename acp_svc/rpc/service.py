"""`AcpService`: harnesses and sessions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from acp_svc import machine
from acp_svc.convert import changes_from_proto, session_to_proto, states
from acp_svc.doctor import Doctor
from acp_svc.domain import preflight
from acp_svc.domain.catalog import Catalog
from acp_svc.domain.registry import Harness
from acp_svc.rpc import convert
from acp_svc.sessions import Sessions
from acp_svc.store.sessions import UNENDED, Chosen
from conveyor.acp.v1 import acp_service_pb2 as acp_pb
from conveyor.acp.v1 import acp_service_pb2_grpc as acp_grpc
from svckit import paging
from svckit.clock import Clock
from svckit.errors import AcpDisabled, AcpHarnessNotFound, invalid_field

DEFAULT_PAGE, LARGEST_PAGE = 50, 500
LONGEST_REASON = 256

FULL_NAME = "conveyor.acp.v1.AcpService"


class AcpServicer(acp_grpc.AcpServiceServicer):
    """Shows and examines harnesses, makes, shows, changes and closes sessions."""

    def __init__(
        self,
        catalog: Catalog,
        sessions: Sessions,
        doctor: Doctor,
        *,
        enabled: bool,
        clock: Clock,
    ) -> None:
        self._catalog = catalog
        self._sessions = sessions
        self._doctor = doctor
        self._enabled = enabled
        self._clock = clock

    async def Doctor(self, request: acp_pb.DoctorRequest, context: Any) -> acp_pb.DoctorResponse:
        """Examine one harness, or the default one, or all that are allowed."""
        chosen = self._chosen(request.harness_id)
        wanted = (request.harness_id,) if request.harness_id else self._catalog.wanted()
        made = await self._doctor.examine(chosen, wanted)
        return acp_pb.DoctorResponse(report=convert.report(made, self._clock.now_us()))

    def _chosen(self, harness_id: str) -> Sequence[Harness]:
        if not harness_id:
            return self._catalog.to_examine()
        # Examining is allowed also while ACP is off: it says so itself.
        chosen = preflight.choose_harness(self._catalog, True, harness_id)
        if isinstance(chosen, preflight.Refusal):
            raise AcpHarnessNotFound(chosen.message, metadata=chosen.metadata)
        return (chosen,)

    async def ListHarnesses(
        self, request: acp_pb.ListHarnessesRequest, context: Any
    ) -> acp_pb.ListHarnessesResponse:
        """List the registry and what the configuration adds, by id."""
        self._refuse_when_disabled()
        size = _size(request.page_size)
        after = paging.decode(request.page_token, {})
        known = sorted(self._catalog, key=lambda harness: harness.harness_id)
        rest = [h for h in known if after is None or h.harness_id > str(after[0])]
        page, more = rest[:size], len(rest) > size
        system = machine.this_system()
        return acp_pb.ListHarnessesResponse(
            harnesses=[
                convert.harness(h, allowed=h.harness_id in self._catalog.allowed_ids, system=system)
                for h in page
            ],
            next_page_token=paging.encode((page[-1].harness_id,), {}) if more else "",
        )

    async def SpawnSession(
        self, request: acp_pb.SpawnSessionRequest, context: Any
    ) -> acp_pb.SpawnSessionResponse:
        """Make a session, and open it unless a run does."""
        self._refuse_when_disabled()
        spawn = self._sessions.create if request.return_starting else self._sessions.spawn
        session = await spawn(request.spec, request_id=request.request_id)
        return acp_pb.SpawnSessionResponse(session=session_to_proto(session))

    async def GetSession(
        self, request: acp_pb.GetSessionRequest, context: Any
    ) -> acp_pb.GetSessionResponse:
        """Show one session, also an ended one until retention."""
        session = await self._sessions.find(self._id(request.acp_session_id))
        return acp_pb.GetSessionResponse(session=session_to_proto(session))

    async def ListSessions(
        self, request: acp_pb.ListSessionsRequest, context: Any
    ) -> acp_pb.ListSessionsResponse:
        """List sessions, newest first."""
        self._refuse_when_disabled()
        size = _size(request.page_size)
        given = request.filter
        chosen = Chosen(
            states(given.states) or UNENDED,
            given.harness_id,
            given.customer_key,
            given.parent_session_key,
            given.session_key,
        )
        filters: paging.Filters = {
            "states": sorted(state.value for state in chosen.states),
            "harness": chosen.harness_id,
            "customer": chosen.customer_key,
            "parent": chosen.parent_session_key,
            "lane": chosen.session_key,
        }
        after = paging.decode(request.page_token, filters)
        found = await self._sessions.page(
            chosen, before="" if after is None else str(after[0]), limit=size + 1
        )
        shown, more = found[:size], len(found) > size
        return acp_pb.ListSessionsResponse(
            sessions=map(session_to_proto, shown),
            next_page_token=paging.encode((shown[-1].session_id,), filters) if more else "",
        )

    async def ConfigureSession(
        self, request: acp_pb.ConfigureSessionRequest, context: Any
    ) -> acp_pb.ConfigureSessionResponse:
        """Change settings of a session."""
        session_id = self._id(request.acp_session_id)
        session = await self._sessions.configure(session_id, changes_from_proto(request.settings))
        return acp_pb.ConfigureSessionResponse(session=session_to_proto(session))

    async def CancelTurn(
        self, request: acp_pb.CancelTurnRequest, context: Any
    ) -> acp_pb.CancelTurnResponse:
        """Cancel the run at work."""
        if len(request.reason) > LONGEST_REASON:
            raise invalid_field("reason", f"must have at most {LONGEST_REASON} characters")
        session_id = self._id(request.acp_session_id)
        return acp_pb.CancelTurnResponse(
            run_id=await self._sessions.cancel_turn(session_id, request.reason)
        )

    async def CloseSession(
        self, request: acp_pb.CloseSessionRequest, context: Any
    ) -> acp_pb.CloseSessionResponse:
        """Close a session and leave nothing of it behind."""
        session = await self._sessions.close(self._id(request.acp_session_id))
        return acp_pb.CloseSessionResponse(session=session_to_proto(session))

    def _id(self, session_id: str) -> str:
        self._refuse_when_disabled()
        if not session_id:
            raise invalid_field("acp_session_id", "is required")
        return session_id

    def _refuse_when_disabled(self) -> None:
        if not self._enabled:
            raise AcpDisabled(preflight.DISABLED.message)


def _size(page_size: int) -> int:
    if page_size < 0:
        raise invalid_field("page_size", "must not be negative")
    return min(page_size or DEFAULT_PAGE, LARGEST_PAGE)
