"""`GatewayService`: translates between the wire and the use cases, and decides nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc.aio

from conveyor.acp.v1 import acp_service_pb2 as acp
from conveyor.agent.v1 import agent_service_pb2 as ag
from conveyor.gateway.v1 import gateway_service_pb2 as gw
from conveyor.gateway.v1.gateway_service_pb2_grpc import GatewayServiceServicer
from conveyor.scheduler.v1 import flow_service_pb2 as fs
from conveyor.scheduler.v1 import scheduler_service_pb2 as ss
from gateway_svc.auth import caller
from gateway_svc.use_cases import UseCases

FULL_NAME = "conveyor.gateway.v1.GatewayService"

Context = grpc.aio.ServicerContext[Any, Any]


class GatewayServicer(GatewayServiceServicer):
    """The only service that clients outside the suite talk to."""

    def __init__(self, use_cases: UseCases) -> None:
        self._do = use_cases

    async def SendMessage(
        self, request: gw.SendMessageRequest, context: Context
    ) -> gw.SendMessageResponse:
        """Queue a message."""
        return await self._do.inbox.send(request, caller())

    async def Chat(
        self, request: gw.ChatRequest, context: Context
    ) -> AsyncIterator[gw.ChatResponse]:
        """Queue a message and stream what answers it."""
        async with aclosing(self._do.chats.chat(request, caller())) as responses:
            async for response in responses:
                yield response

    async def WatchSession(
        self, request: gw.WatchSessionRequest, context: Context
    ) -> AsyncIterator[gw.WatchSessionResponse]:
        """Stream a session."""
        async with aclosing(self._do.sessions.watch(request, caller())) as responses:
            async for response in responses:
                yield response

    async def WatchAnnouncements(
        self, request: gw.WatchAnnouncementsRequest, context: Context
    ) -> AsyncIterator[gw.WatchAnnouncementsResponse]:
        """Stream the ends of child runs."""
        async with aclosing(self._do.announcements.watch(request, caller())) as responses:
            async for response in responses:
                yield response

    async def GetSession(
        self, request: gw.GetSessionRequest, context: Context
    ) -> gw.GetSessionResponse:
        """Return a session."""
        return await self._do.conversations.get(request.session_key, caller())

    async def ListSessions(
        self, request: gw.ListSessionsRequest, context: Context
    ) -> gw.ListSessionsResponse:
        """List sessions."""
        return await self._do.conversations.list(request, caller())

    async def ResetSession(
        self, request: ag.ResetSessionRequest, context: Context
    ) -> ag.ResetSessionResponse:
        """Make a session forget."""
        return await self._do.conversations.reset(request, caller())

    async def ListMessages(
        self, request: ag.ListMessagesRequest, context: Context
    ) -> ag.ListMessagesResponse:
        """List messages of a session."""
        return await self._do.conversations.messages(request, caller())

    async def ListRuns(self, request: ss.ListRunsRequest, context: Context) -> ss.ListRunsResponse:
        """List runs."""
        return await self._do.operations.list_runs(request, caller())

    async def GetRun(self, request: ss.GetRunRequest, context: Context) -> ss.GetRunResponse:
        """Return a run."""
        return await self._do.operations.get_run(request, caller())

    async def ListFlows(
        self, request: fs.ListFlowsRequest, context: Context
    ) -> fs.ListFlowsResponse:
        """List flows."""
        return await self._do.operations.list_flows(request, caller())

    async def GetFlow(self, request: fs.GetFlowRequest, context: Context) -> fs.GetFlowResponse:
        """Return a flow with its tree."""
        return await self._do.operations.get_flow(request, caller())

    async def CancelFlow(
        self, request: fs.CancelFlowRequest, context: Context
    ) -> fs.CancelFlowResponse:
        """Stop every run of a flow."""
        return await self._do.operations.cancel_flow(request, caller())

    async def CancelRun(
        self, request: ss.CancelRunRequest, context: Context
    ) -> ss.CancelRunResponse:
        """Stop a run and what it spawned."""
        return await self._do.operations.cancel_run(request, caller())

    async def SteerRun(self, request: gw.SteerRunRequest, context: Context) -> gw.SteerRunResponse:
        """Give a run a message."""
        return await self._do.operations.steer_run(request, caller())

    async def ListLanes(
        self, request: ss.ListLanesRequest, context: Context
    ) -> ss.ListLanesResponse:
        """List lanes with their use."""
        return await self._do.operations.list_lanes(request, caller())

    async def UpdateLane(
        self, request: ss.UpdateLaneRequest, context: Context
    ) -> ss.UpdateLaneResponse:
        """Change the limit of a global lane."""
        return await self._do.operations.update_lane(request, caller())

    async def ListAgents(
        self, request: ag.ListAgentsRequest, context: Context
    ) -> ag.ListAgentsResponse:
        """List the configured agents."""
        return await self._do.operations.list_agents(request, caller())

    async def ListModels(
        self, request: ag.ListModelsRequest, context: Context
    ) -> ag.ListModelsResponse:
        """List the configured models."""
        return await self._do.operations.list_models(request, caller())

    async def ListHarnesses(
        self, request: acp.ListHarnessesRequest, context: Context
    ) -> acp.ListHarnessesResponse:
        """List the harnesses."""
        return await self._do.operations.list_harnesses(request, caller())

    async def AcpDoctor(
        self, request: gw.AcpDoctorRequest, context: Context
    ) -> gw.AcpDoctorResponse:
        """Examine the harnesses."""
        return await self._do.operations.acp_doctor(request, caller())

    async def ExecuteCommand(
        self, request: gw.ExecuteCommandRequest, context: Context
    ) -> gw.ExecuteCommandResponse:
        """Run a slash command."""
        return await self._do.inbox.execute(request, caller())

    async def ExplainRun(
        self, request: ss.ExplainRunRequest, context: Context
    ) -> ss.ExplainRunResponse:
        """Say why a run is where it is."""
        return await self._do.operations.explain_run(request, caller())

    async def Forecast(self, request: ss.ForecastRequest, context: Context) -> ss.ForecastResponse:
        """Play a load on a virtual clock."""
        return await self._do.operations.forecast(request, caller())

    async def SpawnAcpSession(
        self, request: gw.SpawnAcpSessionRequest, context: Context
    ) -> gw.SpawnAcpSessionResponse:
        """Open an ACP session."""
        return await self._do.harness_sessions.spawn(request, caller())

    async def ListAcpSessions(
        self, request: gw.ListAcpSessionsRequest, context: Context
    ) -> gw.ListAcpSessionsResponse:
        """List ACP sessions."""
        return await self._do.harness_sessions.list(request, caller())

    async def GetAcpSession(
        self, request: gw.GetAcpSessionRequest, context: Context
    ) -> gw.GetAcpSessionResponse:
        """Return an ACP session."""
        return await self._do.harness_sessions.get(request, caller())

    async def PromptAcpSession(
        self, request: gw.PromptAcpSessionRequest, context: Context
    ) -> gw.PromptAcpSessionResponse:
        """Queue a prompt for an ACP session."""
        return await self._do.harness_sessions.prompt(request, caller())

    async def ConfigureAcpSession(
        self, request: gw.ConfigureAcpSessionRequest, context: Context
    ) -> gw.ConfigureAcpSessionResponse:
        """Change settings of an ACP session."""
        return await self._do.harness_sessions.configure(request, caller())

    async def CancelAcpTurn(
        self, request: gw.CancelAcpTurnRequest, context: Context
    ) -> gw.CancelAcpTurnResponse:
        """Stop the turn at work in an ACP session."""
        return await self._do.harness_sessions.cancel(request, caller())

    async def CloseAcpSession(
        self, request: gw.CloseAcpSessionRequest, context: Context
    ) -> gw.CloseAcpSessionResponse:
        """Close an ACP session."""
        return await self._do.harness_sessions.close(request, caller())

    async def ListQuestions(
        self, request: gw.ListQuestionsRequest, context: Context
    ) -> gw.ListQuestionsResponse:
        """List questions."""
        return await self._do.questions.list_questions(request, caller())

    async def AnswerQuestion(
        self, request: gw.AnswerQuestionRequest, context: Context
    ) -> gw.AnswerQuestionResponse:
        """Answer a question."""
        return await self._do.questions.answer_question(request, caller())

    async def GetServerInfo(
        self, request: gw.GetServerInfoRequest, context: Context
    ) -> gw.GetServerInfoResponse:
        """Say what this gateway is."""
        return self._do.about.server_info(request, caller())

    async def ProbeModel(
        self, request: ag.ProbeModelRequest, context: Context
    ) -> AsyncIterator[ag.ProbeModelResponse]:
        """Measure how well a model delegates."""
        async with aclosing(self._do.operations.probe_model(request, caller())) as responses:
            async for response in responses:
                yield response
