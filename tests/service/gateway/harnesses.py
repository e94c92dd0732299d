"""An ACP service and the worker of its queue, for the gateway: real contract, no harness."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from conveyor.acp.v1 import acp_service_pb2 as acp
from conveyor.acp.v1 import session_pb2, task_pb2
from svckit.errors import AcpHarnessNotFound, AcpSessionNotFound, Internal
from svckit.testing import ScriptedServicer
from svckit.worker import Fail, LeasedTurn, Outcome, Worker
from tests.service.gateway.suite import Suite, Turn

STARTING = session_pb2.ACP_SESSION_STATE_STARTING
READY = session_pb2.ACP_SESSION_STATE_READY
CLOSED = session_pb2.ACP_SESSION_STATE_CLOSED
FAILED = session_pb2.ACP_SESSION_STATE_FAILED
_OVER = (CLOSED, FAILED)


class Harnesses:
    """Keeps ACP sessions as the real service does, and answers their prompts.

    A prompt `ask TITLE` asks people; any other is answered with the harness's name and its text.
    """

    def __init__(self) -> None:
        self.sessions: dict[str, session_pb2.AcpSession] = {}
        self.prompts: list[tuple[str, str]] = []
        self.changes: list[session_pb2.AcpSessionSettings] = []
        self.cancelled: list[str] = []
        self.down = False
        self._by_request: dict[str, str] = {}
        self.gates: dict[str, asyncio.Event] = {}

    def serve(self, servicer: ScriptedServicer) -> None:
        """Answer the calls of `AcpService`."""
        for answer in (
            self.SpawnSession,
            self.GetSession,
            self.ListSessions,
            self.ConfigureSession,
            self.CancelTurn,
            self.CloseSession,
        ):
            servicer.always(answer.__name__, answer)

    def SpawnSession(self, request: acp.SpawnSessionRequest) -> Any:
        known = self._by_request.get(request.request_id)
        if known is None:
            if request.spec.harness_id not in ("", "claude", "codex"):
                return AcpHarnessNotFound("no such harness")
            known = f"01ACP{len(self.sessions):021d}"
            self._by_request[request.request_id] = known
            session = session_pb2.AcpSession(
                acp_session_id=known, spec=request.spec, worker="acp-0", state=READY
            )
            if request.return_starting:
                session.state = STARTING
            session.spec.harness_id = session.spec.harness_id or "claude"
            if not session.spec.session_key:
                session.spec.session_key = f"agent:{session.spec.harness_id}:acp:{known}"
            self.sessions[known] = session
        return acp.SpawnSessionResponse(session=self.sessions[known])

    def GetSession(self, request: acp.GetSessionRequest) -> Any:
        if self.down:
            return Internal("nobody can say")
        session = self.sessions.get(request.acp_session_id)
        if session is None:
            return AcpSessionNotFound("there is no such ACP session")
        return acp.GetSessionResponse(session=session)

    def ListSessions(self, request: acp.ListSessionsRequest) -> Any:
        wanted = request.filter
        found = [
            session
            for session in self.sessions.values()
            if (session.state in wanted.states if wanted.states else session.state not in _OVER)
            and wanted.customer_key in ("", session.spec.customer_key)
            and wanted.parent_session_key in ("", session.spec.parent_session_key)
        ]
        return acp.ListSessionsResponse(sessions=reversed(found))

    def ConfigureSession(self, request: acp.ConfigureSessionRequest) -> Any:
        self.changes.append(request.settings)
        session = self.sessions[request.acp_session_id]
        if request.settings.permission_mode:
            session.spec.permission_mode = request.settings.permission_mode
        return acp.ConfigureSessionResponse(session=session)

    def CancelTurn(self, request: acp.CancelTurnRequest) -> Any:
        self.cancelled.append(request.acp_session_id)
        return acp.CancelTurnResponse(run_id="R")

    def CloseSession(self, request: acp.CloseSessionRequest) -> Any:
        session = self.sessions[request.acp_session_id]
        session.state = CLOSED
        return acp.CloseSessionResponse(session=session)

    @asynccontextmanager
    async def working(self, around: Suite) -> AsyncIterator[None]:
        """Work on the runs of queue `acp` for the block."""

        async def handle(leased: LeasedTurn) -> Outcome:
            return await self._turn(Turn(leased, around.agent.scheduler, around.agent.log))

        worker = Worker(
            around.scheduler.channel,
            queue="acp",
            name="acp-0",
            slots=4,
            handler=handle,
            poll_wait=1.0,
            extend_interval=0.1,
            drain_grace=0.0,
        )
        task = asyncio.create_task(worker.run(), name="worker acp")
        try:
            yield
        finally:
            await worker.drain()
            await asyncio.gather(task, return_exceptions=True)

    async def _turn(self, turn: Turn) -> Outcome:
        task = task_pb2.AcpTask()
        assert turn.run.spec.task.Unpack(task)
        session = self.sessions[task.acp_session_id]
        if session.state in _OVER:
            return Fail(AcpSessionNotFound("this ACP session has ended"), retryable=False)
        if task.open_only:
            session.state = READY
            return turn.reply(f"{session.spec.harness_id} is ready")
        self.prompts.append((task.acp_session_id, turn.text))
        if gate := self.gates.get(turn.text):
            await gate.wait()
        if turn.text.startswith("ask "):
            if turn.first:
                asked = await turn.ask("1.1.0", turn.text.removeprefix("ask "))
                return turn.wait_for_answers([asked])
            [answer] = turn.leased.leased.resumption.answers
            return turn.reply(f"{answer.responder} said {answer.option_id}")
        return turn.reply(f"{session.spec.harness_id}: {turn.text}")
