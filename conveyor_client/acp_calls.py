"""The calls of `GatewayService` about harnesses and ACP sessions, as typed methods."""

from __future__ import annotations

from conveyor.acp.v1 import acp_service_pb2 as acp_pb
from conveyor.acp.v1 import doctor_pb2 as doctor_pb
from conveyor.acp.v1 import session_pb2 as acp_session_pb
from conveyor.common.v1 import content_pb2 as content_pb
from conveyor.gateway.v1 import gateway_service_pb2 as gateway_pb
from conveyor.scheduler.v1 import lane_pb2 as lane_pb
from conveyor_client.connection import Connection
from conveyor_client.messages import as_message
from svckit.ids import new_ulid


class AcpCalls:
    """Calls about external coding agents that answer once."""

    def __init__(self, to: Connection) -> None:
        self._to = to

    # Harnesses

    async def harnesses(
        self, *, page_size: int = 0, page_token: str = ""
    ) -> acp_pb.ListHarnessesResponse:
        """List the harnesses of the registry and the configuration."""
        return await self._to.call(
            lambda stub: stub.ListHarnesses,
            acp_pb.ListHarnessesRequest(page_size=page_size, page_token=page_token),
        )

    async def doctor(self, harness_id: str = "") -> doctor_pb.DoctorReport:
        """Examine a harness, or the default one, or all that are allowed."""
        answer = await self._to.call(
            lambda stub: stub.AcpDoctor,
            gateway_pb.AcpDoctorRequest(harness_id=harness_id),
            repeat=False,
        )
        return answer.report

    # ACP sessions

    async def acp_spawn(
        self,
        spec: acp_session_pb.AcpSessionSpec | None = None,
        *,
        bind_session_key: str = "",
        message: str | content_pb.Message | None = None,
        return_starting: bool = False,
        request_id: str | None = None,
    ) -> gateway_pb.SpawnAcpSessionResponse:
        """Open an ACP session and, if named, let it answer a conversation.

        Returns once it is ready; with `return_starting` once it is stored, and a run opens it.
        `message` is its first prompt. `request_id` makes repeating harmless.
        """
        return await self._to.call(
            lambda stub: stub.SpawnAcpSession,
            gateway_pb.SpawnAcpSessionRequest(
                spec=spec,
                bind_session_key=bind_session_key,
                message=None if message is None else as_message(message),
                return_starting=return_starting,
                request_id=request_id or new_ulid(),
            ),
        )

    async def acp_sessions(
        self,
        filter: acp_session_pb.AcpSessionFilter | None = None,
        *,
        page_size: int = 0,
        page_token: str = "",
    ) -> gateway_pb.ListAcpSessionsResponse:
        """List ACP sessions, newest first; those that have not ended unless `filter` says more."""
        return await self._to.call(
            lambda stub: stub.ListAcpSessions,
            gateway_pb.ListAcpSessionsRequest(
                filter=filter, page_size=page_size, page_token=page_token
            ),
        )

    async def acp_session(self, acp_session_id: str) -> gateway_pb.GetAcpSessionResponse:
        """Return an ACP session and the token to watch its lane from now on."""
        return await self._to.call(
            lambda stub: stub.GetAcpSession,
            gateway_pb.GetAcpSessionRequest(acp_session_id=acp_session_id),
        )

    async def acp_prompt(
        self,
        acp_session_id: str,
        message: str | content_pb.Message,
        *,
        queue_mode: lane_pb.QueueMode.ValueType = lane_pb.QUEUE_MODE_UNSPECIFIED,
        request_id: str | None = None,
    ) -> gateway_pb.PromptAcpSessionResponse:
        """Queue a prompt for an ACP session; `acp_work` also follows it.

        Raises `AcpSessionInitFailed` while the session is being opened.
        """
        return await self._to.call(
            lambda stub: stub.PromptAcpSession,
            gateway_pb.PromptAcpSessionRequest(
                acp_session_id=acp_session_id,
                message=as_message(message),
                queue_mode=queue_mode,
                request_id=request_id or new_ulid(),
            ),
        )

    async def acp_configure(
        self, acp_session_id: str, settings: acp_session_pb.AcpSessionSettings
    ) -> gateway_pb.ConfigureAcpSessionResponse:
        """Change settings of an open ACP session; takes effect with its next turn."""
        return await self._to.call(
            lambda stub: stub.ConfigureAcpSession,
            gateway_pb.ConfigureAcpSessionRequest(acp_session_id=acp_session_id, settings=settings),
        )

    async def acp_cancel(
        self, acp_session_id: str, *, reason: str = ""
    ) -> gateway_pb.CancelAcpTurnResponse:
        """Stop the turn at work in an ACP session, if any. The session stays."""
        return await self._to.call(
            lambda stub: stub.CancelAcpTurn,
            gateway_pb.CancelAcpTurnRequest(acp_session_id=acp_session_id, reason=reason),
        )

    async def acp_close(self, acp_session_id: str) -> gateway_pb.CloseAcpSessionResponse:
        """Close an ACP session with its process."""
        return await self._to.call(
            lambda stub: stub.CloseAcpSession,
            gateway_pb.CloseAcpSessionRequest(acp_session_id=acp_session_id),
        )
