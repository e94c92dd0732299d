"""What the gateway says of itself."""

from __future__ import annotations

from conveyor.gateway.v1 import gateway_service_pb2 as gw
from gateway_svc.auth import Principal, Scope
from svckit.version import __version__


class About:
    """Answers `GetServerInfo`. One per process. `started_us`: microseconds since 1970."""

    def __init__(self, trace_url_template: str, started_us: int) -> None:
        self._info = gw.ServerInfo(version=__version__, trace_url_template=trace_url_template)
        self._info.start_time.FromMicroseconds(started_us)

    def server_info(
        self, request: gw.GetServerInfoRequest, principal: Principal
    ) -> gw.GetServerInfoResponse:
        """Say which release this is, and where its traces are shown."""
        principal.require(Scope.READ)
        return gw.GetServerInfoResponse(server=self._info)
