"""Asks the harness service which coding agents there are.

What it said is good for a few seconds: a batch of spawns asks once, and what is installed meanwhile
is seen soon. When it does not answer, the configuration alone decides what is refused at once, and
the rest is found out where the harness is started.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_svc.domain.harnesses import Harness, Harnesses
from conveyor.acp.v1 import acp_service_pb2 as acp_pb
from svckit.clock import Clock
from svckit.errors import AcpDisabled, ServiceError
from svckit.grpc.client import call
from svckit.logging import get_logger
from svckit.settings_model import AcpSettings

if TYPE_CHECKING:
    from conveyor.acp.v1.acp_service_pb2_grpc import AcpServiceAsyncStub

FRESH_SECONDS = 5.0
ASK_SECONDS = 3.0
PAGE = 200

_log = get_logger("agent.harnesses")


class HarnessList:
    """The coding agents that runs may start."""

    def __init__(self, stub: AcpServiceAsyncStub, settings: AcpSettings, clock: Clock) -> None:
        self.settings = settings
        self._stub = stub
        self._clock = clock
        self._known: Harnesses | None = None
        self._known_us = 0

    async def known(self) -> Harnesses:
        """Return what is allowed and installed, as far as that can be told now."""
        if not self.settings.enabled:
            return Harnesses(enabled=False)
        now_us = self._clock.now_us()
        if self._known is None or now_us - self._known_us > FRESH_SECONDS * 1_000_000:
            try:
                self._known, self._known_us = await self._ask(), now_us
            except AcpDisabled:
                return Harnesses(enabled=False)
            except ServiceError as err:
                _log.warning("harnesses not listed", reason=err.reason)
                return self._configured()
        return self._known

    async def _ask(self) -> Harnesses:
        found: list[Harness] = []
        request = acp_pb.ListHarnessesRequest(page_size=PAGE)
        while True:
            page = await call(self._stub.ListHarnesses(request, timeout=ASK_SECONDS), service="acp")
            found += [
                Harness(h.harness_id, h.display_name, h.installed, h.command, h.install_hint)
                for h in page.harnesses
                if h.allowed
            ]
            if not page.next_page_token:
                return Harnesses(found, default_id=self.settings.default_harness)
            request.page_token = page.next_page_token

    def _configured(self) -> Harnesses:
        names = self.settings.allowed_harnesses or tuple(self.settings.harness)
        return Harnesses(
            [Harness(name, name) for name in names],
            complete=bool(self.settings.allowed_harnesses),
            default_id=self.settings.default_harness,
        )
