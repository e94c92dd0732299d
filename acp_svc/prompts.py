"""What happens to a run on queue `acp`.

This release knows harnesses and cannot drive them yet. A leased run is answered at once all the
same, with the reason that matters most to whoever spawned it: what is missing on this machine
first, then that the release cannot do it. Nothing is retried, because nothing would change.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from acp_svc import machine
from acp_svc.domain import preflight
from acp_svc.domain.catalog import Catalog
from acp_svc.domain.install import install_command
from acp_svc.domain.preflight import Refusal
from conveyor.acp.v1 import session_pb2, task_pb2
from svckit.errors import (
    BY_REASON,
    AcpSessionNotFound,
    NotImplementedYet,
    ServiceError,
    invalid_field,
)
from svckit.turn import Fail, LeasedTurn, Outcome


class Prompts:
    """The handler of the worker."""

    def __init__(
        self, catalog: Catalog, *, enabled: bool, workspace_roots: tuple[str, ...]
    ) -> None:
        self._catalog = catalog
        self._enabled = enabled
        self._roots = workspace_roots

    async def handle(self, turn: LeasedTurn) -> Outcome:
        """Fail the run with its reason, for good."""
        steered = tuple(item.request_id for item in turn.new_steered())
        return Fail(self.refuse(turn), retryable=False, taken=steered)

    def refuse(self, turn: LeasedTurn) -> ServiceError:
        """Return why the run cannot be done here and now."""
        task = task_pb2.AcpTask()
        try:
            unpacked = turn.run.spec.task.Unpack(task)
        except DecodeError:
            unpacked = False
        if not unpacked:
            return invalid_field("spec.task", "must be a conveyor.acp.v1.AcpTask")
        match task.WhichOneof("target"):
            case "new_session":
                refusal = self._preflight(task.new_session)
                return _as_error(refusal) if refusal else _cannot_drive()
            case "acp_session_id":
                if not self._enabled:
                    return _as_error(preflight.DISABLED)
                return AcpSessionNotFound(
                    "there is no such ACP session",
                    metadata={"acpSessionId": task.acp_session_id},
                )
            case _:
                return invalid_field("spec.task.target", "is required")

    def _preflight(self, spec: session_pb2.AcpSessionSpec) -> Refusal | None:
        harness = preflight.choose_harness(self._catalog, self._enabled, spec.harness_id)
        if isinstance(harness, Refusal):
            return harness
        if machine.find_program(harness.program) is None:
            install = install_command(harness.installer, machine.this_system())
            return preflight.missing_backend(harness, install)
        if spec.cwd:
            roots = [machine.resolve(root) for root in self._roots]
            return preflight.directory_refusal(spec.cwd, machine.resolve(spec.cwd), roots)
        return None


def _as_error(refusal: Refusal) -> ServiceError:
    return BY_REASON[refusal.reason](refusal.message, metadata=refusal.metadata)


def _cannot_drive() -> NotImplementedYet:
    return NotImplementedYet(
        "driving a harness is not in this release; the harness is installed and the request is "
        "well formed",
        metadata={"feature": "acp.prompt"},
    )
