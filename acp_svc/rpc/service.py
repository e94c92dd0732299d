"""`AcpService`: what this release has of it, and a clear refusal for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from acp_svc import machine
from acp_svc.doctor import examine
from acp_svc.domain import preflight
from acp_svc.domain.catalog import Catalog
from acp_svc.domain.registry import Harness
from acp_svc.rpc import convert
from conveyor.acp.v1 import acp_service_pb2 as acp_pb
from conveyor.acp.v1 import acp_service_pb2_grpc as acp_grpc
from svckit import paging
from svckit.clock import Clock
from svckit.errors import AcpDisabled, AcpHarnessNotFound, NotImplementedYet, invalid_field

DEFAULT_PAGE, LARGEST_PAGE = 50, 500

FULL_NAME = "conveyor.acp.v1.AcpService"


class AcpServicer(acp_grpc.AcpServiceServicer):
    """Shows and examines harnesses. Sessions are refused with `NotImplementedYet`."""

    def __init__(
        self, catalog: Catalog, *, enabled: bool, workspace_roots: Sequence[str], clock: Clock
    ) -> None:
        self._catalog = catalog
        self._enabled = enabled
        self._roots = tuple(workspace_roots)
        self._clock = clock

    async def Doctor(self, request: acp_pb.DoctorRequest, context: Any) -> acp_pb.DoctorResponse:
        """Examine one harness, or the default one, or all that are allowed."""
        made = await examine(self._enabled, self._chosen(request.harness_id), self._roots)
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
        if request.page_size < 0:
            raise invalid_field("page_size", "must not be negative")
        size = min(request.page_size or DEFAULT_PAGE, LARGEST_PAGE)
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

    async def SpawnSession(self, request: acp_pb.SpawnSessionRequest, context: Any) -> NoReturn:
        """Refused: comes with a later release."""
        self._later("SpawnSession")

    async def GetSession(self, request: acp_pb.GetSessionRequest, context: Any) -> NoReturn:
        """Refused: comes with a later release."""
        self._later("GetSession")

    async def ListSessions(self, request: acp_pb.ListSessionsRequest, context: Any) -> NoReturn:
        """Refused: comes with a later release."""
        self._later("ListSessions")

    async def ConfigureSession(
        self, request: acp_pb.ConfigureSessionRequest, context: Any
    ) -> NoReturn:
        """Refused: comes with a later release."""
        self._later("ConfigureSession")

    async def CancelTurn(self, request: acp_pb.CancelTurnRequest, context: Any) -> NoReturn:
        """Refused: comes with a later release."""
        self._later("CancelTurn")

    async def CloseSession(self, request: acp_pb.CloseSessionRequest, context: Any) -> NoReturn:
        """Refused: comes with a later release."""
        self._later("CloseSession")

    def _refuse_when_disabled(self) -> None:
        if not self._enabled:
            raise AcpDisabled(preflight.DISABLED.message)

    def _later(self, call: str) -> NoReturn:
        self._refuse_when_disabled()
        raise NotImplementedYet(
            f"AcpService.{call} is not in this release: ACP sessions come later",
            metadata={"feature": f"AcpService.{call}"},
        )
